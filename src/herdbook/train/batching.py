"""How a step is cut into micro-batches that fit the memory."""

from __future__ import annotations

import os
from typing import Literal

import torch

from herdbook.errors import UserError
from herdbook.model.config import ModelConfig
from herdbook.plan.memory import activation_bytes

MEMORY_SHARE = 0.4  # of what is free goes to activations
UNKNOWN_MEMORY = 4 << 30


def free_memory(device: str) -> int:
    """Bytes that are free on the device; a cautious 4 GiB where the system does not say."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return UNKNOWN_MEMORY


def micro_batch_size(
    wanted: Literal["auto"] | int,
    *,
    sequences: int,
    context: int,
    model: ModelConfig,
    device: str,
    dtype: torch.dtype,
    eager: bool,
) -> int:
    """Sequences a micro-batch: as wanted, or the largest divisor of `sequences` whose activations fit the free memory.
    What is not compiled (`eager`) keeps more of them.

    Raises UserError when a step cannot be cut into micro-batches of the wanted size.
    """
    if wanted != "auto":
        if sequences % wanted:
            raise UserError(f"a step of {sequences} sequences cannot be cut into micro-batches of {wanted}",
                            where="micro_batch", todo=f"take a divisor of {sequences}, or auto")  # fmt: skip
        return wanted
    room = MEMORY_SHARE * free_memory(device) / activation_bytes(model, context, dtype.itemsize, eager=eager)
    return max(size for size in range(1, sequences + 1) if sequences % size == 0 and (size <= room or size == 1))


def cut(tensors: dict[str, torch.Tensor], size: int) -> list[dict[str, torch.Tensor]]:
    """A step's tensors, all with the sequences in front, as micro-batches of `size` sequences."""
    sequences = next(iter(tensors.values())).shape[0]
    return [{name: tensor[start : start + size] for name, tensor in tensors.items()} for start in range(0, sequences, size)]
