"""Q8_0, Q4_0, Q4_1 and Q4_K blocks as `Quantized` matrices, and back, without writing the weights out in between.

What a block of a row holds (f16 numbers little-endian; low nibbles are the first half of 32 values, high ones the second):

    Q8_0   32 values   f16 d | 32 × i8 q                               d·q
    Q4_0   32 values   f16 d | 16 bytes of nibbles q                   d·(q − 8)
    Q4_1   32 values   f16 d | f16 m | 16 bytes of nibbles q           d·q + m
    Q4_K  256 values   f16 d | f16 e | 12 bytes s, t | 128 of nibbles  (d·s)·q − e·t   with 6-bit s, t for each 32 values

The first three are bit for bit the same matrix, both ways. Of a Q4_K the products d·s and e·t are rounded to float16, and what
was read from one goes out as Q4_1.

Source: the specification (ggml-common.h and ggml-quants.c of ggml 0.25.3), checked against the `gguf` package's own unpacking.
"""

from __future__ import annotations

import torch
from torch import Tensor

from herdbook.model.quantized import Bits, Quantized

GROUP = 32
PACKED = ("Q8_0", "Q4_0", "Q4_1", "Q4_K")  # what is read as it is
_BITS: dict[str, Bits] = {"Q8_0": 8, "Q4_0": 4, "Q4_1": 4, "Q4_K": 4}


def unpacked(raw: Tensor, kind: str, shape: tuple[int, int]) -> Quantized:
    """The matrix (N, K) in the bytes of a tensor.

    Args:
        raw: uint8, all blocks of all rows.
        kind: one of PACKED.
    """
    rows, columns = shape
    if kind == "Q4_K":
        numbers, scales, leasts = _k_blocks(raw.view(-1, 144))
        return Quantized(4, numbers.view(shape), scales.view(rows, -1), leasts.view(rows, -1))
    blocks = raw.view(rows * columns // GROUP, -1)
    scale = _halves(blocks, 0).view(rows, -1)
    least = _halves(blocks, 2).view(rows, -1) if kind == "Q4_1" else None
    if kind == "Q8_0":
        numbers = blocks[:, 2:].view(torch.int8)
    elif kind == "Q4_0":
        numbers = _nibbles(blocks[:, 2:]) - 8
    else:
        numbers = _nibbles(blocks[:, 4:])
    return Quantized(_BITS[kind], numbers.reshape(shape), scale, least)


def kind_for(matrix: Quantized) -> str | None:
    """The type that holds a matrix bit for bit, or None: scales in float16, no 8 bits with a `least`, and groups of 32, or of
    several times 32, whose scale then stands several times in the file."""
    if matrix.group % GROUP or matrix.scale.dtype != torch.float16:
        return None
    if matrix.bits == 8:
        return None if matrix.affine else "Q8_0"
    return "Q4_1" if matrix.affine else "Q4_0"


def packed(matrix: Quantized) -> Tensor:
    """The bytes (N·G, block) of a matrix in the type that `kind_for` names."""
    kind = kind_for(matrix)
    if kind is None:
        raise ValueError("no GGUF type holds this matrix")
    times = matrix.group // GROUP
    parts = [_bytes(level.repeat_interleave(times, 1)) for level in (matrix.scale, matrix.least) if level is not None]
    numbers = matrix.numbers.contiguous().view(-1, GROUP)
    if kind == "Q8_0":
        return torch.cat([*parts, numbers.view(torch.uint8)], dim=1)
    nibbles = (numbers + (8 if kind == "Q4_0" else 0)).view(torch.uint8)
    return torch.cat([*parts, nibbles[:, : GROUP // 2] | nibbles[:, GROUP // 2 :] << 4], dim=1)


def _halves(blocks: Tensor, at: int) -> Tensor:
    """The float16 at a byte of each block, (blocks, 1)."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16)


def _bytes(levels: Tensor) -> Tensor:
    return levels.contiguous().view(-1, 1).view(torch.uint8)


def _nibbles(part: Tensor) -> Tensor:
    """(blocks, 16) bytes to (blocks, 32) numbers 0…15."""
    return torch.cat([part & 15, part >> 4], dim=1).view(torch.int8)


def _k_blocks(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers (blocks, 256), scales and leasts (blocks, 8) of Q4_K blocks."""
    d, e = _halves(blocks, 0).float(), _halves(blocks, 2).float()
    low_s, low_t, high = (
        blocks[:, 4:16].view(-1, 3, 4).unbind(1)
    )  # the last four of s and t keep their upper bits above the first
    s = torch.cat([low_s & 63, (high & 15) | (low_s >> 6) << 4], dim=1)
    t = torch.cat([low_t & 63, (high >> 4) | (low_t >> 6) << 4], dim=1)
    quants = blocks[:, 16:].view(-1, 4, 1, GROUP)
    numbers = torch.cat([quants & 15, quants >> 4], dim=2).view(-1, 256).view(torch.int8)
    return numbers, (d * s).half(), (-(e * t)).half()
