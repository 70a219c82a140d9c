"""How many sentences a text has, by one regular expression.

A sentence ends in `. ! ? …` (and quotation marks or brackets after it) before white space and something other than a
lower-case letter, or in a full stop of a script that has its own (`。` `।` `؟` …). A full stop is none after one capital
letter (an initial), after a few titles and abbreviations, and after a number that begins a line (`1. First`). What stands
after the last end is a sentence too. Line ends do not end sentences: callers count by line.
"""

from __future__ import annotations

import re

_ABBREVIATIONS = ("Mr", "Ms", "Dr", "St", "vs", "No", "cf", "Jr", "Sr", "al", "Mrs", "Prof", "e.g", "i.e", "Fig", "Inc")
_NO_END = "".join(rf"(?<!\b{re.escape(word)}\.)" for word in _ABBREVIATIONS)
_END = re.compile(
    rf"(?:\.(?<!\b[A-Z]\.)(?<!^\d\.)(?<!^\d\d\.){_NO_END}|[!?…])"
    r"""["'”’»)\]]*\s+(?=["'“‘«(\[¿¡]*[^\sa-zß-öø-ÿ])"""
    r"|(?<![。！？｡।॥؟۔።។၊။])[。！？｡।॥؟۔።។၊။]++[」』”’)）]*+(?=\s*\w)",
    re.MULTILINE,
)
_SUBSTANCE = re.compile(r"[^\W_]")


def count_sentences(text: str) -> int:
    """The number of sentences in a line or text; 0 for one without a letter or digit."""
    if _SUBSTANCE.search(text) is None:
        return 0
    return 1 + sum(1 for _ in _END.finditer(text))  # the text's own end is none of them
