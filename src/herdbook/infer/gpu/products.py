"""Activations times a matrix in 8 or 4 bits, which is never written out: a Triton kernel, and the layer that uses it.

A program makes a tile of the output. It goes along the columns of its rows of the matrix: loads numbers, spreads them by the
scales of their groups, rounds to the type of the activations, as the plain path does, and hands that to `tl.dot`. So the two
differ by the order of sums only. Up to 16 rows of activations one tile holds all of them and the matrix is read once, which is
then what takes the time; tiles are small, so that there are programs for all processors. With more rows tiles are larger, and
programs that share rows of the matrix run beside each other and find it in the cache.

In 4 bits a byte holds two numbers of one group, `half` a group apart, so that the two tiles that come of one load want the same
scales and columns that lie dense:

    byte j of group g = number[g, j] | number[g, j + half] << 4          symmetric numbers, -8…7, are stored from 0 on

Shapes: M rows of activations, N rows (outputs) and K columns (inputs) of the matrix, G groups, C bytes of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from herdbook.infer.gpu import interpreted
from herdbook.model.quantized import Quantized

FEW = 16  # rows of activations that one tile holds
STEP = 128  # bytes of a row of the matrix that a program reads at once, of long rows of activations half
NARROWEST = 16  # columns that `tl.dot` wants at least


@triton.jit  # type: ignore[untyped-decorator]
def _add(  # type: ignore[no-untyped-def]
    acc_MN, x, m, column_C, there, number_NC, scale_NG, least_NG, x_stride,
    STEP: tl.constexpr, GROUPS: tl.constexpr, AFFINE: tl.constexpr, ROWS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """`acc_MN` and the product of some columns; `GROUPS` of them share `STEP` columns, so that each has STEP / GROUPS."""
    x_MC = tl.load(x + m[:, None] * x_stride + column_C[None, :], mask=there, other=0.0)
    weight = tl.reshape(number_NC.to(tl.float32), (ROWS, GROUPS, STEP // GROUPS)) * scale_NG[:, :, None]
    if AFFINE:
        weight += least_NG[:, :, None]
    weight_NC = tl.reshape(weight, (ROWS, STEP)).to(x_MC.dtype)
    return tl.dot(x_MC.to(DOT), tl.trans(weight_NC.to(DOT)), acc_MN, input_precision="ieee")


@triton.jit  # type: ignore[untyped-decorator]
def _multiply(  # type: ignore[no-untyped-def]
    x, numbers, scale, least, bias, out, rows_x, rows, row_bytes, x_stride,
    BITS: tl.constexpr, UNIT: tl.constexpr, AFFINE: tl.constexpr, BIASED: tl.constexpr, TILE_X: tl.constexpr,
    TILE: tl.constexpr, STEP: tl.constexpr, GROUPS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """A tile of the output. UNIT: bytes of a group, of which a step takes `GROUPS`, or a part of one."""
    m = tl.program_id(0).to(tl.int64) * TILE_X + tl.arange(0, TILE_X)
    n = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    c, g = tl.arange(0, STEP), tl.arange(0, GROUPS)
    acc_MN = tl.zeros((TILE_X, TILE), tl.float32)
    for start in range(0, row_bytes, STEP):
        byte_C, group_G = start + c, start // UNIT + g
        inside = (n < rows)[:, None] & (byte_C < row_bytes)[None, :]
        held_NC = tl.load(numbers + n[:, None] * row_bytes + byte_C[None, :], mask=inside, other=0)
        level = group_G[None, :].to(tl.int64) * rows + n[:, None]
        known = (n < rows)[:, None] & (group_G * UNIT < row_bytes)[None, :]
        scale_NG = tl.load(scale + level, mask=known, other=0.0).to(tl.float32)
        least_NG = tl.load(least + level, mask=known, other=0.0).to(tl.float32) if AFFINE else scale_NG
        there = (m < rows_x)[:, None] & (byte_C < row_bytes)[None, :]
        if BITS == 8:
            acc_MN = _add(acc_MN, x, m, byte_C, there, held_NC, scale_NG, least_NG, x_stride, STEP, GROUPS, AFFINE, TILE, DOT)
        else:
            shift = 0 if AFFINE else 8
            column_C = byte_C // UNIT * (2 * UNIT) + byte_C % UNIT
            low_NC, high_NC = (held_NC & 15).to(tl.int32) - shift, (held_NC >> 4).to(tl.int32) - shift
            acc_MN = _add(acc_MN, x, m, column_C, there, low_NC, scale_NG, least_NG, x_stride, STEP, GROUPS, AFFINE, TILE, DOT)
            column_C += UNIT
            acc_MN = _add(acc_MN, x, m, column_C, there, high_NC, scale_NG, least_NG, x_stride, STEP, GROUPS, AFFINE, TILE, DOT)
    if BIASED:
        acc_MN += tl.load(bias + n, mask=n < rows, other=0.0).to(tl.float32)[None, :]
    inside = (m < rows_x)[:, None] & (n < rows)[None, :]
    tl.store(out + m[:, None] * rows + n[None, :], acc_MN.to(out.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class Grouped:
    """A quantised matrix (N, K) as the kernel reads it.

    Attributes:
        bits: 8 or 4.
        numbers: int8 (N, K), or uint8 (N, K / 2) with two numbers a byte.
        scale, least: (G, N), so that neighbouring rows' lie side by side; `least` is None where the matrix is symmetric.
    """

    bits: int
    numbers: Tensor
    scale: Tensor
    least: Tensor | None

    @staticmethod
    def fits(matrix: Quantized) -> bool:
        """Whether the kernel reads such groups: their bytes are a power of two, or many times 16."""
        return matrix.group * matrix.bits % 8 == 0 and _step(_unit(matrix), STEP) >= NARROWEST

    @classmethod
    def of(cls, matrix: Quantized) -> Grouped:
        """Lay a matrix out. In 8 bits the numbers are shared with it, in 4 they are packed anew."""
        numbers = matrix.numbers.contiguous()
        if matrix.bits == 4:
            low, high = numbers.view(*matrix.scale.shape, 2, -1).unbind(2)
            shift = 0 if matrix.affine else 8
            numbers = ((low + shift) | ((high + shift) << 4)).to(torch.uint8).flatten(1)
        least = None if matrix.least is None else matrix.least.T.contiguous()
        return cls(matrix.bits, numbers, matrix.scale.T.contiguous(), least)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.numbers.shape[0], self.numbers.shape[1] * 8 // self.bits

    @property
    def stored_bytes(self) -> int:
        """Bytes that a product reads."""
        return self.numbers.nbytes + self.scale.nbytes + (0 if self.least is None else self.least.nbytes)


def _unit(matrix: Quantized) -> int:
    """Bytes of a group."""
    return matrix.group * matrix.bits // 8


def _step(unit: int, most: int) -> int:
    """Bytes to read at once, a power of two: several whole groups, or an even part of one."""
    twos = unit & -unit
    return min(most, twos) if twos < unit else most


def multiply(x_MK: Tensor, matrix: Grouped, bias_N: Tensor | None = None) -> Tensor:
    """x·Wᵀ + b, (M, N) in the type of `x_MK`, whose rows must lie dense."""
    (M, K), (N, columns) = x_MK.shape, matrix.shape
    assert columns == K and x_MK.stride(1) == 1
    few = M <= FEW
    tile_x, tile = (FEW, 16 if N <= 8192 else 32) if few else (64 if M <= 256 else 128, 64)
    unit = matrix.numbers.shape[1] // len(matrix.scale)
    step = _step(unit, STEP if few else STEP // 2)
    out_MN = x_MK.new_empty(M, N)
    as_float = x_MK.dtype == torch.float32 or (x_MK.dtype == torch.bfloat16 and interpreted())
    _multiply[(triton.cdiv(M, tile_x), triton.cdiv(N, tile))](
        x_MK, matrix.numbers, matrix.scale, matrix.scale if matrix.least is None else matrix.least,
        x_MK if bias_N is None else bias_N, out_MN, M, N, matrix.numbers.shape[1], x_MK.stride(0),
        BITS=matrix.bits, UNIT=unit, AFFINE=matrix.least is not None, BIASED=bias_N is not None, TILE_X=tile_x, TILE=tile,
        STEP=step, GROUPS=max(1, step // unit),
        DOT=tl.float32 if as_float else tl.float16 if x_MK.dtype == torch.float16 else tl.bfloat16,
        num_warps=4 if tile_x <= 64 else 8, num_stages=4 if few else 3,
    )  # fmt: skip
    return out_MN


class GroupedLinear(nn.Module):
    """A `QuantizedLinear` whose products the kernel makes; its plain reference is that layer itself."""

    def __init__(self, matrix: Quantized, bias: Tensor | None = None) -> None:
        super().__init__()
        self.grouped, self.bias = Grouped.of(matrix), bias

    @property
    def read_bytes(self) -> int:
        """Bytes that a product reads."""
        return self.grouped.stored_bytes

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out), in the type of `x`."""
        x_MK = x.flatten(0, -2)
        return multiply(x_MK, self.grouped, self.bias).view(*x.shape[:-1], self.grouped.shape[0])
