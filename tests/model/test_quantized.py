"""Matrices in few bits and the layers around them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from herdbook.errors import UserError
from herdbook.model.quantized import (
    Form,
    Quantized,
    QuantizedEmbedding,
    QuantizedLinear,
    contents,
    matrices,
    put,
    require_dense,
    stacked,
    stored_bytes,
)

from .conftest import make_decoder


def make(rows: int, groups: int, form: Form, seed: int = 0, kind: torch.dtype = torch.float16) -> Quantized:
    generator = torch.Generator().manual_seed(seed)
    low, high = (0, 16) if form == Form(4, form.group, True) else (-8, 8) if form.bits == 4 else (-128, 128)
    numbers = torch.randint(low, high, (rows, groups * form.group), generator=generator).to(torch.int8)
    scale, least = (torch.randn(rows, groups, generator=generator).to(kind) for _ in range(2))
    return Quantized(form.bits, numbers, scale, least if form.affine else None)


FORMS = st.builds(Form, st.sampled_from([8, 4]), st.sampled_from([2, 8, 32]), st.booleans())


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(1, 4), FORMS, st.integers(0, 99))
def test_written_out_as_the_formula_says(rows: int, groups: int, form: Form, seed: int) -> None:
    matrix = make(rows, groups, form, seed)
    dense = matrix.dense()
    scale = matrix.scale.double().repeat_interleave(form.group, 1)
    least = 0.0 if matrix.least is None else matrix.least.double().repeat_interleave(form.group, 1)
    torch.testing.assert_close(dense.double(), scale * matrix.numbers.double() + least, rtol=1e-6, atol=1e-5)
    assert matrix.form == form
    assert torch.equal(matrix.rows(torch.tensor([[rows - 1, 0]])), torch.stack((dense[rows - 1], dense[0]))[None])


@settings(max_examples=30)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), FORMS)
def test_split_and_stacked_undo_each_other(sizes: list[int], form: Form) -> None:
    whole = make(sum(sizes), 2, form)
    parts = whole.split(sizes)
    assert [part.shape[0] for part in parts] == sizes
    again = stacked(parts)
    assert again is not None
    assert torch.equal(again.dense(), whole.dense())
    assert sum(part.stored_bytes for part in parts) == whole.stored_bytes


def test_different_kinds_are_not_stacked() -> None:
    assert stacked([make(2, 1, Form(8, 32, False)), make(2, 1, Form(4, 32, False))]) is None
    assert stacked([make(2, 2, Form(4, 8, False)), make(2, 1, Form(4, 16, False))]) is None


def test_parts_that_do_not_belong_together_are_refused() -> None:
    numbers, scale = torch.zeros(4, 6, dtype=torch.int8), torch.ones(4, 2, dtype=torch.float16)
    for parts in (
        (numbers, scale[:3]), (numbers[:, :5], scale), (numbers.int(), scale), (numbers, scale.bfloat16()),
        (numbers, scale, scale[:, :1]), (numbers, scale, scale.float()),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"belong|bits in|no groups|scale"):
            Quantized(8, *parts)


@pytest.mark.parametrize("form", [Form(8, 8, False), Form(4, 16, True)])
def test_a_layer_is_the_layer_with_its_matrix_written_out(form: Form) -> None:
    matrix, x, bias = make(5, 2, form), torch.randn(3, 2 * form.group), torch.randn(5)
    layer = QuantizedLinear(matrix, bias)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, matrix.dense(), bias))
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    table, ids = QuantizedEmbedding(matrix), torch.tensor([[0, 4], [2, 2]])
    assert torch.equal(table(ids), nn.functional.embedding(ids, matrix.dense()))


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.double(), lambda m: m.cpu()])
def test_casts_do_not_touch_the_matrix(cast: object) -> None:
    matrix = make(4, 2, Form(4, 8, True), kind=torch.float32)
    model = nn.Sequential(QuantizedLinear(matrix, torch.randn(4)))
    cast(model)  # type: ignore[operator]
    assert torch.equal(model[0].weight, matrix.dense())
    assert model[0].scale.dtype == torch.float32


def test_a_whole_decoder_holds_them_and_keeps_its_names() -> None:
    model = make_decoder("learned")
    names = set(contents(model))
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for name in ("blocks.0.attn.q", "embed"):
        weight: Tensor = model.get_parameter(f"{name}.weight")
        scale = torch.full((len(weight), 1), 0.01, dtype=torch.float16)
        numbers = (weight / 0.01).round().clamp(-127, 127).to(torch.int8)
        put(model, name, Quantized(8, numbers, scale))
    assert set(contents(model)) == names
    assert set(matrices(model)) == {"blocks.0.attn.q", "embed"}
    bias = contents(model)["blocks.0.attn.q.bias"]
    assert isinstance(bias, Tensor)
    assert torch.equal(bias, weights["blocks.0.attn.q.bias"])
    few = sum(weights[f"{name}.weight"].numel() for name in matrices(model))
    rows = sum(matrix.shape[0] for matrix in matrices(model).values())
    rest = {name: weight for name, weight in weights.items() if name.removesuffix(".weight") not in matrices(model)}
    assert stored_bytes(model) == few + 2 * rows + sum(w.numel() * (2 if w.dim() > 1 else 4) for w in rest.values())
    assert model(torch.tensor([[1, 2, 3]])).isfinite().all()


def test_a_matrix_goes_only_where_it_fits() -> None:
    model = make_decoder("gqa")
    with pytest.raises(ValueError, match="no matrix of 4×64"):
        put(model, "blocks.0.attn.q", make(4, 2, Form(8, 32, False)))
    with pytest.raises(ValueError, match="which holds no matrix"):
        put(model, "blocks.0.attn_norm", make(4, 2, Form(8, 32, False)))


def test_who_would_train_is_told_what_is_in_the_way() -> None:
    model = make_decoder("gqa")
    require_dense(model, "train")
    rows, columns = model.get_submodule("blocks.0.ff.up").weight.shape
    scale = torch.ones(rows, 1, dtype=torch.float16)
    put(model, "blocks.0.ff.up", Quantized(8, torch.zeros(rows, columns, dtype=torch.int8), scale))
    with pytest.raises(UserError, match=r"quantised \(blocks.0.ff.up to 8 bits\), so one cannot train it"):
        require_dense(model, "train")
