"""A decoder's matrices in the layout of the kernels: tiles of 16 rows, columns in blocks of 32, one piece of memory for all.

`source/layout.h` draws the layouts. A register then holds the same columns of 16 rows, so that each lane ends as one output,
and a product reads its weights from front to back. Rows and columns that fill up the last tile or block are zero.

A `Quantized` matrix keeps its numbers bit for bit. Its scales are float16 here: float32 ones are multiplied by a power of two
that brings the largest near the top of float16's range, so that small ones keep their digits, and the product is divided by
it (`Packed.gain`). Groups of a multiple of 32 are packed as they are; a matrix of other groups is written out.

Shapes: N rows, K columns, G groups of a row, C columns of a group, T tiles of 16 rows, J blocks of 32 columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from herdbook.infer.native.binding import BFLOAT16, FLOAT32, INT4, INT8, MatrixC, NormC
from herdbook.model.quantized import Quantized

TILE, PART = 16, 32
LINE = 64  # bytes that every matrix begins at a multiple of
_LARGEST = 2.0**14  # where scales are brought to; float16 ends at 65,504


@dataclass
class Packed:
    """A matrix as the kernels read it.

    Attributes:
        kind: `FLOAT32`, `BFLOAT16`, `INT8` or `INT4`.
        rows: before padding; columns too.
        group: columns that share a scale; all of them where there are no scales.
        gain: what products are multiplied with, a power of two.
        numbers: (bytes,) uint8; T tiles, an even number.
        scales: float16 (T, G, 16), with least values (T, G, 2, 16); None: not quantised.
        bias: float32, (16·T,), or None.
    """

    kind: int
    rows: int
    columns: int
    group: int
    gain: float
    numbers: Tensor
    scales: Tensor | None = None
    bias: Tensor | None = None

    @property
    def affine(self) -> bool:
        """Whether there are least values."""
        return self.scales is not None and self.scales.dim() == 4

    @property
    def read_bytes(self) -> int:
        """Bytes that a product reads."""
        return self.numbers.numel() + (0 if self.scales is None else 2 * self.scales.numel())

    def native(self) -> MatrixC:
        """As the kernels see it; it points into this object's memory."""
        pointers = [None if part is None else part.data_ptr() for part in (self.numbers, self.scales, self.bias)]
        return MatrixC(self.kind, self.affine, self.rows, self.columns, self.group, self.gain, *pointers)


def padded(size: int, multiple: int = PART) -> int:
    """Rounded up."""
    return -(-size // multiple) * multiple


def weights_of(module: nn.Module) -> Tensor | Quantized:
    """The matrix that a linear layer or a table holds."""
    matrix = getattr(module, "matrix", None)
    if isinstance(matrix, Quantized):
        return matrix
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def pack(matrix: Tensor | Quantized, bias: Tensor | None = None, *, dtype: torch.dtype = torch.bfloat16) -> Packed:
    """A matrix (N, K) packed; one that is not quantised in `dtype`, bfloat16 or float32."""
    if isinstance(matrix, Quantized) and matrix.group % PART:
        matrix = matrix.dense()
    packed = _quantized(matrix) if isinstance(matrix, Quantized) else _dense(matrix, dtype)
    if bias is not None:
        packed.bias = F.pad(bias.detach().float(), (0, padded(packed.rows) - packed.rows)).contiguous()
    return packed


def _dense(matrix: Tensor, dtype: torch.dtype) -> Packed:
    rows, columns = matrix.shape
    kind, run = (BFLOAT16, 2) if dtype == torch.bfloat16 else (FLOAT32, 1)
    whole_NK = F.pad(matrix.to(dtype), (0, padded(columns) - columns, 0, padded(rows) - rows))
    numbers = whole_NK.view(-1, TILE, padded(columns) // run, run).transpose(1, 2).contiguous()
    return Packed(kind, rows, columns, padded(columns), 1.0, numbers.view(torch.uint8).flatten())


def _quantized(matrix: Quantized) -> Packed:
    (rows, columns), more = matrix.shape, padded(matrix.shape[0]) - matrix.shape[0]
    kind, zero = (INT8, 128) if matrix.bits == 8 else (INT4, 0 if matrix.affine else 8)
    numbers_NK = F.pad(matrix.numbers.to(torch.int16) + zero, (0, 0, 0, more)).to(torch.uint8)
    numbers = numbers_NK.view(-1, TILE, columns // PART, 8, 4).permute(0, 2, 3, 1, 4)  # (T, J, 8 runs of columns, 16, 4)
    if kind == INT4:
        numbers = numbers[:, :, :4] | (numbers[:, :, 4:] << 4)
    parts_NG = [matrix.scale] if matrix.least is None else [matrix.scale, matrix.least]
    gain = 1.0
    if matrix.scale.dtype == torch.float32:
        largest = max(float(part.abs().max()) for part in parts_NG)
        gain = 2.0 ** (math.ceil(math.log2(largest)) - math.log2(_LARGEST)) if largest > 0 else 1.0
    tiles = [F.pad((part / gain).half(), (0, 0, 0, more)).view(-1, TILE, part.shape[1]).mT for part in parts_NG]
    scales = tiles[0] if matrix.least is None else torch.stack(tiles, dim=2)
    return Packed(kind, rows, columns, matrix.group, gain, numbers.flatten(), scales.contiguous())


def gather(parts: Sequence[Packed], ready: Callable[[Tensor], None]) -> None:
    """Move the numbers and scales of all into one piece of memory, in this order; the parts point into it afterwards.

    In one piece they can lie on huge pages. `ready` is called with the memory before anything is written there.
    """
    held = [(part, name) for part in parts for name in ("numbers", "scales") if getattr(part, name) is not None]
    size = sum(padded(getattr(part, name).nbytes, LINE) for part, name in held)
    memory = torch.empty(size + LINE, dtype=torch.uint8)
    ready(memory)
    at = -memory.data_ptr() % LINE
    for part, name in held:
        old: Tensor = getattr(part, name)
        new = memory[at : at + old.nbytes]
        new.copy_(old.flatten().view(torch.uint8))
        setattr(part, name, new.view(old.dtype).view(old.shape))
        at += padded(old.nbytes, LINE)


def vector(values: Tensor) -> Tensor:
    """Float32 and filled up with zeros to a multiple of 32."""
    return F.pad(values.detach().float(), (0, padded(values.shape[-1]) - values.shape[-1])).contiguous()


def norm_of(module: nn.Module | None, keep: list[Tensor]) -> NormC:
    """A norm's weight and bias; the memory is put into `keep`."""
    pointers: list[int | None] = []
    for name in ("weight", "bias"):
        values = getattr(module, name, None)
        if values is not None:
            keep.append(vector(values))
        pointers.append(None if values is None else keep[-1].data_ptr())
    return NormC(*pointers)
