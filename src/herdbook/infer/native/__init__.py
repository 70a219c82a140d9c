"""C++ kernels for CPUs: a whole step of the engine in one call, for what torch's own operations are slow at (docs/kernels.md).

    build.py    compiles source/ once and keeps the library     binding.py  loads it and picks the instruction set
    pack.py     matrices in the layout of the kernels           backend.py  the engine's backend

This file imports no torch, so that `doctor` can ask in no time whether there are kernels.
"""

from __future__ import annotations


def available() -> tuple[bool, str]:
    """Whether the kernels can be used, and which, or why not. Compiles them where that has not been done."""
    from herdbook.infer.native.binding import kernels

    found, why = kernels()
    return found is not None, why


def describe() -> dict[str, object]:
    """What runs: `path` (the instruction set chosen), `paths` (all that this processor has), `threads`, `compiled` (by what).

    Raises UserError where there are no kernels, or `HERDBOOK_KERNELS` names none of them.
    """
    import torch

    from herdbook.errors import UserError
    from herdbook.infer.native.binding import kernels

    found, why = kernels()
    if found is None:
        raise UserError(f"the C++ kernels cannot be used: {why}")
    return {"path": found.path()[0], "paths": list(found.paths), "threads": torch.get_num_threads(), "compiled": why}
