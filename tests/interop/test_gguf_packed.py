"""GGUF's blocks as quantised matrices: bit for bit what the `gguf` package unpacks, and the same bytes back."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.errors import UserError
from herdbook.interop.gguf.container import open_gguf
from herdbook.interop.gguf.model import load_gguf, save_gguf
from herdbook.interop.gguf.packed import kind_for, packed, unpacked
from herdbook.model.quantized import Form, matrices, put
from herdbook.quantize.grid import quantized

from .shapes import GGUF_SHAPES, ids, make_decoder

SMALL = [name for name in GGUF_SHAPES if not name.startswith("neox-")]


@settings(max_examples=40)
@given(st.sampled_from(["Q8_0", "Q4_0", "Q4_1"]), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_bit_for_bit_what_the_package_unpacks(kind: str, rows: int, groups: int, seed: int) -> None:
    raw = quantize(
        np.random.default_rng(seed).standard_normal((rows, 32 * groups), np.float32), gguf.GGMLQuantizationType[kind]
    )
    matrix = unpacked(torch.from_numpy(raw.copy()).flatten(), kind, (rows, 32 * groups))
    assert np.array_equal(matrix.dense().numpy(), dequantize(raw, gguf.GGMLQuantizationType[kind]))
    assert kind_for(matrix) == kind
    assert np.array_equal(packed(matrix).numpy().ravel(), raw.ravel())


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 2), st.integers(0, 99))
def test_q4_k_within_the_rounding_of_its_products(rows: int, blocks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows * blocks, 144), dtype=np.uint8)
    raw[:, :4] = (rng.random((len(raw), 2)) * 0.01).astype(np.float16).view(np.uint8)
    raw = raw.reshape(rows, -1)
    wanted = dequantize(raw, gguf.GGMLQuantizationType.Q4_K)
    matrix = unpacked(torch.from_numpy(raw.copy()).flatten(), "Q4_K", (rows, 256 * blocks))
    least = matrix.least
    assert least is not None
    # Half a unit in the last place of the scale, fifteen times, and of the least; below 2^-14 units no longer shrink.
    unit = lambda x: x.float().abs() * 2.0**-11 + 2.0**-25  # noqa: E731
    bound = (15 * unit(matrix.scale) + unit(least)).repeat_interleave(32, 1) * 1.01
    assert bool(((matrix.dense() - torch.from_numpy(wanted)).abs() <= bound).all())


def test_a_scale_for_more_columns_stands_several_times() -> None:
    matrix = quantized(torch.randn(4, 128), Form(4, 64, True))
    assert kind_for(matrix) == "Q4_1"
    raw = packed(matrix).numpy().reshape(4, -1)
    assert np.array_equal(dequantize(raw, gguf.GGMLQuantizationType.Q4_1), matrix.dense().numpy())


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_a_file_is_run_as_it_is_and_written_back_the_same(name: str, kind: str, tmp_path: Path) -> None:
    save_gguf(make_decoder(GGUF_SHAPES[name]), tmp_path / "a.gguf", kind=kind)
    kept, written_out, tokens = load_gguf(tmp_path / "a.gguf", packed=True), load_gguf(tmp_path / "a.gguf"), ids(2, 20)
    assert torch.equal(kept(tokens), written_out(tokens))
    dense = dict(written_out.named_parameters())
    for layer, matrix in matrices(kept).items():
        assert torch.equal(matrix.dense(), dense[f"{layer}.weight"])
    assert {layer for layer, weight in kept.named_parameters() if weight.dim() == 2} <= {"position_embed.weight"}
    save_gguf(kept, tmp_path / "b.gguf", kind="F32")
    one, two = open_gguf(tmp_path / "a.gguf"), open_gguf(tmp_path / "b.gguf")
    assert one.metadata["general.file_type"] == two.metadata["general.file_type"]
    assert {row.name: row.type for row in one.tensors.values()} == {row.name: row.type for row in two.tensors.values()}
    assert all(torch.equal(one.stored(row), two.stored(row)) for row in one.tensors)


def test_what_is_not_packed_is_dense_beside_it(tmp_path: Path) -> None:
    save_gguf(make_decoder(GGUF_SHAPES["llama"]), tmp_path / "a.gguf", kind="Q5_1")
    kept = load_gguf(tmp_path / "a.gguf", packed=True)
    assert set(matrices(kept)) == {"embed", "unembed"}  # Q8_0 under 5 bits
    assert not matrices(load_gguf(tmp_path / "a.gguf"))


@pytest.mark.parametrize("form", [Form(8, 32, True), Form(4, 16, True)])
def test_a_matrix_without_a_type_is_refused_by_name(form: Form, tmp_path: Path) -> None:
    model = make_decoder(GGUF_SHAPES["llama"])
    put(model, "blocks.1.ff.up", quantized(model.get_parameter("blocks.1.ff.up.weight"), form))
    with pytest.raises(
        UserError, match=rf"no GGUF type holds blocks.1.ff.up.weight .*{form.bits} bits, groups of {form.group}"
    ):
        save_gguf(model, tmp_path / "m.gguf")
    with pytest.raises(UserError, match="quantised already, so it is not packed in Q4_0"):
        save_gguf(model, tmp_path / "m.gguf", kind="Q4_0")
    assert not list(tmp_path.iterdir())


def test_scales_that_are_no_numbers_are_one_error(tmp_path: Path) -> None:
    save_gguf(make_decoder(GGUF_SHAPES["llama"]), tmp_path / "a.gguf", kind="Q8_0")
    place = open_gguf(tmp_path / "a.gguf").tensors["blk.0.ffn_up.weight"].offset
    content = bytearray((tmp_path / "a.gguf").read_bytes())
    content[place : place + 2] = np.float16("nan").tobytes()
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(UserError, match=r"blk\.0\.ffn_up\.weight has scales that are no numbers"):
        load_gguf(tmp_path / "a.gguf", packed=True)
