"""Matrices in 8 or 4 bits, group by group, and the layers that hold one.

    weight[n, k] = scale[n, k // group] · number[n, k] + least[n, k // group]

Symmetric kinds have no `least`: their numbers are signed around zero. The affine kind has numbers from zero on at 4 bits, and
keeps models as small as 135M readable there where the symmetric one does not. GGUF's Q8_0, Q4_0 and Q4_1 are such matrices bit
for bit with groups of 32; a Q4_K's two levels of scales are multiplied out into one.

A model is quantised by putting these layers where its `Linear` and `Embedding` were (`put`); the rest of the decoder does not
notice. Nothing in them is trained: `require_dense` is for whoever would.

Shapes: N rows (outputs), K columns (inputs), G groups of a row, C columns of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from herdbook.errors import UserError

Bits = Literal[8, 4]
ModelT = TypeVar("ModelT", bound=nn.Module)


class Form(NamedTuple):
    """How a matrix is quantised: bits, columns that share a scale, and whether there is a `least`."""

    bits: Bits
    group: int
    affine: bool


@dataclass(frozen=True)
class Quantized:
    """A matrix (N, K) in few bits. Raises ValueError when the parts do not belong together.

    Attributes:
        bits: 8 or 4.
        numbers: int8 (N, K); for 4 bits -8…7, or 0…15 where there is a `least`; for 8 bits -128…127 either way. One a byte:
            packing is the kernel's business, and that of `interop.packed` on disk.
        scale: float16 or float32, (N, G); groups are equally long and cover K. It may be negative (Q4_0's often is).
        least: the value of number 0, like `scale`; None: symmetric.
    """

    bits: Bits
    numbers: Tensor
    scale: Tensor
    least: Tensor | None = None

    def __post_init__(self) -> None:
        rows, columns = self.numbers.shape
        if self.bits not in (8, 4) or self.numbers.dtype != torch.int8:
            raise ValueError(f"{self.bits} bits in {self.numbers.dtype}: a quantised matrix is 8 or 4 bits in int8")
        for part in (self.scale, *(() if self.least is None else (self.least,))):
            if part.dim() != 2 or part.shape[0] != rows or not part.shape[1] or columns % part.shape[1]:
                raise ValueError(f"{tuple(part.shape)} are no groups of a matrix of {rows}×{columns}")
            if part.dtype != self.scale.dtype or part.shape != self.scale.shape:
                raise ValueError("scale and least are of different types or shapes")
        if self.scale.dtype not in (torch.float16, torch.float32):
            raise ValueError(f"a scale is float16 or float32, not {self.scale.dtype}")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.numbers.shape[0], self.numbers.shape[1]

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.numbers.shape[1] // self.scale.shape[1]

    @property
    def affine(self) -> bool:
        """Whether there is a `least`."""
        return self.least is not None

    @property
    def form(self) -> Form:
        """How it is quantised."""
        return Form(self.bits, self.group, self.affine)

    @property
    def stored_bytes(self) -> int:
        """Bytes once the numbers are packed."""
        levels = self.scale.numel() * self.scale.element_size() * (1 if self.least is None else 2)
        return self.numbers.numel() * self.bits // 8 + levels

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix written out."""
        return self._spread(self.numbers, self.scale, self.least).to(dtype)

    def rows(self, index: Tensor) -> Tensor:
        """Some rows written out in float32, (…, K) for an index (…)."""
        return self._spread(self.numbers[index], self.scale[index], None if self.least is None else self.least[index])

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Quantized:
        """The matrix with all of its parts changed alike along the rows: cut, joined, moved."""
        return Quantized(
            self.bits, change(self.numbers), change(self.scale), None if self.least is None else change(self.least)
        )

    def split(self, sizes: Sequence[int]) -> list[Quantized]:
        """The matrix cut into runs of rows, each in memory of its own."""
        if len(sizes) == 1:
            return [self]
        return [self.mapped(partial(_run_of_rows, start=sum(sizes[:at]), size=size)) for at, size in enumerate(sizes)]

    @staticmethod
    def _spread(numbers: Tensor, scale: Tensor, least: Tensor | None) -> Tensor:
        values = numbers.view(*scale.shape, -1).float().mul_(scale.float()[..., None])
        if least is not None:
            values.add_(least.float()[..., None])
        return values.view(numbers.shape)


def _run_of_rows(part: Tensor, start: int, size: int) -> Tensor:
    return part[start : start + size].clone()


def stacked(parts: Sequence[Quantized]) -> Quantized | None:
    """Matrices one under the other as one, what `split` undoes; None where they are of different kinds or groups."""
    if len({(part.form, part.scale.dtype, part.shape[1]) for part in parts}) != 1:
        return None
    least = torch.cat([part.least for part in parts if part.least is not None]) if parts[0].affine else None
    numbers, scale = torch.cat([part.numbers for part in parts]), torch.cat([part.scale for part in parts])
    return Quantized(parts[0].bits, numbers, scale, least)


class _Holder(nn.Module):
    """A layer around a `Quantized`. Casts leave scales as they are: in bfloat16 they would be another matrix."""

    numbers: Tensor
    scale: Tensor
    least: Tensor | None

    def __init__(self, matrix: Quantized) -> None:
        super().__init__()
        self.bits: Bits = matrix.bits
        for name, value in (("numbers", matrix.numbers), ("scale", matrix.scale), ("least", matrix.least)):
            self.register_buffer(name, value)

    @property
    def matrix(self) -> Quantized:
        """What it holds."""
        return Quantized(self.bits, self.numbers, self.scale, self.least)

    @property
    def weight(self) -> Tensor:
        """The matrix written out, float32."""
        return self.matrix.dense()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves go through; casts, which take floating point only, find bytes."""
        kept = {name: found for name in ("scale", "least") if (found := self._buffers[name]) is not None}
        self._buffers.update({name: found.view(torch.uint8) for name, found in kept.items()})
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, found in kept.items():
            moved = self._buffers[name]
            assert moved is not None
            self._buffers[name] = moved.view(found.dtype)
        return self


class QuantizedLinear(_Holder):
    """y = x·Wᵀ + b with W in few bits; written out for each product, which is the plain way. Nothing of it is trained."""

    bias: Tensor | None

    def __init__(self, matrix: Quantized, bias: Tensor | None = None) -> None:
        super().__init__(matrix)
        self.out_features, self.in_features = matrix.shape
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out), in the type of `x`."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.matrix.dense(x.dtype), bias)


class QuantizedEmbedding(_Holder):
    """A table of V rows in few bits; the rows that are looked up are written out. Nothing of it is trained."""

    def __init__(self, matrix: Quantized) -> None:
        super().__init__(matrix)
        self.num_embeddings, self.embedding_dim = matrix.shape

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids (…) to float32 (…, width)."""
        return self.matrix.rows(tokens)


def put(model: nn.Module, name: str, matrix: Quantized) -> None:
    """Have the linear layer or table called `name` of a model hold `matrix`; a linear layer keeps its bias, as a buffer.

    Raises ValueError when what is there is no such layer, or of another shape.
    """
    old = model.get_submodule(name)
    new: nn.Module
    if isinstance(old, nn.Linear):
        fits = matrix.shape == (old.out_features, old.in_features)
        new = QuantizedLinear(matrix, None if old.bias is None else old.bias.detach())
    elif isinstance(old, nn.Embedding):
        fits = matrix.shape == (old.num_embeddings, old.embedding_dim)
        new = QuantizedEmbedding(matrix)
    else:
        raise ValueError(f"{name} is a {type(old).__name__}, which holds no matrix")
    if not fits:
        raise ValueError(f"{name} is no matrix of {matrix.shape[0]}×{matrix.shape[1]}")
    model.set_submodule(name, new.train(old.training))


def with_room(model: ModelT, dtype: torch.dtype, device: str | torch.device) -> ModelT:
    """A model that was described on the meta device, with memory for what is not in it yet, in `dtype`; the rest is moved."""

    def room(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, dtype=dtype, device=device) if tensor.is_meta else tensor.to(device)

    filled: ModelT = model._apply(room)  # type: ignore[no-untyped-call]
    return filled


def matrices(model: nn.Module) -> dict[str, Quantized]:
    """The quantised matrices of a model by the names of their layers; none in a dense one."""
    return {name: module.matrix for name, module in model.named_modules() if isinstance(module, _Holder)}


def contents(model: nn.Module) -> dict[str, Tensor | Quantized]:
    """The weights of a model under the names they have in a dense one: parameters, and matrices where they are quantised."""
    found: dict[str, Tensor | Quantized] = dict(model.named_parameters())
    for name, module in model.named_modules():
        if isinstance(module, _Holder):
            found[f"{name}.weight"] = module.matrix
        if isinstance(module, QuantizedLinear) and module.bias is not None:
            found[f"{name}.bias"] = module.bias
    return found


def require_dense(model: nn.Module, purpose: str) -> None:
    """Raise UserError when a model holds quantised matrices, which have no gradient; `purpose` as in "train"."""
    found = matrices(model)
    if found:
        name, matrix = next(iter(found.items()))
        raise UserError(
            f"{len(found)} matrices of this model are quantised ({name} to {matrix.bits} bits), so one cannot {purpose} it",
            todo="load it written out (packed=False), or, better, take the model it was quantised from",
        )


def stored_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights on disk: quantised matrices packed, others in 16 bits, vectors (norms, biases) in 32."""
    held = contents(model).values()
    return sum(
        part.stored_bytes if isinstance(part, Quantized) else part.numel() * (2 if part.dim() > 1 else 4) for part in held
    )
