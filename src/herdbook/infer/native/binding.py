"""The library seen from Python: its structures field by field (`source/layout.h`), its functions, and which path is taken.

`HERDBOOK_KERNELS` names a path to take instead of the best one (`avx512bf16`, `avx512`, `avx2`, `plain`), or `none`.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p
from functools import cache

from herdbook.errors import UserError
from herdbook.infer.native import build

VARIABLE = "HERDBOOK_KERNELS"
FLOAT32, BFLOAT16, INT8, INT4 = range(4)
KEYS = {"float32": 0, "bfloat16": 1, "int8": 2}
ACTIVATIONS = {"swiglu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}
POSITIONS = {"rope": 0, "learned": 1, "alibi": 2}
SHAPES = {"sequential": 0, "parallel_one_norm": 1, "parallel_two_norms": 2}


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class MatrixC(ctypes.Structure):
    """A packed matrix; see `pack.Packed`."""

    _fields_ = [*_fields(c_int32, "kind affine rows columns group"), ("gain", c_float),
                *_fields(c_void_p, "numbers scales bias")]  # fmt: skip


class NormC(ctypes.Structure):
    """Weight and bias of a norm."""

    _fields_ = _fields(c_void_p, "weight bias")


class LayerC(ctypes.Structure):
    """What one block of the decoder is made of."""

    _fields_ = [*_fields(NormC, "attn_norm ff_norm q_norm k_norm"), *_fields(MatrixC, "q k v o gate up down")]


class ModelC(ctypes.Structure):
    """The decoder, and where its keys and values are."""

    _fields_ = [
        *_fields(c_int32, "width layers heads kv_heads head_width ff_width vocabulary embed_width"),
        *_fields(c_int32, "positions activation shape post rms rotary_width interleaved falcon"),
        *_fields(c_int32, "keys_kind exact threads pages"),
        *_fields(c_float, "eps clip rope_factor"),
        ("window", c_int32),
        *_fields(c_void_p, "slopes frequencies position_table"),
        ("layer", POINTER(LayerC)),
        *_fields(MatrixC, "embed head project_in project_out"),
        *_fields(NormC, "embed_norm norm"),
        *_fields(c_void_p, "keys values key_scales value_scales"),
    ]  # fmt: skip


class StepC(ctypes.Structure):
    """The spans of a step, and where its logits go."""

    _fields_ = [*_fields(c_int32, "rows spans wanted"),
                *_fields(c_void_p, "tokens counts starts tables pages wanted_rows logits"),
                ("logits_stride", c_int64)]  # fmt: skip


class Kernels:
    """The loaded library and the path that was chosen."""

    def __init__(self, file: str, why: str) -> None:
        self.library, self.why = ctypes.CDLL(file), why
        signatures = {
            "hb_path": (c_char_p, [c_int]),
            "hb_new": (c_void_p, [POINTER(ModelC), c_int]),
            "hb_run": (c_bool, [c_void_p, POINTER(StepC)]),
            "hb_free": (None, [c_void_p]),
            "hb_product": (c_bool, [c_int, POINTER(MatrixC), c_void_p, c_int, c_bool, c_void_p]),
            "hb_huge": (None, [c_void_p, c_size_t]),
            "hb_sizes": (c_size_t, [c_int]),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(self.library, name)
            function.restype, function.argtypes = result, arguments
        mirrored = (MatrixC, NormC, LayerC, ModelC, StepC)
        assert [self.library.hb_sizes(i) for i in range(len(mirrored))] == [ctypes.sizeof(one) for one in mirrored]

    @property
    def paths(self) -> dict[str, int]:
        """The paths this processor can run, best first, with their numbers."""
        found, number = {}, 0
        while (name := self.library.hb_path(number)) is not None:
            if name:
                found[name.decode()] = number
            number += 1
        return found

    def path(self, name: str | None = None) -> tuple[str, int]:
        """Name and number of the path to take: `name`, else what `HERDBOOK_KERNELS` says, else the best.

        Raises UserError for one that this processor cannot run.
        """
        paths = self.paths
        chosen = name or os.environ.get(VARIABLE) or next(iter(paths))
        if chosen not in paths:
            todo = f"take one of {', '.join(paths)}, or none for torch's own operations"
            raise UserError(f"there are no kernels called {chosen!r} for this processor", where=VARIABLE, todo=todo)
        return chosen, paths[chosen]


@cache
def _load() -> tuple[Kernels | None, str]:
    file, why = build.library()
    if file is None:
        return None, why
    try:
        return Kernels(str(file), why), why
    except OSError as error:
        return None, f"{file} cannot be loaded: {error}"


def kernels() -> tuple[Kernels | None, str]:
    """The library, compiled if need be, or None and why; loaded once a process."""
    if os.environ.get(VARIABLE) == "none":
        return None, f"switched off by {VARIABLE}"
    return _load()
