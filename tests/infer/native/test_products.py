"""Products of packed matrices on every path this processor has, against plain ones."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from herdbook.infer.native.binding import Kernels
from herdbook.infer.native.pack import Packed, pack, padded
from herdbook.model.quantized import Quantized

from .conftest import quantize

PATHS = ["avx512bf16", "avx512", "avx2", "plain"]
FORMS = ["float32", "bfloat16", "8", "8 affine", "4", "4 affine"]


def product(native: Kernels, path: str, packed: Packed, x_MK: Tensor, *, exact: bool) -> Tensor:
    """What the kernels make of it, (M, N)."""
    x = torch.nn.functional.pad(x_MK, (0, padded(packed.columns) - packed.columns)).contiguous()
    out = torch.empty(len(x), padded(packed.rows))
    matrix = packed.native()
    assert native.library.hb_product(native.paths[path], ctypes.byref(matrix), x.data_ptr(), len(x), exact, out.data_ptr())
    return out[:, : packed.rows]


def rounded(x_MK: Tensor) -> Tensor:
    """Activations as 8-bit numbers with a scale every 32, written out."""
    x = torch.nn.functional.pad(x_MK, (0, padded(x_MK.shape[1]) - x_MK.shape[1])).unflatten(1, (-1, 32))
    scale = x.abs().amax(-1, keepdim=True) / 127
    return ((x / scale.clamp(min=1e-30)).round() * scale).flatten(1)[:, : x_MK.shape[1]]


def make(form: str, rows: int, columns: int, group: int) -> tuple[Packed, Tensor]:
    """A packed matrix, and what it stands for in float64."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * columns))
    bias = torch.randn(rows, generator=torch.Generator().manual_seed(1))
    if form in ("float32", "bfloat16"):
        dtype = getattr(torch, form)
        return pack(weight, bias, dtype=dtype), weight.to(dtype).double()
    matrix: Quantized = quantize(weight, 8 if form[0] == "8" else 4, "affine" in form, group)
    return pack(matrix, bias), matrix.dense().double()


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=60)
@given(
    form=st.sampled_from(FORMS), M=st.integers(1, 30), N=st.integers(1, 100), blocks=st.integers(1, 6), odd=st.integers(0, 31),
    group=st.sampled_from([32, 64, 96]), exact=st.booleans(),
)  # fmt: skip
def test_products_are_those_of_plain_arithmetic(
    native: Kernels, path: str, form: str, M: int, N: int, blocks: int, odd: int, group: int, exact: bool
) -> None:
    if path not in native.paths:
        pytest.skip(f"this processor has no {path}")
    quantised = form[0] in "84"
    columns = blocks * group if quantised else blocks * 32 - odd
    packed, weight_NK = make(form, N, columns, group)
    x_MK = torch.randn(M, columns, generator=torch.Generator().manual_seed(M)) * 3
    seen = x_MK
    if not exact and quantised:
        seen = rounded(x_MK)
    elif not exact and form == "bfloat16" and path == "avx512bf16":
        seen = x_MK.bfloat16().float()
    assert packed.bias is not None
    want = seen.double() @ weight_NK.T + packed.bias[:N].double()
    got = product(native, path, packed, x_MK, exact=exact).double()
    # A number that lies halfway between two may fall either way: one step of one activation.
    slack = 0.0 if exact or not quantised else float(x_MK.abs().max()) / 127 * float(weight_NK.abs().max())
    assert (got - want).abs().max() <= 2e-5 * want.abs().max() + 2e-5 * weight_NK.abs().max() * columns**0.5 + slack


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("form", FORMS)
def test_a_row_gets_the_same_bits_in_company(native: Kernels, path: str, form: str) -> None:
    if path not in native.paths:
        pytest.skip(f"this processor has no {path}")
    packed, _ = make(form, 48, 192, 64)
    x_MK = torch.randn(29, 192)
    together = product(native, path, packed, x_MK, exact=False)
    for many in (1, 2, 3, 5, 7, 11, 13):
        assert torch.equal(product(native, path, packed, x_MK[:many], exact=False), together[:many])


@pytest.mark.parametrize("path", PATHS)
def test_zeros_and_extremes(native: Kernels, path: str) -> None:
    """A row of zeros gives zeros; the largest numbers of both sides do not overflow an intermediate sum."""
    if path not in native.paths:
        pytest.skip(f"this processor has no {path}")
    for bits, number in ((8, 127), (8, -128), (4, 7), (4, -8)):
        numbers = torch.full((16, 256), number, dtype=torch.int8)
        packed = pack(Quantized(8 if bits == 8 else 4, numbers, torch.ones(16, 8, dtype=torch.float16)))
        x_MK = torch.stack([torch.zeros(256), torch.full((256,), 5.0), torch.full((256,), -5.0)])
        got = product(native, path, packed, x_MK, exact=False)
        torch.testing.assert_close(got, x_MK @ numbers.float().T, rtol=1e-5, atol=0)
