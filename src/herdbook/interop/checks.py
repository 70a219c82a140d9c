"""What every door says in the same words when a file and the model it should hold do not agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from herdbook.errors import UserError


def listing(names: Sequence[str], most: int = 6) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def sizes(shape: Sequence[int]) -> str:
    """A shape as people write it: 4096×512."""
    return "×".join(map(str, shape)) or "one number"


def first_problem(error: ValidationError, names: Mapping[str, str] | None = None) -> str:
    """What is wrong with a config that was put together from a file: the field, by its name there, and the reason."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{(names or {}).get(field, field)}: {message}" if field else message


def require_none(problems: Mapping[str, Sequence[str]], where: Path, settings: str) -> None:
    """Raise UserError with the names of what is missing, unknown or misfit; `settings` is what the weights are held against."""
    for what, names in problems.items():
        if names:
            todo = f"{settings} and the weights do not belong together, or the weights are of another kind of model"
            raise UserError(f"{what}: {listing(names)}", where=where, todo=todo)
