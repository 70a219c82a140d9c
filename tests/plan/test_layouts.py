from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.facts.devices import find_device
from herdbook.facts.models import find_model
from herdbook.model.config import ModelConfig
from herdbook.plan.layouts import SHARDINGS, Layout, choose, fewest_devices, held, largest_micro_batch, layouts
from herdbook.plan.memory import PRECISIONS
from herdbook.plan.shapes import shape_for

LLAMA2_7B = find_model("llama2-7b").config
A100 = find_device("a100-80gb")
MIXED = PRECISIONS["mixed"]


def test_zeros_figure_1() -> None:
    """Rajbhandari et al. 2020, Figure 1: 7.5B parameters, 64 devices: 120, 31.4, 16.6 and 1.9 GB of state."""
    model = shape_for(7.5e9)
    scale = 7.5e9 / model.parameters()
    for sharding, gigabytes in zip(SHARDINGS, (120, 31.4, 16.6, 1.9), strict=True):
        one = held(model, Layout(sharding, 64, 1, "selective"), PRECISIONS["zero"], context=1024)
        assert (one.weights + one.gradients + one.optimizer) * scale / 1e9 == pytest.approx(gigabytes, rel=0.02)


def test_sharding_only_ever_needs_less() -> None:
    totals = [held(LLAMA2_7B, Layout(sharding, 8, 1, "selective"), MIXED, context=4096).total for sharding in SHARDINGS]
    assert all(more > less for more, less in pairwise(totals))


def test_tensor_parallelism_divides_all() -> None:
    whole, half = (held(LLAMA2_7B, Layout("ddp", 1, t, "selective"), MIXED, context=4096) for t in (1, 2))
    assert half.total == pytest.approx(whole.total / 2)


def test_llama2_7b_on_eight_a100() -> None:
    """Data parallel alone does not fit; the layout that is taken does, and the next sequence would not."""
    taken = choose(LLAMA2_7B, A100, 8, MIXED, context=4096)
    assert taken == Layout("zero2", 8, 1, "selective")
    most = largest_micro_batch(LLAMA2_7B, taken, A100, MIXED, context=4096)
    room = 0.9 * A100.memory
    assert held(LLAMA2_7B, taken, MIXED, context=4096, micro_batch=most).total <= room
    assert held(LLAMA2_7B, taken, MIXED, context=4096, micro_batch=most + 1).total > room


def test_what_fits_nowhere() -> None:
    big, small = find_model("llama2-70b").config, find_device("rtx4090")
    assert choose(big, small, 2, MIXED, context=4096) is None
    needed = fewest_devices(big, small, MIXED, context=4096)
    assert needed is not None
    assert choose(big, small, needed, MIXED, context=4096) is not None
    assert choose(big, small, needed // 2, MIXED, context=4096) is None
    assert largest_micro_batch(big, Layout("ddp", 2, 1, "selective"), small, MIXED, context=4096) == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 64), st.sampled_from([1, 2, 4, 8]), st.integers(1, 24))
def test_layouts_use_every_device_and_divide_the_heads(devices: int, node: int, heads: int) -> None:
    model = ModelConfig(vocab_size=512, d_model=8 * heads, n_heads=heads, n_layers=2)
    found = list(layouts(model, devices, node))
    assert len(found) == len(set(found))
    for layout in found:
        assert layout.data * layout.tensor == devices
        assert layout.tensor <= node
        assert heads % layout.tensor == 0


def test_titles() -> None:
    names = [Layout("fsdp", 4, 2, "full").title, Layout("ddp", 1, 8, "full").title, Layout("ddp", 1, 1, "full").title]
    assert names == ["fsdp 4 × tp 2", "tp 8", "one device"]
