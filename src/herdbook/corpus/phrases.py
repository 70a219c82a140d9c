"""Lists of words that the user names, and one pattern that looks for all of them at once.

A pattern of many alternatives is tried one by one at each place of a text. Written as a trie (`ca(?:r(?:t)?|t)`) each place
asks for a first letter only, so that a thousand words cost little more than ten.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from herdbook.errors import UserError


def read_words(path: str | Path) -> list[str]:
    """The words of a file, one a line, in lower case; what follows a `#` at the beginning of a line is a comment.

    Raises UserError when the file is absent, is not UTF-8 text, or has no words.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read this list of words ({error.strerror})", where=path, todo="check the path") from error
    except UnicodeDecodeError as error:
        raise UserError("a list of words is UTF-8 text, one word a line; this is not", where=path) from error
    words = [line.strip().lower() for line in text.splitlines() if not line.startswith("#")]
    if not any(words):
        raise UserError("this list has no words", where=path, todo="write one word a line")
    return list(dict.fromkeys(filter(None, words)))


def any_of(phrases: Iterable[str]) -> str:
    """A regular expression that matches any of the phrases, the longest first; one that never matches if there are none."""
    root: dict[str, Any] = {}
    for phrase in filter(None, phrases):
        here = root
        for char in phrase:
            here = here.setdefault(char, {})
        here[""] = {}
    return _alternatives(root) if root else r"(?!)"


def _alternatives(node: dict[str, Any]) -> str:
    """The expression for what may follow at a node; chains without a branch are walked, not descended into."""
    parts = []
    for char, below in sorted(node.items(), reverse=True):
        text = re.escape(char)
        while len(below) == 1 and "" not in below:
            ((char, below),) = below.items()
            text += re.escape(char)
        parts.append(text + _alternatives(below) if below and [*below] != [""] else text)
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"
