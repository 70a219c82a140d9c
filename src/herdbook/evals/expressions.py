"""Expressions and templates of task files: Jinja in the sandbox of chat templates, with the few functions that sets need.

Beside Jinja's own filters there are `sub(pattern, replacement)`, `find(pattern)` (the first group of the first match, or
nothing) and `find_all(pattern)`; patterns are Python's regular expressions. A name that an item lacks is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jinja2

from herdbook.chat_template import Sandbox
from herdbook.errors import UserError

_FAILURES = (jinja2.TemplateError, AttributeError, TypeError, ValueError, LookupError, ArithmeticError, re.error)


def _sub(text: str, pattern: str, replacement: str) -> str:
    return re.sub(pattern, replacement, text)


def _find(text: str, pattern: str) -> str:
    found = re.search(pattern, text)
    return "" if found is None else found[found.re.groups and 1] or ""


def _find_all(text: str, pattern: str) -> list[str]:
    return [found[found.re.groups and 1] for found in re.finditer(pattern, text)]


@lru_cache(maxsize=1)
def _sandbox() -> Sandbox:
    sandbox = Sandbox(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    sandbox.filters |= {"sub": _sub, "find": _find, "find_all": _find_all}
    return sandbox


@lru_cache(maxsize=512)
def expression(source: str) -> Callable[[Mapping[str, Any]], Any]:
    """What computes the value of an expression from names. Raises UserError when it is no expression.

    What it gives raises UserError where the names do not suit it.
    """
    compiled = _compiled(source, lambda: _sandbox().compile_expression(source, undefined_to_none=False))

    def value(names: Mapping[str, Any]) -> Any:
        try:
            found = compiled(dict(names))
        except _FAILURES as error:
            raise UserError(f"`{source}` cannot be computed of {', '.join(names)}: {error}") from error
        if isinstance(found, jinja2.Undefined):
            raise UserError(f"`{source}` has no value among {', '.join(names)}")
        return found

    return value


@lru_cache(maxsize=512)
def template(source: str) -> Callable[[Mapping[str, Any]], str]:
    """What writes a template's text from names. Raises UserError as `expression` does."""
    compiled = _compiled(source, lambda: _sandbox().from_string(source))

    def text(names: Mapping[str, Any]) -> str:
        try:
            return str(compiled.render(dict(names)))
        except _FAILURES as error:
            raise UserError(f"the template {source!r} cannot be written of {', '.join(names)}: {error}") from error

    return text


def _compiled(source: str, compile_: Callable[[], Any]) -> Any:
    try:
        return compile_()
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"this is not Jinja: {source!r} ({error.message})") from error
