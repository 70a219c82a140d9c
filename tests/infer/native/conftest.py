"""The compiled kernels, and plain quantisation to feed them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from herdbook.infer.native import build
from herdbook.infer.native.binding import Kernels, kernels
from herdbook.model.quantized import Bits, Quantized, put


@pytest.fixture(scope="session")
def native() -> Kernels:
    """The library. Where there is no compiler there is nothing to test; where there is one, it must work."""
    if build.find_compiler() is None:
        pytest.skip("no C++ compiler")
    found, why = kernels()
    assert found is not None, why
    return found


def quantize(weight_NK: Tensor, bits: Bits, affine: bool, group: int = 32, scale: torch.dtype = torch.float16) -> Quantized:
    """Round to the nearest of evenly spread values, group by group."""
    groups_NGC = weight_NK.unflatten(1, (-1, group)).float()
    if affine:
        least_NG, steps = groups_NGC.amin(-1), 2**bits - 1
        scale_NG = ((groups_NGC.amax(-1) - least_NG) / steps).to(scale)
        numbers = ((groups_NGC - least_NG[..., None]) / scale_NG.float()[..., None].clamp(min=1e-8)).round().clamp(0, steps)
        shift = 128 if bits == 8 else 0  # eight bits are signed either way
        least_NG = least_NG + shift * scale_NG.float()
        return Quantized(bits, (numbers - shift).flatten(1).to(torch.int8), scale_NG, least_NG.to(scale))
    most = 2 ** (bits - 1) - 1
    scale_NG = (groups_NGC.abs().amax(-1) / most).to(scale)
    numbers = (groups_NGC / scale_NG.float()[..., None].clamp(min=1e-8)).round().clamp(-most - 1, most)
    return Quantized(bits, numbers.flatten(1).to(torch.int8), scale_NG)


def quantize_all(model: nn.Module, bits: Bits, affine: bool) -> None:
    """Every linear layer and table of a model."""
    for name, module in list(model.named_modules()):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            put(model, name, quantize(module.weight.detach(), bits, affine))
