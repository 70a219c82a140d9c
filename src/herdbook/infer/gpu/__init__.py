"""What the torch backend does on a GPU that torch's own operations do not (docs/engine.md, "On a GPU").

    paged.py     keys and values written into blocks, and attention that reads them there: Triton kernels
    products.py  matrices in 8 and 4 bits times activations: a Triton kernel
    step.py      one token of each of many sequences over buffers that stay where they are, as a CUDA graph

Each kernel has a plain reference in torch beside it, and runs without a GPU in Triton's interpreter (`TRITON_INTERPRET=1`, set
before anything imports Triton). `reference.py` needs no Triton, and neither does `step.py` on references.
"""

from __future__ import annotations

import importlib.util
import os
from functools import cache


@cache
def have_triton() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on tensors of the CPU."""
    return have_triton() and os.environ.get("TRITON_INTERPRET") == "1"
