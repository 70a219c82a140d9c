"""What every door says in the same words when a file and the model it should hold do not agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from herdbook.errors import UserError
from herdbook.model.config import ModelConfig


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


def window_of(value: object, context: object, where: Path, key: str) -> int | None:
    """`ModelConfig.window` from a setting of a file: null, or as wide as the context, which leaves nothing out, is none.

    Raises UserError, with the key, when it is no number of tokens.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        what = f"{key} is {repr(value)[:60]}, and a whole number above 0 is needed"
        raise UserError(what, where=where, todo="where every token sees all earlier ones, take it out")
    return None if isinstance(context, int) and value >= context else value


def require_none(problems: Mapping[str, Sequence[str]], where: Path, settings: str) -> None:
    """Raise UserError with the names of what is missing, unknown or misfit; `settings` is what the weights are held against."""
    for what, names in problems.items():
        if names:
            todo = f"{settings} and the weights do not belong together, or the weights are of another kind of model"
            raise UserError(f"{what}: {listing(names)}", where=where, todo=todo)


def narrowed(weight: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """A weight in another type, on the CPU. Raises UserError when it holds what that type cannot, as float16 can no 1e5."""
    cast = weight.detach().to("cpu", dtype)
    if dtype.itemsize < weight.dtype.itemsize and bool((~cast.isfinite()).any()) and bool(weight.isfinite().all()):
        kind = str(dtype).removeprefix("torch.")
        raise UserError(f"{name} holds numbers that {kind} cannot", todo="store the weights in bfloat16 or float32")
    return cast


def require_plausible(
    cfg: ModelConfig, *, stored_bytes: int, tensors: int, where: Path, settings: str, least_bits: float = 8
) -> None:
    """Raise UserError when a config describes more than the files can hold, before anything is built from it.

    Args:
        stored_bytes: of all files; tensors: how many they hold.
        settings: what describes it: config.json, params.json, the header.
        least_bits: that a weight takes in this kind of file.
    """
    asked = f"{settings} describes {cfg.n_layers:,} layers with {cfg.parameters():,} parameters in all"
    todo = f"the weights are incomplete, or {settings} belongs to another model"
    if cfg.parameters() * least_bits > stored_bytes * 8:
        raise UserError(f"{asked}, and the weights are only {stored_bytes:,} bytes", where=where, todo=todo)
    if cfg.n_layers > tensors:
        raise UserError(f"{asked}, and the weights are only {tensors:,} tensors", where=where, todo=todo)
