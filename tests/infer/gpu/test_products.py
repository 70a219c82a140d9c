"""Products with matrices in few bits against the matrix written out: any form, any number of rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.model.quantized import Bits, Quantized, QuantizedLinear

from .conftest import DEVICE

products = pytest.importorskip("herdbook.infer.gpu.products", reason="Triton is there for Linux only")
ROUNDING = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def drawn(rows: int, groups: int, group: int, bits: Bits, *, affine: bool, half: bool = True, seed: int = 0) -> Quantized:
    """A matrix that uses every number of its bits, with scales of both signs."""
    draw = torch.Generator().manual_seed(seed)
    low, high = (0, 16) if bits == 4 and affine else (-8, 8) if bits == 4 else (-128, 128)
    numbers = torch.randint(low, high, (rows, groups * group), generator=draw, dtype=torch.int8)
    kind = torch.float16 if half else torch.float32
    scale, least = (torch.randn(rows, groups, generator=draw).to(kind) / size for size in (high - low, 1))
    return Quantized(bits, numbers, scale, least if affine else None).mapped(lambda part: part.to(DEVICE))


@settings(max_examples=30)
@given(
    rows_x=st.sampled_from([1, 2, 5, 16, 17, 40]), rows=st.integers(1, 70), groups=st.integers(1, 6),
    group=st.sampled_from([8, 16, 32, 48, 64, 128, 160]), bits=st.sampled_from([8, 4]), affine=st.booleans(),
    biased=st.booleans(), half=st.booleans(), dtype=st.sampled_from(list(ROUNDING)), seed=st.integers(0, 9),
)  # fmt: skip
def test_products_are_those_of_the_matrix_written_out(
    rows_x: int, rows: int, groups: int, group: int, bits: Bits, affine: bool, biased: bool, half: bool, dtype: torch.dtype,
    seed: int,
) -> None:  # fmt: skip
    matrix = drawn(rows, groups, group, bits, affine=affine, half=half, seed=seed)
    if not products.Grouped.fits(matrix):
        assert (group, bits) == (48, 4)  # no more than 8 bytes of a row stay in step with its groups
        return
    draw = torch.Generator().manual_seed(seed)
    x_MK = torch.randn(rows_x, groups * group, generator=draw).to(DEVICE, dtype)
    bias_N = torch.randn(rows, generator=draw).to(DEVICE, dtype) if biased else None
    got = products.multiply(x_MK, products.Grouped.of(matrix), bias_N)
    want = QuantizedLinear(matrix, bias_N)(x_MK)
    assert got.dtype == dtype and got.shape == want.shape
    torch.testing.assert_close(got, want, atol=ROUNDING[dtype] * float(want.abs().max()), rtol=ROUNDING[dtype])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("affine", [False, True])
def test_each_number_lies_where_the_kernel_looks(bits: Bits, affine: bool) -> None:
    matrix = drawn(5, 3, 32, bits, affine=affine)
    columns = torch.eye(96, device=DEVICE)
    got = torch.cat([products.multiply(columns[at : at + 16], products.Grouped.of(matrix)) for at in range(0, 96, 16)])
    torch.testing.assert_close(got, matrix.dense().T, atol=1e-6, rtol=1e-6)


def test_what_it_costs_and_what_it_refuses() -> None:
    four, eight = drawn(6, 4, 32, 4, affine=True), drawn(6, 4, 32, 8, affine=False)
    assert products.Grouped.of(four).stored_bytes == four.stored_bytes and products.Grouped.of(four).shape == (6, 128)
    assert products.Grouped.of(eight).numbers.data_ptr() == eight.numbers.data_ptr()
    assert not products.Grouped.fits(drawn(2, 3, 7, 8, affine=False))  # no step of 16 columns stays within groups of 7
    assert not products.Grouped.fits(drawn(2, 3, 31, 4, affine=False))  # two numbers a byte
    assert products.Grouped.fits(drawn(2, 1, 11008, 4, affine=False))  # a whole row of LLaMA's


def test_a_layer_takes_any_shape_and_rows_that_lie_apart() -> None:
    layer = products.GroupedLinear(drawn(9, 2, 32, 4, affine=True), torch.randn(9, device=DEVICE))
    x = torch.randn(2, 3, 128, device=DEVICE)
    apart = layer(x[..., :64])
    assert apart.shape == (2, 3, 9) and layer(x[:0, 0, :64]).shape == (0, 9)
    torch.testing.assert_close(apart[1, 2], layer(x[1:, 2:, :64].contiguous())[0, 0])
