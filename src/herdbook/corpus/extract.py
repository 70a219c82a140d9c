"""From HTML to clean text.

An engine is a function from HTML and two switches to text; `ENGINES` names them, so that another one is one entry. Cleaning
is as in RefinedWeb: at most two newlines in a row, no control characters, no spaces at line ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from herdbook.corpus.config import ExtractConfig
from herdbook.corpus.records import Unreadable

Engine = Callable[[str, bool], str]

_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)([^<>]*)>?")
_VOID = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr",
     "p", "li", "td", "tr", "th", "dt", "dd", "option"}
)  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x84\x86-\x9f\u200b\u2060\ufeff]")
_SPACES = re.compile(r"[ \t\xa0\u3000]+(?=\n|$)")
_BREAKS = {0x85: "\n", 0x2028: "\n", 0x2029: "\n\n"}
_NEWLINES = re.compile(r"\n{3,}")


def _resiliparse(html: str, main_content: bool) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    return str(extract_plain_text(html, preserve_formatting=True, main_content=main_content, alt_texts=False, comments=False))


def _native(html: str, main_content: bool) -> str:
    from herdbook.corpus.native import extract_native

    return extract_native(html, main_content)


ENGINES: dict[str, Engine] = {"resiliparse": _resiliparse, "native": _native}


def extract(html: str, cfg: ExtractConfig) -> str:
    """The main text of a page, cleaned. Raises Unreadable for a page nested too deeply, or with no text at all."""
    # The parser's time grows with the square of the nesting; a page needs two tags a level to be deep.
    if html.count("<") > cfg.max_nesting:
        depth = nesting(html)
        if depth > cfg.max_nesting:
            raise Unreadable("nested_too_deep", depth, cfg.max_nesting)
    try:
        text = ENGINES[cfg.engine](html, cfg.main_content)
    except (ValueError, RuntimeError) as error:
        raise Unreadable("not_html") from error
    text = clean(text)
    if not text:
        raise Unreadable("no_main_content")
    return text


def nesting(html: str) -> int:
    """The deepest nesting of elements, counting those that must be closed."""
    depth = deepest = 0
    for closing, name, rest in _TAG.findall(html):
        if name.lower() in _VOID or rest.endswith("/"):
            continue
        depth = max(0, depth - 1) if closing else depth + 1
        deepest = max(deepest, depth)
    return deepest


def clean(text: str) -> str:
    """Text that can be written as UTF-8, with Unix line ends, no control characters and at most two newlines in a row."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _CONTROL.sub("", text.translate(_BREAKS))
    return _NEWLINES.sub("\n\n", _SPACES.sub("", text)).strip()
