"""Gopher's rules for quality and repetition (Rae et al. 2021, arXiv 2112.11446, section A1.1 and table A1).

The paper names thresholds but not how to count, and open implementations read it differently. Here:
- words are what stands between white space; one without a letter or digit (a lone dash) is none for the rule on letters;
- a line, paragraph or n-gram is a duplicate from its second occurrence on, so that one occurrence is never held against a text;
- n-grams are counted over the characters of words; overlapping duplicates count each word once; the most frequent n-gram
  counts only if it occurs at least twice, and of several equally frequent ones the longest;
- a line begins with a bullet if its first character is one of `•●▪‣*-`, and ends in an ellipsis if it does in `…` or `...`;
- stop words are those of the document's own language; languages without a list are not judged by that rule, and languages
  written without spaces by none that counts words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from herdbook.corpus.config import QualityConfig, RepetitionConfig
from herdbook.corpus.language import STOP_WORDS, UNSPACED
from herdbook.corpus.words import Array, extend, word_hashes

_BULLETS = tuple("•●▪‣*-")
_ELLIPSES = ("…", "...")
_EDGES = ".,;:!?\"'()[]«»“”‘’"
_PARAGRAPHS = re.compile(r"\n{2,}")


class Removal(NamedTuple):
    """Why a document goes: the rule, what was measured, and the limit it passed."""

    reason: str
    value: float | None = None
    threshold: float | None = None


def judge_quality(text: str, words: list[str], language: str | None, cfg: QualityConfig) -> Removal | None:
    """The first quality rule that a text breaks, or None."""
    if not cfg.enabled:
        return None
    spaced = language not in UNSPACED
    for reason, value, low, high in _measures(text, words, language, cfg) if spaced else _line_measures(text, cfg):
        if low is not None and value < low:
            return Removal(reason, value, low)
        if high is not None and value > high:
            return Removal(reason, value, high)
    return None


Measure = tuple[str, float, float | None, float | None]


def _measures(text: str, words: list[str], language: str | None, cfg: QualityConfig) -> Iterator[Measure]:
    """(rule, value, lower limit, upper limit), cheap ones first; evaluated one by one until the first that is broken."""
    count = len(words)
    yield "few_words", count, cfg.min_words, None
    yield "many_words", count, None, cfg.max_words
    if not count:
        return
    mean = sum(map(len, words)) / count
    yield "short_words", mean, cfg.min_mean_word_length, None
    yield "long_words", mean, None, cfg.max_mean_word_length
    yield "number_signs", text.count("#") / count, None, cfg.max_symbol_ratio
    yield "ellipses", (text.count("...") + text.count("…")) / count, None, cfg.max_symbol_ratio
    yield from _line_measures(text, cfg)
    if cfg.min_alpha_words is not None:
        real = [word for word in words if word.isalnum() or any(map(str.isalnum, word))]
        alpha = sum(1 for word in real if word.isalpha() or any(map(str.isalpha, word)))
        yield "few_letters", alpha / len(real) if real else 0.0, cfg.min_alpha_words, None
    stop_words = STOP_WORDS.get(language or "")
    if cfg.min_stop_words and stop_words:
        found = {folded for word in words if (folded := word.strip(_EDGES).lower()) in stop_words}
        yield "few_stop_words", len(found), cfg.min_stop_words, None


def _line_measures(text: str, cfg: QualityConfig) -> Iterator[Measure]:
    lines = [line.strip() for line in text.split("\n") if line and not line.isspace()]
    if lines:
        yield "bullet_lines", sum(line.startswith(_BULLETS) for line in lines) / len(lines), None, cfg.max_bullet_lines
        yield "ellipsis_lines", sum(line.endswith(_ELLIPSES) for line in lines) / len(lines), None, cfg.max_ellipsis_lines


def judge_repetition(text: str, words: list[str], language: str | None, cfg: RepetitionConfig) -> Removal | None:
    """The first repetition rule that a text breaks, or None."""
    if not cfg.enabled:
        return None
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    paragraphs = [part for part in _PARAGRAPHS.split(text) if part and not part.isspace()]
    for reason, value, limit in (
        *_duplicates("line", lines, len(text), cfg.duplicate_lines, cfg.duplicate_line_chars),
        *_duplicates("paragraph", paragraphs, len(text), cfg.duplicate_paragraphs, cfg.duplicate_paragraph_chars),
    ):
        if limit is not None and value > limit:
            return Removal(reason, value, limit)
    if language in UNSPACED or len(words) < 2:
        return None
    return _judge_ngrams(words, cfg)


def _duplicates(
    what: str, parts: list[str], chars: int, count_limit: float | None, char_limit: float | None
) -> Iterator[tuple[str, float, float | None]]:
    if len(parts) < 2 or len(set(parts)) == len(parts):
        return
    seen: set[str] = set()
    again = again_chars = 0
    for part in parts:
        if part in seen:
            again += 1
            again_chars += len(part)
        else:
            seen.add(part)
    yield f"duplicate_{what}s", again / len(parts), count_limit
    yield f"duplicate_{what}_chars", again_chars / chars, char_limit


def _judge_ngrams(words: list[str], cfg: RepetitionConfig) -> Removal | None:
    """Sizes in rising order; once no n-gram occurs twice, no longer one does, so the rest need not be looked at."""
    hashes = word_hashes(words)
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    chars = int(lengths.sum())
    grams = hashes
    largest = max([*cfg.top_ngrams, *cfg.duplicate_ngrams], default=0)
    for size in range(2, min(largest, len(words)) + 1):
        grams = extend(grams, hashes)
        values, first, counts = np.unique(grams, return_index=True, return_counts=True)
        if len(values) == len(grams):
            return None
        limit = cfg.top_ngrams.get(size)
        if limit is not None and (share := _top_chars(first, counts, lengths, size) / chars) > limit:
            return Removal(f"top_{size}_gram", share, limit)
        limit = cfg.duplicate_ngrams.get(size)
        if limit is not None and (share := _covered_chars(grams, first, lengths, size) / chars) > limit:
            return Removal(f"duplicate_{size}_grams", share, limit)
    return None


def _top_chars(first: npt.NDArray[np.intp], counts: npt.NDArray[np.intp], lengths: npt.NDArray[np.int64], size: int) -> int:
    """Characters in all occurrences of the most frequent n-gram."""
    most = int(counts.max())
    starts = first[counts == most]
    ends = np.concatenate(([0], np.cumsum(lengths)))
    return most * int((ends[starts + size] - ends[starts]).max())


def _covered_chars(grams: Array, first: npt.NDArray[np.intp], lengths: npt.NDArray[np.int64], size: int) -> int:
    """Characters of the words that lie in an n-gram seen before, each word once."""
    again = np.ones(len(grams), np.int64)
    again[first] = 0
    change = np.zeros(len(lengths) + 1, np.int64)
    change[: len(grams)] += again
    change[size : size + len(grams)] -= again
    return int(lengths[np.cumsum(change[:-1]) > 0].sum())
