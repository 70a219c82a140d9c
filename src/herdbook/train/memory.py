"""Memory of a training step: computed again instead of kept, held in 8 bits, and not given back between steps.

- `recompute`: activations within blocks are made again on the way back (Chen et al. 2016, arXiv:1604.06174): a third more work
  for the memory of what goes into each block.
- `to_float8`: products in 8 bits on GPUs that have them, by torchao (Micikevicius et al. 2022, arXiv:2209.05433).
- `keep_freed`: a step frees hundreds of megabytes and the next takes them again. The C library gives large pieces back to the
  system in between, which has to clear every page of them anew: 50K page faults a step of 4,096 tokens at 10M parameters, 5 %
  of its time on a CPU.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from herdbook.errors import UserError
from herdbook.model.decoder import Decoder

FLOAT8_SINCE = (8, 9)  # compute capability: Ada, Hopper and later
# From malloc.h: give the top of the heap back from so many bytes on; at most so many pieces mapped by themselves; and how much
# more than is needed the heap grows by.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_DEFAULTS = {_TRIM_THRESHOLD: 128 << 10, _TOP_PAD: 128 << 10, _MMAP_MAX: 65536}
_KEEPING = {_TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 << 20, _MMAP_MAX: 0}


def recompute(model: Decoder, which: Literal["none", "blocks"]) -> None:
    """Have each block keep only what goes into it and compute the rest again in the backward; gradients stay the same.

    Call it before the model is compiled, which it goes together with: a compiled block is what is run again. Dropout draws
    the same numbers again. For "none" nothing is done.
    """
    if which == "none":
        return
    for block in model.blocks:
        block.forward = partial(_again, block.forward)


def _again(forward: Callable[..., Any], *args: Any) -> Any:
    """A block's forward, kept as its inputs alone where something is to be learned from it."""
    if not torch.is_grad_enabled():
        return forward(*args)
    return checkpoint(forward, *args, use_reentrant=False)


def to_float8(model: Decoder) -> None:
    """Turn the linear layers of the blocks into ones that multiply in 8 bits, in place; weights stay as they are.

    Raises UserError when the device or torchao is not there, or a width is no multiple of 16.
    """
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < FLOAT8_SINCE:
        raise UserError("products in 8 bits need an NVIDIA GPU of the Ada or Hopper kind or later",
                        where="train.float8", todo="set train.float8=false")  # fmt: skip
    if importlib.util.find_spec("torchao") is None:
        raise UserError("products in 8 bits need torchao", where="train.float8",
                        todo="install it (pip install torchao), or set train.float8=false")  # fmt: skip
    linears = [module for block in model.blocks for module in block.modules() if isinstance(module, nn.Linear)]
    odd = [linear for linear in linears if linear.in_features % 16 or linear.out_features % 16]
    if odd:
        raise UserError("products in 8 bits need widths that are multiples of 16; a layer is "
                        f"{odd[0].in_features} by {odd[0].out_features}",
                        where="train.float8", todo="choose other widths, or set train.float8=false")  # fmt: skip
    convert = importlib.import_module("torchao.float8").convert_to_float8_training
    for block in model.blocks:
        convert(block)


@contextmanager
def keep_freed() -> Iterator[None]:
    """Within the block, memory that is freed stays with this process to be taken again; after it, all goes back.

    For the C library of most Linux systems; where there is another, or an allocator was preloaded, nothing happens.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt") or not hasattr(libc, "gnu_get_libc_version"):
        yield
        return
    for option, value in _KEEPING.items():
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in _DEFAULTS.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)
