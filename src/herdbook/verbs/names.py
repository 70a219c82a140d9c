"""Names of sources and runs made from paths, in the form that recipes accept."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path


def ascii_name(path: str, otherwise: str = "source") -> str:
    """A name from the stem of a path or glob: ASCII letters, digits, `-` and `_`, beginning with a letter or digit."""
    stem = Path(path.rstrip("/*")).name.split(".")[0]
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_-]+", "-", plain).strip("-_")[:60] or otherwise


def names_for(paths: Iterable[str]) -> dict[str, str]:
    """A name for each path, numbered where two are alike."""
    named: dict[str, str] = {}
    for path in paths:
        stem = name = ascii_name(path)
        number = 2
        while name in named:
            name, number = f"{stem}-{number}", number + 1
        named[name] = path
    return named
