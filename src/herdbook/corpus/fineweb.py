"""FineWeb's three rules (Penedo et al. 2024, arXiv 2406.17557, section 3.6), chosen by the authors from over fifty statistics.

A document goes if few of its lines end in a terminal mark (a share of 0.12 or less), if many of its characters are in lines
seen before (0.1 or more), or if many lines are short (0.67 or more have fewer than 30 characters). Together they cost FineWeb
22 % of its tokens. Where readings differ:
- the paper's comparisons include the threshold (≤ 0.12, ≥ 0.1, ≥ 0.67); datatrove's leave it out, count lines of exactly 30
  characters as short, and drop at 0.01 repeated characters, ten times as strict. `compat: datatrove` does as it does;
- a terminal mark is one that ends sentences in Unicode's sense, or an ellipsis; ours may be followed by quotation marks and
  brackets, datatrove's may not;
- a line is repeated from its second occurrence on; shares of characters leave out line ends; empty lines are none.
"""

from __future__ import annotations

from herdbook.corpus.config_web import FineWebConfig
from herdbook.corpus.filters import Removal

# Unicode's Sentence_Terminal characters of living scripts.
_MARKS = tuple("!.?։؝؞؟۔܀܁܂߹।॥၊။።፧፨᙮᠃᠉᥄᥅᪨᪩᪪᪫᭚᭛᭞᭟᰻᰼᱾᱿‼‽⁇⁈⁉⸮⸼。꓿꘎꘏꛳꛷꡶꡷꣎꣏꤯꧈꧉꩝꩞꩟꫰꫱꯫﹒﹖﹗！．？｡")
_CLOSING = "\"'”’»›)]」』）"


def judge_fineweb(text: str, cfg: FineWebConfig) -> Removal | None:
    """The first of FineWeb's rules that a text breaks, or None; an empty text breaks none."""
    if not cfg.enabled:
        return None
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    if not lines:
        return None
    exact = cfg.compat is not None
    if cfg.min_punctuated is not None:
        ended = sum(_punctuated(line, exact) for line in lines) / len(lines)
        if ended < cfg.min_punctuated or (ended == cfg.min_punctuated and not exact):
            return Removal("unpunctuated_lines", ended, cfg.min_punctuated)
    if cfg.max_short_lines is not None:
        short = sum(len(line) < cfg.short_line for line in lines) / len(lines)
        if _reaches(short, cfg.max_short_lines, exact):
            return Removal("short_lines", short, cfg.max_short_lines)
    if cfg.max_repeated_chars is not None:
        repeated = _repeated_chars(lines) / (len(text) - text.count("\n"))
        if _reaches(repeated, cfg.max_repeated_chars, exact):
            return Removal("repeated_line_chars", repeated, cfg.max_repeated_chars)
    if cfg.max_newlines is not None:
        newlines = text.count("\n") / len(text.split())
        if newlines > cfg.max_newlines:
            return Removal("newlines", newlines, cfg.max_newlines)
    return None


def _punctuated(line: str, exact: bool) -> bool:
    if exact:
        return line.endswith(_MARKS)
    return line.rstrip().rstrip(_CLOSING).endswith((*_MARKS, "…"))


def _reaches(share: float, limit: float, exact: bool) -> bool:
    """Whether a share is too large; a share of nothing never is, even for a limit of zero."""
    return share > limit or (share == limit > 0 and not exact)


def _repeated_chars(lines: list[str]) -> int:
    """Characters of lines that stand further up in the text too."""
    if len(set(lines)) == len(lines):
        return 0
    seen: set[str] = set()
    repeated = 0
    for line in lines:
        if line in seen:
            repeated += len(line)
        seen.add(line)
    return repeated
