"""How SentencePiece-style vocabularies see text: which characters have a piece, and where a piece may not reach across.

The rules are SentencePiece's as LLaMA's authors set them (Kudo and Richardson 2018; Touvron et al. 2023, section 2.1):

    characters    the most frequent ones that together make up `character_coverage` of the sample; others become bytes
    spaces        belong to the word that follows; of several the last does, and the others are a run of their own
    digits        each is a piece by itself
    scripts       no piece mixes two of them, nor letters with punctuation; Japanese kana and Han characters count as one
    line breaks   and other control characters are always bytes
    length        a piece has at most 16 characters

They hold for what is learned. Encoding needs none of them, since no piece breaks one, so the files have the shape of LLaMA's.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tokenizers import Regex, normalizers, pre_tokenizers

from herdbook.interop.sentencepiece import SPACE

MAX_PIECE_CHARACTERS = 16
LONGEST_WORD = 64  # characters learned from together; what has no spaces, such as base64, is cut
MOST_WORDS = 4_000_000  # different ones that are counted; beyond that those seen once are forgotten
BREAK = "\n"
_RUN, _END = f" {{1,{LONGEST_WORD}}}(?= [^ {BREAK}])", f" {{1,{LONGEST_WORD}}}"
_COARSE = f"{_RUN}| ?[^ {BREAK}]{{1,{LONGEST_WORD - 1}}}|{_END}"
# Scripts in use today; letters of others make words too, and are only not kept apart from each other.
_SCRIPTS = (
    "Latin", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "Bengali", "Gurmukhi", "Gujarati", "Oriya", "Tamil",
    "Telugu", "Kannada", "Malayalam", "Sinhala", "Thai", "Lao", "Tibetan", "Myanmar", "Khmer", "Georgian", "Armenian",
    "Ethiopic", "Hangul", "Mongolian", "Cherokee", "Syriac", "Thaana",
)  # fmt: skip
_MARKS = r"\p{M}\x{200C}\x{200D}"  # accents, vowel signs, and what joins letters or keeps them from joining
_WORDS = [*(rf"\p{{{name}}}" for name in _SCRIPTS), r"\p{Han}\p{Hiragana}\p{Katakana}ー", r"\p{L}"]
_LONG = f"{{1,{LONGEST_WORD - 1}}}"
_LETTERS = "|".join(f"(?![{_MARKS}])[{letters}{_MARKS}]{_LONG}" for letters in _WORDS)
_FINE = rf"{_RUN}|\p{{N}}| ?(?:{_LETTERS})| ?[^\p{{L}}\p{{N}} ]{_LONG}|{_END}"


def learnable(text: str) -> bool:
    """Whether a character may be part of a piece: not control characters, line ends, and the mark that stands for a space."""
    return text != SPACE and unicodedata.category(text) not in ("Cc", "Zl", "Zp", "Cs")


def alphabet_of(counts: Mapping[str, int], coverage: float) -> list[str]:
    """The most frequent characters that make up `coverage` of all that are counted, the most frequent first, and the space."""
    found = {char: count for char, count in counts.items() if learnable(char)}
    total, covered, chosen = sum(found.values()), 0, []
    for char in sorted(found, key=lambda char: (-found[char], char)):
        if covered >= coverage * total:
            break
        chosen.append(char)
        covered += found[char]
    return chosen if " " in chosen else [*chosen, " "]


class Cutter:
    """Cuts text where no piece may reach across, and leaves out characters that have none.

    Args:
        alphabet: the characters that have a piece.
    """

    def __init__(self, alphabet: Iterable[str]) -> None:
        ranges = "".join(f"\\U{ord(char):08x}" for char in sorted(alphabet))
        self._rare = re.compile(f"[^{ranges}]")
        self.steps: Any = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(BREAK, "removed"),
                pre_tokenizers.Split(Regex(_FINE), "isolated"),
            ]
        )

    def clean(self, text: str) -> str:
        """The text with a break for every character that has no piece."""
        return self._rare.sub(BREAK, text)

    def count(self, words: Mapping[str, int]) -> Counter[str]:
        """How often each cut word occurs, with `SPACE` for spaces.

        Args:
            words: coarser words and how often they occur, none with a break in it.
        """
        counts: Counter[str] = Counter()
        for batch in _batches(words, 10_000):
            ends, at = [], 0
            for word in batch:
                at += len(word) + 1
                ends.append(at)
            number = 0
            for part, (start, _) in self.steps.pre_tokenize_str(self.clean(BREAK.join(batch))):
                while start >= ends[number]:
                    number += 1
                counts[part.replace(" ", SPACE)] += words[batch[number]]
        return counts


def count_words(texts: Iterable[str], *, prefix: bool) -> Counter[str]:
    """How often each word of some texts occurs; a word has the space before it, at the start of a text where `prefix` adds one.

    Which words are forgotten beyond `MOST_WORDS` different ones depends on the texts and their order alone.
    """
    find = re.compile(_COARSE).findall
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(find(" " + text if prefix else text))
        if len(counts) > MOST_WORDS:
            counts = Counter({word: count for word, count in counts.items() if count > 1})
    return counts


def normalized(texts: Iterable[str], kind: str) -> Iterator[str]:
    """The texts as the tokenizer will see them."""
    if kind == "identity":
        yield from texts
        return
    form = normalizers.NFKC()
    for text in texts:
        yield form.normalize_str(text)


def _batches(words: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for word in words:
        batch.append(word)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
