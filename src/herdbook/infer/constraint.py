"""Texts of a given form: JSON of a schema, a regular expression, a grammar.

Before each draw the tokens that cannot go on in the form are ruled out. Which those are is worked out by llguidance, a library
of its own (`pip install 'herdbook[constraint]'`).
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from herdbook.errors import UserError
from herdbook.infer.config import Sampling
from herdbook.tokenizer import Tokenizer


class Guide:
    """Where a text stands in its form."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    @property
    def over(self) -> bool:
        """Whether nothing can follow but the end."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> NDArray[np.bool_]:
        """Of each id of the tokenizer whether it may come next; an end token where the text is complete."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, bitorder="little").astype(bool)

    def take(self, token: int) -> None:
        """Go on by a token."""
        self._matcher.consume_token(token)

    def copy(self) -> Guide:
        """For a text that branches."""
        return Guide(self._matcher.deep_copy())


def guide(sampling: Sampling, tokenizer: Tokenizer | None) -> Guide | None:
    """The form that the settings want; None when they want none.

    Raises UserError when the library or the tokenizer is missing, and for a schema, expression or grammar that is wrong.
    """
    if not sampling.constrained:
        return None
    if tokenizer is None:
        raise UserError(
            "this model has no tokenizer, so its text can have no form", todo="leave out json_schema, regex, grammar"
        )
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        todo = "pip install 'herdbook[constraint]'"
        raise UserError("json_schema, regex and grammar need the library llguidance", todo=todo) from error
    if sampling.json_schema is not None:
        where, grammar = "json_schema", LLMatcher.grammar_from_json_schema(json.dumps(sampling.json_schema))
    elif sampling.regex is not None:
        where, grammar = "regex", LLMatcher.grammar_from_regex(sampling.regex)
    else:
        where, grammar = "grammar", LLMatcher.grammar_from_lark(sampling.grammar or "")
    matcher = LLMatcher(_vocabulary(tokenizer), grammar, log_level=0)
    if matcher.is_error():
        raise UserError(f"this is not understood: {matcher.get_error().strip()}", where=where)
    return Guide(matcher)


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer) -> Any:
    """The tokenizer as the library wants it: all tokens in a prefix tree, which takes a second for a large vocabulary."""
    from llguidance import LLTokenizer

    ends = sorted(tokenizer.end_ids)
    if not ends:
        raise UserError("the tokenizer has no token that ends a text, so a form could never be complete")
    return LLTokenizer(tokenizer.definition, n_vocab=tokenizer.vocab_size, eos_token=ends)
