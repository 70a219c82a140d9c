"""Chat templates in a sandbox: Jinja programs from model folders, which nobody has to trust.

The surroundings are those of Hugging Face's `apply_chat_template` (trimmed blocks, `raise_exception`, `strftime_now`, plain
`tojson`, `{% generation %}`, `{% break %}`), so that the same template gives the same text. The environment is Jinja's
immutable sandbox: no attribute of Python's insides, no change of what is passed in. On top of that there are bounds on the
size of the template, on its arithmetic, on the steps it may run, and on what it writes. (Texts joined by `~` are bounded
by the steps alone: load folders of people you do not trust where memory is limited.)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from types import FrameType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from herdbook.errors import UserError

TEMPLATE_LIMIT = 200_000  # characters of a template; the longest in the wild have some 20,000
OUTPUT_LIMIT = 20_000_000  # characters a template may render
LENGTH_LIMIT = 1_000_000  # longest text or list that arithmetic may make in a template
STEP_LIMIT = 2_000_000  # lines of compiled template that may run; a long conversation takes some thousand
BIT_LIMIT = 4096  # of a whole number that arithmetic may make


class Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks the answer for training masks; here its text is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012  as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The statements between the marks."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with bounds on the arithmetic that could eat all memory."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`left operator right`; raises SecurityError where the result could be huge."""
        if operator == "%" and isinstance(left, str):
            raise SecurityError("formatting text with % is not allowed")
        if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            if len(left) + len(right) > OUTPUT_LIMIT:
                raise SecurityError("a text or list grows too long")
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > BIT_LIMIT:
                raise SecurityError("a number grows too large")
        elif operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, str | list | tuple) and len(sequence) * times > LENGTH_LIMIT:
                    raise SecurityError("a text or list grows too long")
        return super().call_binop(context, operator, left, right)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as it is; Jinja's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    sandbox.filters["tojson"] = _to_json
    sandbox.globals["raise_exception"] = _refuse
    sandbox.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return sandbox.from_string(source)


@contextmanager
def _counted_steps() -> Iterator[None]:
    """Within the block a template that runs too long is stopped: by lines executed, not by the clock."""
    left = STEP_LIMIT

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        left -= event == "line"
        if left < 0:
            raise SecurityError("it runs too long")
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(former)


def render(source: str, names: Mapping[str, Any]) -> str:
    """The text that the template `source` makes of `names`.

    Raises UserError when the template is broken, too large, breaks a bound, or refuses what it is given.
    """
    if len(source) > TEMPLATE_LIMIT:
        raise UserError(f"the chat template has {len(source):,} characters, more than {TEMPLATE_LIMIT:,}")
    pieces, length = [], 0
    try:
        template = _compiled(source)
        with _counted_steps():
            for piece in template.generate(dict(names)):
                pieces.append(piece)
                length += len(piece)
                if length > OUTPUT_LIMIT:
                    raise UserError(f"the chat template wrote more than {OUTPUT_LIMIT:,} characters")
    except MemoryError as error:
        raise UserError("the chat template uses up all memory") from error
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template is broken at its line {error.lineno}: {error.message}") from error
    except (jinja2.TemplateError, AttributeError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise UserError(f"the chat template does not take these messages: {error}") from error
    return "".join(pieces)
