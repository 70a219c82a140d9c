"""A decoder's modules again, over the same weights, in evaluation mode, with the layers that a device is fast at.

- On a CPU matrices lie packed as oneDNN wants them. In bfloat16 a row of 2,048 through a matrix of 2,048 × 5,632 takes 0.38 ms
  instead of 1.25. In float32 matrices from 576 × 576 on take 2 to 64 rows 1.5-2.7 times as fast and 512 rows 1.2-1.5 times; a
  single row is better off with the matrix as it was, and so are small matrices.
- On a GPU weights are cast to the type of the activations once instead of with every token, and products with matrices in few
  bits are made by a kernel that never writes them out.

Where a layer is another one than the model's own (an adapter), it runs as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from herdbook.model.decoder import Decoder, Linear, Norm
from herdbook.model.quantized import QuantizedEmbedding, QuantizedLinear

Module = TypeVar("Module", bound=nn.Module)
WORTH_PACKING = 2**18  # values of a float32 matrix; below that a call of oneDNN's costs more than it saves


class Packed(nn.Module):
    """A linear layer whose matrix lies as oneDNN's kernels want it, in bfloat16 or float32."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        with torch.no_grad():
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype).contiguous())
            self.added = None if bias is None else bias.detach().to(dtype)
        self.dtype, self.plain = dtype, weight.detach() if weight.dtype == dtype == torch.float32 else None

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out) in the layer's type."""
        if self.plain is not None and x.numel() == x.shape[-1]:
            return F.linear(x, self.plain, self.added)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, self.added, "none", [], "")
        return out


def twin(model: Decoder, *, gpu: bool, kernels: bool) -> Decoder:
    """See the module.

    Args:
        model: stays as it is.
        gpu: whether to make what suits a GPU.
        kernels: whether Triton's kernels are to be had.
    """
    pack, dtype = _packs(model), model.compute_dtype

    def layer(old: nn.Module) -> nn.Module | None:
        if type(old) is Linear:
            if pack and _worth_packing(old.weight, dtype):
                return Packed(old.weight, old.bias, dtype)
            return _cast(old, dtype) if gpu and old is not model.project_in else None  # which works in float32
        if type(old) is Norm and gpu and old.kind != "layernorm":  # which does, too
            return _cast(old, dtype)
        return _grouped(old) if kernels else None

    made = _twin(model, layer)
    head = _tied_head(made.embed, dtype, pack=pack, gpu=gpu, kernels=kernels) if made.unembed is None else None
    if head is not None:
        made.unembed = head  # type: ignore[assignment]  # any module will do
    return made


def copied_bytes(model: Decoder) -> int:
    """Memory of what a twin for a GPU does not share with the model: casts, and matrices of 4 bits packed."""
    dtype, found = model.compute_dtype, 0
    for part in model.modules():
        if type(part) is Linear and part.weight.dtype != dtype and part is not model.project_in:
            found += part.weight.numel() * dtype.itemsize
        elif isinstance(part, QuantizedLinear):
            found += part.matrix.stored_bytes
    tied = model.unembed is None
    if tied and isinstance(model.embed, QuantizedEmbedding):
        return found + model.embed.matrix.stored_bytes
    return found + (model.embed.weight.numel() * dtype.itemsize if tied and model.embed.weight.dtype != dtype else 0)


def read_bytes(made: Decoder) -> int:
    """Bytes of weights of a twin that a step of one token reads."""
    head: int = made.embed.weight.nbytes if made.unembed is None else 0
    return head + sum(_bytes_of(part) for part in made.modules())


def _bytes_of(part: nn.Module) -> int:
    if isinstance(part, Packed):
        return int(part.packed.numel()) * part.dtype.itemsize
    if isinstance(part, Linear):
        return part.weight.numel() * part.weight.itemsize
    if isinstance(part, QuantizedLinear):
        return part.matrix.stored_bytes
    held = getattr(part, "read_bytes", 0)  # of the kernels' layers, whose module is there with Triton only
    return int(held)


def _packs(model: Decoder) -> bool:
    """Whether matrices are packed: on a CPU whose oneDNN computes in the model's type."""
    if next(model.parameters()).device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if model.compute_dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return model.compute_dtype == torch.float32


def _worth_packing(weight: Tensor, dtype: torch.dtype) -> bool:
    return dtype != torch.float32 or weight.numel() >= WORTH_PACKING


def _twin(module: Module, layer: Callable[[nn.Module], nn.Module | None]) -> Module:
    made = copy.copy(module)
    made.training = False
    made._modules = {
        name: None if child is None else (layer(child) or _twin(child, layer)) for name, child in module._modules.items()
    }
    return made


def _cast(old: Module, dtype: torch.dtype) -> Module:
    """The same layer with its weights in a type; those that are are shared."""
    made = copy.copy(old)
    made.training = False
    made._parameters = {
        name: None if part is None else nn.Parameter(part.detach().to(dtype), requires_grad=False)
        for name, part in old._parameters.items()
    }
    return made


def _grouped(old: nn.Module) -> nn.Module | None:
    """The kernel's layer in place of one in few bits, if it reads such groups."""
    if not isinstance(old, QuantizedLinear):
        return None
    from herdbook.infer.gpu.products import Grouped, GroupedLinear

    return GroupedLinear(old.matrix, old.bias) if Grouped.fits(old.matrix) else None


def _tied_head(embed: nn.Module, dtype: torch.dtype, *, pack: bool, gpu: bool, kernels: bool) -> nn.Module | None:
    """What multiplies by the embedding's matrix, where that is not best done as it is."""
    if isinstance(embed, QuantizedEmbedding) and not pack:
        return _grouped(QuantizedLinear(embed.matrix)) if kernels else None
    weight = embed.weight
    assert isinstance(weight, Tensor)
    if pack and _worth_packing(weight, dtype):
        return Packed(weight, None, dtype)
    if not gpu or weight.dtype == dtype:
        return None
    head = Linear(1, 1, bias=False, device="meta")
    head.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    return head
