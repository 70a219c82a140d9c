"""Grids: nearest numbers, bounds of the error, and what searching buys."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.errors import UserError
from herdbook.model.quantized import Form
from herdbook.quantize.grid import limits, quantized

FORMS = st.builds(Form, st.sampled_from([8, 4]), st.sampled_from([8, 16, 32]), st.booleans())
SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 5))


def weights(rows: int, columns: int, seed: int, *, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator).pow(3) * spread


@settings(max_examples=60)
@given(SHAPES, FORMS, st.integers(0, 999), st.booleans(), st.sampled_from([0.01, 1.0, 100.0]))
def test_within_the_clip_no_weight_is_off_by_more_than_half_a_step(
    shape: tuple[int, int], form: Form, seed: int, search: bool, spread: float
) -> None:
    weight = weights(shape[0], shape[1] * form.group, seed, spread=spread)
    matrix = quantized(weight, form, search=search)
    assert matrix.form == form
    low, high = limits(form)
    assert low <= int(matrix.numbers.min()) <= int(matrix.numbers.max()) <= high
    scale = matrix.scale.float().repeat_interleave(form.group, 1)
    least = 0.0 if matrix.least is None else matrix.least.float().repeat_interleave(form.group, 1)
    ends = torch.stack((scale * low, scale * high)) + least
    off = (weight - matrix.dense()).abs()
    inside = (weight >= ends.amin(0)) & (weight <= ends.amax(0))
    assert bool((off[inside] <= scale.abs()[inside] * 0.5001).all())
    # What lies outside sits at the nearer end.
    outside = torch.minimum((weight - ends[0]).abs(), (weight - ends[1]).abs())
    torch.testing.assert_close(off[~inside], outside[~inside], rtol=1e-4, atol=1e-5 * spread)


@settings(max_examples=40)
@given(SHAPES, FORMS, st.integers(0, 999))
def test_what_lies_on_a_grid_stays_there(shape: tuple[int, int], form: Form, seed: int) -> None:
    first = quantized(weights(shape[0], shape[1] * form.group, seed), form, search=False)
    again = quantized(first.dense(), form)
    step = first.scale.float().abs().repeat_interleave(form.group, 1)
    assert bool(((again.dense() - first.dense()).abs() <= 0.02 * step + 1e-6).all())


@settings(max_examples=40)
@given(SHAPES, FORMS, st.integers(0, 999), st.booleans())
def test_searching_never_hurts(shape: tuple[int, int], form: Form, seed: int, weighed: bool) -> None:
    weight = weights(shape[0], shape[1] * form.group, seed)
    importance = torch.rand(weight.shape[1], generator=torch.Generator().manual_seed(seed)) * 10 if weighed else None
    by_column = torch.ones(weight.shape[1]) if importance is None else importance + 1e-4 * importance.mean() + 1e-30

    def error(search: bool) -> torch.Tensor:
        off = (weight - quantized(weight, form, importance, search=search).dense()).square() * by_column
        return off.view(-1, form.group).sum(1)

    assert bool((error(True) <= error(False) * (1 + 1e-4) + 1e-9).all())


def test_a_clip_pays_where_there_are_outliers() -> None:
    weight = weights(64, 128, 0)
    form = Form(4, 32, True)
    plain, found = (
        float((weight - quantized(weight, form, search=search).dense()).square().mean()) for search in (False, True)
    )
    assert found < 0.9 * plain


def test_columns_with_large_inputs_are_served_better() -> None:
    weight, form = weights(64, 64, 1), Form(4, 32, False)
    importance = torch.ones(64)
    importance[::4] = 100.0
    heavy, plain = ((weight - quantized(weight, form, inputs).dense()).square()[:, ::4].mean() for inputs in (importance, None))
    assert heavy < 0.9 * plain


@pytest.mark.parametrize("form", [Form(8, 8, False), Form(8, 8, True), Form(4, 8, False), Form(4, 8, True)])
def test_groups_of_one_value(form: Form) -> None:
    weight = torch.tensor([[0.0] * 8 + [0.5] * 8 + [-3.0] * 8])
    torch.testing.assert_close(quantized(weight, form).dense(), weight, atol=1e-3, rtol=1e-3)


def test_more_rows_than_are_searched_at_once_are_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, form = weights(50, 64, 2), Form(4, 16, True)
    whole = quantized(weight, form, torch.arange(1.0, 65.0))
    monkeypatch.setattr("herdbook.quantize.grid.AT_ONCE", 300)
    assert torch.equal(quantized(weight, form, torch.arange(1.0, 65.0)).dense(), whole.dense())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    weight = torch.ones(2, 32)
    weight[1, 3] = value
    with pytest.raises(UserError, match="too large to be quantised, infinite or no numbers"):
        quantized(weight, Form(8, 32, False))


def test_groups_divide_the_rows() -> None:
    with pytest.raises(ValueError, match="40 columns do not divide into groups of 32"):
        quantized(torch.ones(2, 40), Form(8, 32, False))
