"""C4's rules (Raffel et al. 2020, JMLR 21(140), section 2.2): lines that read as prose, and documents with enough of them.

Lines go that do not end in a terminal mark (an ellipsis is none), that have few words or one of over 1,000 characters, or
that speak of Javascript, cookies or terms of use; the last two are from the authors' code. Documents go that say `lorem
ipsum`, have a curly bracket, too few sentences, or a word of a list that the user names (the paper's is "List of Dirty,
Naughty, Obscene or Otherwise Bad Words").

Where readings differ:
- the paper drops a *page* with `lorem ipsum` or a bracket anywhere; datatrove and the authors' code only look at lines that
  no other rule dropped. Ours is the paper's reading; `compat: datatrove` has the other one, and takes `'` for a terminal mark
  as it does;
- sentences are counted by `sentences.py`, a line at a time; datatrove and the authors use trained or rule-based splitters;
- citation marks, and spaces before them at a line's end, are cut before words are counted (datatrove: after, and the space
  stays, so that `… bridge. [1]` has no terminal mark there).
"""

from __future__ import annotations

import re

from herdbook.corpus.config_web import C4Config
from herdbook.corpus.filters import Removal
from herdbook.corpus.language import UNSPACED
from herdbook.corpus.lines import Corrected
from herdbook.corpus.phrases import any_of, read_words
from herdbook.corpus.sentences import count_sentences

_TERMINAL = (".", "!", "?", '"', "”")
_TERMINAL_COMPAT = (".", "!", "?", '"', "'")
_CITATION = re.compile(r"\[(?:\d*|edit|citation needed)\]")
# The phrases of the authors' code, by which it knows notices about cookies and terms.
_POLICY = re.compile(r"terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies")


def judge_c4(text: str, cfg: C4Config, bad_words: re.Pattern[str] | None = None) -> Corrected:
    """The lines that stay, and the rule by which the document goes if one does.

    Args:
        bad_words: of `bad_word_pattern`, for the language of the text.
    """
    if not cfg.enabled:
        return Corrected(text, None, [])
    removal = None if cfg.compat else _page_flaw(text, cfg)
    cuts: list[tuple[str, str]] = []
    kept: list[str] = []
    sentences = 0
    for line in text.split("\n") if removal is None else ():
        bare = line.strip()
        shorter = _CITATION.sub("", bare) if cfg.citations and "[" in bare else bare
        shorter = shorter if cfg.compat else shorter.strip()
        rule = _line_flaw(bare, shorter, cfg)
        if rule in ("lorem_ipsum", "curly_bracket"):
            removal = Removal(rule)
            break
        if rule is not None:
            cuts += [(rule, bare)] if bare else []
            continue
        if shorter != bare:
            cuts.append(("citations", bare))
        kept.append(shorter)
        sentences += count_sentences(shorter)
    if removal is None and cfg.min_sentences is not None and sentences < cfg.min_sentences:
        removal = Removal("few_sentences", sentences, cfg.min_sentences)
    if removal is None and bad_words is not None and bad_words.search(text.lower()):
        removal = Removal("bad_words")
    return Corrected("\n".join(kept) if removal is None else text, removal, cuts)


def _page_flaw(text: str, cfg: C4Config) -> Removal | None:
    if cfg.lorem_ipsum and "lorem ipsum" in text.lower():
        return Removal("lorem_ipsum")
    return Removal("curly_bracket") if cfg.curly_bracket and "{" in text else None


def _line_flaw(line: str, shorter: str, cfg: C4Config) -> str | None:
    """The rule that drops a line (or its document, in compat mode), or None."""
    longest = cfg.max_word_length
    if longest is not None and len(line) > longest and max(map(len, line.split())) > longest:
        return "long_word"
    marks = _TERMINAL_COMPAT if cfg.compat else _TERMINAL
    if cfg.terminal_marks and (not shorter.endswith(marks) or shorter.endswith("...")):
        return "no_terminal_mark"
    if cfg.min_line_words is not None and len((line if cfg.compat else shorter).split()) < cfg.min_line_words:
        return "few_line_words"
    low = shorter.lower()
    if cfg.compat and cfg.lorem_ipsum and "lorem ipsum" in low:
        return "lorem_ipsum"
    if cfg.javascript and "javascript" in low:
        return "javascript"
    if cfg.compat and cfg.curly_bracket and "{" in low:
        return "curly_bracket"
    return "policy" if cfg.policy and _POLICY.search(low) else None


def bad_word_pattern(cfg: C4Config, language: str | None = None) -> re.Pattern[str] | None:
    """A pattern for lower-case text from the list that the config names; None if it names none.

    Words match as whole ones, except in languages written without spaces. Raises UserError when the list cannot be read.
    """
    if cfg.bad_words is None:
        return None
    words = any_of(read_words(cfg.bad_words))
    return re.compile(words if language in UNSPACED else rf"(?<!\w){words}(?!\w)")
