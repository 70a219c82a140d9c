"""GPTQ: never worse than rounding on what it looked at, and better where inputs go together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.model.quantized import Form
from herdbook.quantize.gptq import gptq, objective
from herdbook.quantize.grid import quantized

FORMS = st.builds(Form, st.sampled_from([8, 4]), st.sampled_from([8, 16, 32]), st.booleans())


def problem(rows: int, columns: int, seed: int, samples: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix, and the mean of x·xᵀ over inputs that go together."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5 + torch.eye(columns)
    x = torch.randn(samples, columns, generator=generator) @ mix
    return torch.randn(rows, columns, generator=generator), x.T @ x / samples


@settings(max_examples=25)
@given(st.integers(1, 5), st.integers(1, 5), FORMS, st.integers(0, 999), st.booleans(), st.sampled_from([1, 10, 300]))
def test_no_row_is_worse_than_rounded(rows: int, groups: int, form: Form, seed: int, act_order: bool, samples: int) -> None:
    weight, gram = problem(rows, groups * form.group, seed, samples)
    found, plain = gptq(weight, gram, form, act_order=act_order), quantized(weight, form, gram.diagonal())
    assert found.form == form
    assert bool((objective(weight, found, gram) <= objective(weight, plain, gram) * (1 + 1e-5) + 1e-9).all())


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("form", [Form(4, 32, True), Form(4, 64, False), Form(8, 32, False)])
def test_correlated_inputs_are_made_use_of(form: Form, act_order: bool) -> None:
    weight, gram = problem(32, 320, 0, samples=2000)  # more than one block of columns
    found, plain = gptq(weight, gram, form, act_order=act_order), quantized(weight, form, gram.diagonal())
    assert float(objective(weight, found, gram).sum()) < 0.75 * float(objective(weight, plain, gram).sum())


def test_the_objective_is_the_error_of_the_outputs() -> None:
    x, weight = torch.randn(50, 32), torch.randn(3, 32)
    matrix = quantized(weight, Form(4, 16, True))
    wanted = (x @ (weight - matrix.dense()).T).square().mean(0)
    torch.testing.assert_close(objective(weight, matrix, x.T @ x / 50), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("act_order", [False, True])
def test_inputs_that_never_come_and_inputs_that_are_one(act_order: bool) -> None:
    """Columns without inputs, two that are the same, and no inputs at all: nothing breaks, and nothing is lost."""
    generator = torch.Generator().manual_seed(0)
    x, weight, form = torch.randn(20, 64, generator=generator), torch.randn(4, 64, generator=generator), Form(4, 32, True)
    x[:, 10:20] = 0
    x[:, 40] = x[:, 41]
    for gram in (x.T @ x / 20, torch.zeros(64, 64)):
        found = gptq(weight, gram, form, act_order=act_order)
        assert bool(found.dense().isfinite().all())
        assert float((found.dense() - weight).abs().max()) < 3
