"""Packing loses nothing: every number is where the layout says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from herdbook.infer.native.binding import INT4, INT8
from herdbook.infer.native.pack import LINE, Packed, gather, pack, padded
from herdbook.model.quantized import Bits

from .conftest import quantize


def unpacked(packed: Packed) -> Tensor:
    """The matrix written out, one value at a time, as `source/layout.h` words it."""
    rows, columns = packed.rows, padded(packed.columns)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    tile, lane = row // 16, row % 16
    if packed.scales is None:
        dtype, run = (torch.bfloat16, 2) if packed.kind == 1 else (torch.float32, 1)
        values = packed.numbers.view(dtype)
        place = tile * columns * 16 + (column // run * 16 + lane) * run + column % run
        return values[place].float()[:, : packed.columns]
    if packed.kind == INT8:
        numbers = packed.numbers[tile * columns * 16 + (column // 4 * 16 + lane) * 4 + column % 4].float() - 128
    else:
        assert packed.kind == INT4
        byte = packed.numbers[tile * columns * 8 + column // 32 * 256 + (column // 4 % 4 * 16 + lane) * 4 + column % 4]
        numbers = torch.where(column % 32 < 16, byte & 15, byte >> 4).float() - (0 if packed.affine else 8)
    scales = packed.scales.float() * packed.gain
    group = column // packed.group
    if packed.affine:
        return scales[tile, group, 0, lane] * numbers + scales[tile, group, 1, lane]
    return scales[tile, group, lane] * numbers


@settings(max_examples=60)
@given(
    rows=st.integers(1, 70), groups=st.integers(1, 4), group=st.sampled_from([32, 64, 96]), bits=st.sampled_from([8, 4]),
    affine=st.booleans(), wide=st.booleans(), size=st.sampled_from([1e-6, 1.0, 1e3]),
)  # fmt: skip
def test_quantised_matrices_come_back(
    rows: int, groups: int, group: int, bits: Bits, affine: bool, wide: bool, size: float
) -> None:
    weight = torch.randn(rows, groups * group, generator=torch.Generator().manual_seed(rows))
    matrix = quantize(weight * (size if wide else 1), bits, affine, group, torch.float32 if wide else torch.float16)
    packed = pack(matrix)
    assert packed.gain == 1 or wide
    # float32 scales become float16 with all of its digits, however small they are; float16 ones stay as they are.
    close = {"rtol": 1e-3, "atol": 2e-3 * float(matrix.dense().abs().max())} if wide else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(unpacked(packed), matrix.dense(), **close)


@given(rows=st.integers(1, 70), columns=st.integers(1, 100), dtype=st.sampled_from([torch.bfloat16, torch.float32]))
def test_dense_matrices_come_back(rows: int, columns: int, dtype: torch.dtype) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns))
    packed = pack(weight, torch.arange(rows), dtype=dtype)
    assert torch.equal(unpacked(packed), weight.to(dtype).float())
    assert packed.bias is not None
    assert packed.bias.tolist() == [*range(rows), *[0] * (padded(rows) - rows)]


def test_groups_that_are_no_multiple_of_a_block_are_written_out() -> None:
    matrix = quantize(torch.randn(20, 48), 8, False, group=48)
    torch.testing.assert_close(unpacked(pack(matrix)), matrix.dense(torch.bfloat16).float(), rtol=0, atol=0)


def test_gathered_matrices_keep_their_values_on_lines_of_the_cache() -> None:
    parts = [
        pack(quantize(torch.randn(40, 64), 4, True)),
        pack(torch.randn(7, 5)),
        pack(quantize(torch.randn(3, 32), 8, False)),
    ]
    before = [unpacked(part) for part in parts]
    seen: list[int] = []
    gather(parts, lambda memory: seen.append(memory.nbytes))
    assert all(torch.equal(unpacked(part), old) for part, old in zip(parts, before, strict=True))
    addresses = [part.numbers.data_ptr() for part in parts]
    assert all(address % LINE == 0 for address in addresses)
    assert addresses == sorted(addresses)
    assert len(seen) == 1


@pytest.mark.parametrize(("bits", "affine", "most"), [(8, False, 8.5), (4, False, 4.5), (4, True, 5.0)])
def test_bytes_that_are_read(bits: Bits, affine: bool, most: float) -> None:
    packed = pack(quantize(torch.randn(64, 128), bits, affine))
    assert packed.read_bytes * 8 == 64 * 128 * most
