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
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from herdbook.corpus.config_web import LinesConfig
from herdbook.corpus.filters import Removal
from herdbook.corpus.language import UNSPACED
from herdbook.corpus.words import DIGIT, SPACE, UPPER, Codes, Index, code_points, kinds

_NEWLINE = ord("\n")
_COUNTED = (int(SPACE), int(UPPER), int(DIGIT))
_WIDTH = 21  # bits of a count, so that three are summed as one number
_MASK = (1 << _WIDTH) - 1
_PLANE = 1 << 16
_LONGEST_COUNTER = 60  # characters
_COUNTER = re.compile(
    r"\W*\d[\d.,]*\s?[kmb]?\+?\s+(?:likes?|shares?|comments?|repl(?:y|ies)|retweets?|reposts?|quotes?|bookmarks?"
    r"|votes?|upvotes?|downvotes?|points?|views?|downloads?|followers?|following|subscribers?|favou?rites?|reactions?)\W*$",
    re.IGNORECASE,
)
_LOWER_ASCII = "\u212a\u0130"  # what is not ASCII but is in lower case: the sign for Kelvin and the I with a dot
_WORDS = re.compile(r"\w+")
_GAPS = re.compile(r"\n\n\n+")
_Near = npt.NDArray[np.uint16]


class _Phrases(NamedTuple):
    """The phrases of one rule, to find in a line, and roughly (more is found than there is) in the bytes of a whole text."""

    rule: str
    pattern: re.Pattern[str]
    quick: re.Pattern[bytes]
    needed: list[list[bytes]]  # the words of each phrase

    def may_be_in(self, low: bytes) -> bool:
        """Whether a lower-case text has any of the phrases; looking for words is several times as fast as for expressions."""
        for words in self.needed:
            for word in words:
                if word not in low:
                    break
            else:
                return self.quick.search(low) is not None
        return False


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
    measured = _measure(text)
    lines = text.split("\n")
    flaws = _flaws(lines, measured, cfg, spaced)
    phrases = _find_phrases(text, cfg) if spaced else []
    if not flaws and not phrases:
        return Corrected(text, None, [])
    cuts: list[tuple[str, str]] = []
    lost = 0  # words, or characters
    if phrases:
        kept: list[str] = []
        for number, line in enumerate(lines):
            if number in flaws:
                cuts.append((flaws[number], line.strip()))
            elif (shorter := _cut_phrases(line.strip(), cfg.short_line, phrases, cuts)) is not None:
                kept += [shorter] if shorter else []
                lost += int(measured.words[number]) - len(shorter.split())
            else:
                kept.append(line)
    else:
        cuts = [(rule, lines[number].strip()) for number, rule in flaws.items()]
        kept = _without(lines, flaws)
    if not cuts:
        return Corrected(text, None, [])
    sizes = measured.words if spaced else measured.solid
    lost += int(sizes[list(flaws)].sum())
    left = "\n".join(kept).strip()
    if "\n\n\n" in left:
        left = _GAPS.sub("\n\n", left)
    flagged = lost / int(sizes.sum())
    if cfg.max_flagged is not None and flagged > cfg.max_flagged:
        return Corrected(left, Removal("flagged_lines", flagged, cfg.max_flagged), cuts)
    return Corrected(left, None, cuts)


def _without(lines: list[str], numbers: Iterable[int]) -> list[str]:
    kept: list[str] = []
    begin = 0
    for number in numbers:
        kept += lines[begin:number]
        begin = number + 1
    return kept + lines[begin:]


class _Lines(NamedTuple):
    """What lines have, each of shape (lines,); `solid` are characters that are no white space."""

    solid: Index
    words: Index
    upper: Index
    digits: Index


def _measure(text: str) -> _Lines:
    """All lines at once: each character is looked up once, and what it is is summed by line."""
    codes, known = _codes(text + "\n")
    (ends,) = (codes == _NEWLINE).nonzero()
    starts = np.zeros_like(ends)
    np.add(ends[:-1], 1, out=starts[1:])
    if len(codes) < 1 << _WIDTH:
        values = _packed(_COUNTED, known is codes).take(known)
        sums = np.add.reduceat(values, starts)
        spaces, upper, digits = sums & _MASK, sums >> _WIDTH & _MASK, sums >> 2 * _WIDTH
    else:
        each = [_packed((kind,), known is codes).take(known) for kind in _COUNTED]
        spaces, upper, digits = (np.add.reduceat(values, starts) for values in each)
        values = each[0]
    space = values.astype(np.uint8)  # the lowest bits
    after = np.zeros(len(space), np.bool_)  # whether white space follows on a word
    np.greater(space[1:], space[:-1], out=after[:-1])
    solid = ends - starts
    solid -= spaces - 1
    return _Lines(solid, np.add.reduceat(after.astype(np.int64), starts), upper, digits)


def _codes(text: str) -> tuple[Codes | _Near, Codes | _Near]:
    """The characters of a text as numbers, and by what to look them up: the same if all are below 65,536, else their kinds."""
    if text.isascii():
        codes = code_points(text)
        return codes, codes
    packed = text.encode("utf-16-le", "surrogatepass")
    if len(packed) == 2 * len(text):  # half the bytes of UTF-32
        near = np.frombuffer(packed, np.uint16)
        return near, near
    codes = code_points(text)
    return codes, kinds(codes)


@lru_cache(maxsize=8)
def _packed(bits: tuple[int, ...], direct: bool) -> Index:
    """Which kinds a character is of, the first in the lowest bits: for each of the first 65,536, or for each set of kinds."""
    known = kinds(np.arange(_PLANE, dtype=np.uint32)) if direct else np.arange(256, dtype=np.uint8)
    return sum(
        ((known & bit > 0).astype(np.int64) << at * _WIDTH for at, bit in enumerate(bits)), np.zeros(len(known), np.int64)
    )


def _flaws(lines: list[str], measured: _Lines, cfg: LinesConfig, spaced: bool) -> dict[int, str]:
    """The rule that drops a line, by the line's number in rising order; of several rules the first."""
    solid, upper, digits = measured.solid, measured.upper, measured.digits
    likely = np.zeros(len(lines), np.bool_)  # what counts alone cannot tell is left open: white space within a line
    if cfg.max_upper is not None:
        likely |= upper > cfg.max_upper * solid
    if cfg.digits:
        likely |= digits == solid
    if cfg.counters:
        likely |= (digits > 0) & (solid < _LONGEST_COUNTER)
    least = cfg.min_words if spaced else None
    if least is not None:
        likely |= measured.words < least
    likely &= solid > 0
    flaws: dict[int, str] = {}
    few = "single_word" if least == 2 else "few_line_words"
    (numbers,) = likely.nonzero()
    of_numbers = (array[numbers].tolist() for array in (solid, measured.words, upper, digits))
    for number, characters, words, capitals, figures in zip(numbers.tolist(), *of_numbers, strict=True):
        line = lines[number].strip()
        if cfg.max_upper is not None and capitals > cfg.max_upper * len(line):
            flaws[number] = "upper_case"
        elif cfg.digits and figures == characters:
            flaws[number] = "only_digits"
        elif cfg.counters and figures and len(line) < _LONGEST_COUNTER and _COUNTER.match(lines[number]):
            flaws[number] = "counter"
        elif least is not None and words < least:
            flaws[number] = few
    return flaws


def _find_phrases(text: str, cfg: LinesConfig) -> list[_Phrases]:
    """The rules of which a text may have phrases; mostly none, so that its lines need not be looked at."""
    patterns = _patterns(tuple(cfg.prefixes), tuple(cfg.suffixes), tuple(cfg.anywhere))
    plain = all(phrase.isascii() for phrase in (*cfg.prefixes, *cfg.suffixes, *cfg.anywhere))
    if not plain or any(letter in text for letter in _LOWER_ASCII):
        text = text.lower()  # slow where there is more than ASCII, and bytes can do it for ASCII
    low = text.encode("utf-8", "surrogatepass").lower()
    return [phrases for phrases in patterns if phrases.may_be_in(low)]


def _cut_phrases(line: str, longest: int, phrases: list[_Phrases], cuts: list[tuple[str, str]]) -> str | None:
    """A line of at most `longest` words without the phrases, None if it has none; what was cut is added to `cuts`."""
    if len(line.split(None, longest)) > longest:
        return None
    length = len(line)
    for phrase in phrases:
        if found := phrase.pattern.findall(line):
            cuts += [(phrase.rule, match.strip()) for match in found]
            line = phrase.pattern.sub(" ", line).strip()
    return line if len(line) < length else None


@lru_cache(maxsize=16)
def _patterns(prefixes: tuple[str, ...], suffixes: tuple[str, ...], anywhere: tuple[str, ...]) -> list[_Phrases]:
    shapes = (("prefix", r"^{}\s?", prefixes), ("suffix", r"\s?{}$", suffixes), ("phrase", r"\s?{}\s?", anywhere))
    return [
        _Phrases(
            rule,
            re.compile(shape.format(f"(?:{'|'.join(map(_whole, phrases))})"), re.IGNORECASE),
            re.compile(b"|".join(map(_rough, phrases))),
            [[word.encode() for word in _WORDS.findall(phrase.lower())] for phrase in phrases],
        )
        for rule, shape, phrases in shapes
        if phrases
    ]


def _flexible(phrase: str) -> str:
    """A phrase as an expression: see the module's docstring."""
    text = re.escape(phrase.strip()).replace(re.escape("..."), r"(?:\.\.\.|…)")
    return re.sub(r"(?:\\ |\\-|-)+", r"[\\s-]?", text)


def _whole(phrase: str) -> str:
    return rf"(?<!\w){_flexible(phrase)}{_after(phrase)}"


def _rough(phrase: str) -> bytes:
    """The same for the bytes of a lower-case text, in which any other character of up to four bytes may be a space."""
    dots = "(?:\\.\\.\\.|…)"
    text = re.escape(phrase.strip().lower()).replace(re.escape("..."), dots)
    text = re.sub(r"(?:\\ |\\-|-)+", "\x00", text) + _after(phrase)
    return text.encode().replace(b"\x00", b"(?:[\\s\\x1c-\\x1f-]|[\\x80-\\xff]{2,4})?")


def _after(phrase: str) -> str:
    return r"(?!\w)" if phrase.strip()[-1].isalnum() else ""
