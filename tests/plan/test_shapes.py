from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdbook.facts.models import find_model
from herdbook.plan.shapes import settings, shape, shape_for


@pytest.mark.parametrize(("name", "depth"), [("llama-7b", 32), ("llama-13b", 40), ("gpt2-small", 12), ("mpt-7b", 32)])
def test_the_dial_passes_through_published_shapes(name: str, depth: int) -> None:
    published = find_model(name).config
    made = shape(depth, published)
    assert made == published
    assert made.parameters() == published.parameters()


def test_what_a_shape_is_like() -> None:
    falcon = find_model("falcon-7b").config
    made = shape(20, falcon)
    assert (made.kv_heads, made.positions, made.block, made.vocab_size) == (1, "rope", falcon.block, falcon.vocab_size)
    grouped = shape(20, find_model("llama2-70b").config)
    assert 1 <= grouped.kv_heads <= 8
    assert grouped.n_heads % grouped.kv_heads == 0


@given(st.integers(1, 200), st.sampled_from([None, "llama2-7b", "mpt-30b", "falcon-7b", "opt-350m", "llama2-70b"]))
def test_one_layer_more_is_a_larger_model(depth: int, name: str | None) -> None:
    like = find_model(name).config if name else None
    small, large = shape(depth, like), shape(depth + 1, like)
    assert small.n_layers == depth
    assert small.parameters() < large.parameters()
    assert large.d_model % large.head_width == 0


@given(st.floats(1e6, 1e12))
def test_the_nearest_shape(parameters: float) -> None:
    found = shape_for(parameters)
    for depth in (found.n_layers - 1, found.n_layers + 1):
        if depth:
            other = shape(depth).parameters()
            ratio = max(found.parameters() / parameters, parameters / found.parameters())
            assert ratio <= max(other / parameters, parameters / other)


def test_deepseeks_own_7b() -> None:
    """Bi et al. 2024, Table 2: 2T tokens, 2,304 sequences of 4,096, learning rate 4.2e-4; ours goes to a power of two."""
    chosen = settings(find_model("llama2-7b").config, tokens=2 * 10**12)
    assert chosen.lr == pytest.approx(4.2e-4, rel=0.03)
    assert chosen.tokens_per_step == 2048 * 4096


@given(st.integers(1, 100), st.floats(0.1, 50))
def test_settings(depth: int, multiple: float) -> None:
    model = shape(depth)
    chosen = settings(model, multiple=multiple)
    assert chosen.tokens == round(multiple * 20 * model.parameters())
    sequences = chosen.tokens_per_step // model.context
    assert chosen.tokens_per_step == sequences * model.context
    assert sequences & (sequences - 1) == 0
    assert 1e-5 < chosen.lr < 0.05
