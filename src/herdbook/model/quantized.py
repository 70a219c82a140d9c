"""Matrices in 8 or 4 bits, group by group, and the linear layer that holds one.

    weight[n, k] = scale[n, k // group] · number[n, k] + least[n, k // group]

Symmetric kinds have no `least`: their numbers are signed around zero. The affine kind has numbers from zero on, and keeps
models as small as 135M readable at 4 bits where the symmetric one does not. GGUF's Q8_0, Q4_0 and Q4_1 are such matrices bit
for bit with groups of 32; a Q4_K's two levels of scales are multiplied out into one.

Shapes: N rows (outputs), K columns (inputs), G groups of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Bits = Literal[8, 4]


@dataclass(frozen=True)
class Quantized:
    """A matrix (N, K) in few bits.

    Attributes:
        bits: 8 or 4.
        numbers: int8 (N, K); for 4 bits -8…7, or 0…15 where there is a `least`. One a byte: packing is the kernel's business.
        scale: float16 or float32, (N, G); groups are equally long and cover K.
        least: the value of number 0, like `scale`; None: symmetric.
    """

    bits: Bits
    numbers: Tensor
    scale: Tensor
    least: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.numbers.shape[0], self.numbers.shape[1]

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.numbers.shape[1] // self.scale.shape[1]

    @property
    def stored_bytes(self) -> int:
        """Bytes once the numbers are packed."""
        levels = self.scale.numel() * self.scale.element_size() * (1 if self.least is None else 2)
        return self.numbers.numel() * self.bits // 8 + levels

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix written out."""
        rows, columns = self.shape
        values_NGC = self.numbers.view(rows, -1, self.group).float() * self.scale.float()[..., None]
        if self.least is not None:
            values_NGC = values_NGC + self.least.float()[..., None]
        return values_NGC.view(rows, columns).to(dtype)


class QuantizedLinear(nn.Module):
    """y = x·Wᵀ + b with W in few bits; written out for each product, which is the plain way. Nothing of it is trained."""

    numbers: Tensor
    scale: Tensor
    least: Tensor | None
    bias: Tensor | None

    def __init__(self, matrix: Quantized, bias: Tensor | None = None) -> None:
        super().__init__()
        self.bits: Bits = matrix.bits
        self.out_features, self.in_features = matrix.shape
        for name, value in (("numbers", matrix.numbers), ("scale", matrix.scale), ("least", matrix.least), ("bias", bias)):
            self.register_buffer(name, value)

    @property
    def matrix(self) -> Quantized:
        """What it multiplies with."""
        return Quantized(self.bits, self.numbers, self.scale, self.least)

    @property
    def weight(self) -> Tensor:
        """The matrix written out, float32."""
        return self.matrix.dense()

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out), in the type of `x`."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.matrix.dense(x.dtype), bias)
