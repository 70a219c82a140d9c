"""Texts of a given form: JSON of a schema, a regular expression, a grammar.

Before each draw the tokens that cannot go on in the form are ruled out. Which those are is worked out by llguidance, a library
of its own (`pip install 'herdbook[constraint]'`).

A form is compiled once, before its request enters a queue, and kept for the next one. That takes milliseconds, rarely seconds,
in which other threads go on: the library lets go of the interpreter meanwhile.
"""

from __future__ import annotations

import json
import re
import threading
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herdbook.errors import UserError
from herdbook.infer.config import Sampling
from herdbook.tokenizer import Tokenizer

KEPT = 64  # forms that stay compiled
# Divisibility is compiled to a state for each remainder. 100,000 take 0.3 s and a million 9 s with 300 MB, and none of the
# library's own limits stops it.
LARGEST_MULTIPLE = 100_000
_MULTIPLE = re.compile(r'"multipleOf"\s*:\s*([-+.0-9eE]+)')
# The prototypes of forms are only copied from, but two threads may not even do that at once.
_LOCK = threading.Lock()


class Guide:
    """Where a text stands in its form."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    @property
    def over(self) -> bool:
        """Whether nothing can follow but the end."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> NDArray[np.bool_]:
        """Of each id of the tokenizer whether it may come next; an end token where the text is complete.

        Raises UserError when the form is too complex to say.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._require_sound()
        return np.unpackbits(bits, bitorder="little").astype(bool)

    def take(self, token: int) -> None:
        """Go on by a token. Raises UserError when the form is too complex for that."""
        self._matcher.consume_token(token)
        self._require_sound()

    def copy(self) -> Guide:
        """For a text that branches."""
        return Guide(self._matcher.deep_copy())

    def _require_sound(self) -> None:
        """A matcher that has met a limit of its library says that the text is over."""
        if self._matcher.is_error():
            raise UserError(f"the form is too complex to go on in: {_first_line(self._matcher)}", todo="make it simpler")


def guide(sampling: Sampling, tokenizer: Tokenizer | None) -> Guide | None:
    """The form that the settings want, at its beginning; None when they want none.

    Raises UserError when the library or the tokenizer is missing, and for a schema, expression or grammar that is wrong or too
    complex.
    """
    if sampling.json_schema is not None:
        where, form = "json_schema", json.dumps(sampling.json_schema)
    elif sampling.regex is not None:
        where, form = "regex", sampling.regex
    elif sampling.grammar is not None:
        where, form = "grammar", sampling.grammar
    else:
        return None
    if tokenizer is None:
        raise UserError(
            "this model has no tokenizer, so its text can have no form", todo="leave out json_schema, regex, grammar"
        )
    with _LOCK:
        return Guide(_compiled(tokenizer, where, form).deep_copy())


def prepare(tokenizer: Tokenizer) -> None:
    """Do now what the first form for a tokenizer would wait for, where there can be forms for it.

    It takes a second for a large vocabulary, in which no other thread of this process goes on.
    """
    try:
        with _LOCK:
            _vocabulary(tokenizer)
    except UserError:
        pass  # whoever wants a form is told


@lru_cache(maxsize=KEPT)
def _compiled(tokenizer: Tokenizer, where: str, form: str) -> Any:
    matchers, vocabulary = _library().LLMatcher, _vocabulary(tokenizer)
    if where != "regex":
        _require_small_multiples(form, where)
    if where == "json_schema":
        grammar = matchers.grammar_from_json_schema(form)
    else:
        grammar = matchers.grammar_from_regex(form) if where == "regex" else matchers.grammar_from_lark(form)
    matcher = matchers(vocabulary, grammar, log_level=0)
    if matcher.is_error():
        raise UserError(f"this is not understood: {matcher.get_error().strip()}", where=where)
    return matcher


def _require_small_multiples(form: str, where: str) -> None:
    for number in _MULTIPLE.findall(form):
        try:
            value = abs(Decimal(number)).normalize()
        except InvalidOperation:
            continue  # the library says what is wrong with it
        places = max(0, -int(value.as_tuple().exponent))
        if value.adjusted() + places > len(str(LARGEST_MULTIPLE)) or value.scaleb(places) > LARGEST_MULTIPLE:
            raise UserError(f"multipleOf {number} is too large to be compiled", where=where,
                            todo=f"up to {LARGEST_MULTIPLE:,} is possible, its decimal point left out")  # fmt: skip


@lru_cache(maxsize=16)
def _vocabulary(tokenizer: Tokenizer) -> Any:
    """The tokenizer as the library wants it: all tokens in a prefix tree."""
    ends = sorted(tokenizer.end_ids)
    if not ends:
        raise UserError("the tokenizer has no token that ends a text, so a form could never be complete")
    return _library().LLTokenizer(tokenizer.definition, n_vocab=tokenizer.vocab_size, eos_token=ends)


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        todo = "pip install 'herdbook[constraint]'"
        raise UserError("json_schema, regex and grammar need the library llguidance", todo=todo) from error
    return llguidance


def _first_line(matcher: Any) -> str:
    return str(matcher.get_error()).strip().partition("\n")[0]
