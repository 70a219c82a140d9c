"""RefinedWeb's corrections of lines (Penedo et al. 2023, arXiv 2306.01116, section 3.1 and appendix G.2).

What extraction leaves of menus and buttons: lines that are mainly upper case, only digits, a counter (`3 likes`) or a single
word go, and from short lines phrases such as `Read more...` are cut. A document that loses over 5 % of its words to this is
dropped as a whole. The paper gives the rules by example. Here:
- characters of a line are those between its first and last that are no white space, spaces within counted;
- `only digits` allows white space between them; a counter is a number (`1,024`, `3.5K`) and a word for what is counted;
- words stand between white space; empty lines are no lines and stay;
- a phrase is found in any case; its dots are an ellipsis too, its spaces and hyphens any space, a hyphen or nothing; a word
  that goes on (`sign-ing`) is another one; of a line that is nothing but phrases nothing stays;
- lines are judged before phrases are cut, as in DCLM, the one published implementation;
- languages written without spaces are judged by their characters where words would be counted, and lose no single words.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from herdbook.corpus.config_web import LinesConfig
from herdbook.corpus.filters import Removal
from herdbook.corpus.language import UNSPACED

_UPPER = bytes(range(ord("A"), ord("Z") + 1))
_COUNTER = re.compile(
    r"\W*\d[\d.,]*\s?[kmb]?\+?\s+(?:likes?|shares?|comments?|repl(?:y|ies)|retweets?|reposts?|quotes?|bookmarks?"
    r"|votes?|upvotes?|downvotes?|points?|views?|downloads?|followers?|following|subscribers?|favou?rites?|reactions?)\W*$",
    re.IGNORECASE,
)
_NEWLINES = re.compile(r"\n{3,}")


class _Phrases(NamedTuple):
    """The phrases of one rule, to find in a line, and without their surroundings to look up quickly in a lower-case text."""

    rule: str
    pattern: re.Pattern[str]
    quick: re.Pattern[str]


class Corrected(NamedTuple):
    """A text after rules on lines: what is left, why the document goes if it does, and what was cut as (rule, text)."""

    text: str
    removal: Removal | None
    cuts: list[tuple[str, str]]


def correct_lines(text: str, cfg: LinesConfig, language: str | None = None) -> Corrected:
    """Apply RefinedWeb's corrections; a text that no rule touches comes back as it is."""
    if not cfg.enabled:
        return Corrected(text, None, [])
    spaced = language not in UNSPACED
    low = text.lower()
    phrases = _patterns(tuple(cfg.prefixes), tuple(cfg.suffixes), tuple(cfg.anywhere)) if spaced else []
    phrases = [phrase for phrase in phrases if phrase.quick.search(low)]
    cuts: list[tuple[str, str]] = []
    kept: list[str] = []
    for line in text.split("\n"):
        bare = line.strip()
        rule = _flaw(bare, cfg, spaced) if bare else None
        if rule is not None:
            cuts.append((rule, bare))
        elif phrases and bare and len(shorter := _cut_phrases(bare, cfg.short_line, phrases, cuts)) < len(bare):
            kept += [shorter] if shorter else []
        else:
            kept.append(line)
    if not cuts:
        return Corrected(text, None, [])
    left = _NEWLINES.sub("\n\n", "\n".join(kept)).strip()
    before, after = (_size(part, spaced) for part in (text, left))
    flagged = (before - after) / before
    if cfg.max_flagged is not None and flagged > cfg.max_flagged:
        return Corrected(left, Removal("flagged_lines", flagged, cfg.max_flagged), cuts)
    return Corrected(left, None, cuts)


def _size(text: str, spaced: bool) -> int:
    words = text.split()
    return len(words) if spaced else sum(map(len, words))


def _flaw(line: str, cfg: LinesConfig, spaced: bool) -> str | None:
    """The rule that drops a line, or None."""
    if cfg.max_upper is not None and _upper(line) > cfg.max_upper * len(line):
        return "upper_case"
    if cfg.digits and line[0].isdigit() and "".join(line.split()).isdigit():
        return "only_digits"
    if cfg.counters and len(line) < 60 and _COUNTER.match(line):
        return "counter"
    if cfg.min_words is None or not spaced or (cfg.min_words <= 2 and " " in line):  # a space within makes two words
        return None
    if len(line.split(None, cfg.min_words)) < cfg.min_words:
        return "single_word" if cfg.min_words == 2 else "few_line_words"
    return None


def _upper(line: str) -> int:
    if line.isascii():
        return len(line) - len(line.encode().translate(None, _UPPER))
    return sum(map(str.isupper, line))


def _cut_phrases(line: str, longest: int, phrases: list[_Phrases], cuts: list[tuple[str, str]]) -> str:
    """A line of at most `longest` words without the phrases; what was cut is added to `cuts`."""
    if len(line.split(None, longest)) > longest:
        return line
    for phrase in phrases:
        if found := phrase.pattern.findall(line):
            cuts += [(phrase.rule, match.strip()) for match in found]
            line = phrase.pattern.sub(" ", line).strip()
    return line


@lru_cache(maxsize=16)
def _patterns(prefixes: tuple[str, ...], suffixes: tuple[str, ...], anywhere: tuple[str, ...]) -> list[_Phrases]:
    shapes = (("prefix", r"^{}\s?", prefixes), ("suffix", r"\s?{}$", suffixes), ("phrase", r"\s?{}\s?", anywhere))
    return [
        _Phrases(
            rule,
            re.compile(shape.format(f"(?:{'|'.join(map(_whole, phrases))})"), re.IGNORECASE),
            re.compile("|".join(_flexible(phrase.lower()) for phrase in phrases)),
        )
        for rule, shape, phrases in shapes
        if phrases
    ]


def _flexible(phrase: str) -> str:
    """A phrase as an expression: see the module's docstring."""
    text = re.escape(phrase.strip()).replace(re.escape("..."), r"(?:\.\.\.|…)")
    return re.sub(r"(?:\\ |\\-|-)+", r"[\\s-]?", text)


def _whole(phrase: str) -> str:
    after = r"(?!\w)" if phrase.strip()[-1].isalnum() else ""
    return rf"(?<!\w){_flexible(phrase)}{after}"
