from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdbook.errors import UserError
from herdbook.train.config import LoopConfig, TrainConfig, parse_warmup
from herdbook.train.schedule import learning_rate, plan_batches, warmup_tokens


def rates(schedule: str, steps: int, warmup: int, **config: Any) -> list[float]:
    cfg = LoopConfig(lr=1.0, min_lr_ratio=0.1, schedule=schedule, **config)
    return [learning_rate(step * 64, cfg, total=steps * 64, warmup=warmup * 64) for step in range(1, steps + 1)]


@pytest.mark.parametrize(
    ("schedule", "middle", "last"), [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1.0, 1.0), ("wsd", 1.0, 0.1)]
)
def test_schedules_rise_and_fall_as_they_are_named(schedule: str, middle: float, last: float) -> None:
    values = rates(schedule, steps=110, warmup=10)
    assert values[:10] == pytest.approx([number / 10 for number in range(1, 11)])
    assert values[59] == pytest.approx(middle)
    assert values[-1] == pytest.approx(last)


def test_cosine_is_a_cosine() -> None:
    values = rates("cosine", steps=100, warmup=0)
    for step in (1, 25, 75, 100):
        assert values[step - 1] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * step / 100)) / 2)


def test_wsd_falls_linearly_over_its_last_part() -> None:
    values = rates("wsd", steps=100, warmup=0, decay_share=0.2)
    assert values[79] == 1.0
    assert values[89] == pytest.approx(0.55)


@given(
    st.sampled_from(["cosine", "linear", "constant", "wsd"]),
    st.integers(1, 300),
    st.floats(0, 0.9),
    st.floats(0, 1),
)
def test_a_rate_never_leaves_its_bounds_and_never_rises_after_warmup(
    schedule: str, steps: int, warmup: float, ratio: float
) -> None:
    cfg = LoopConfig(lr=3e-3, min_lr_ratio=ratio, schedule=schedule, warmup=warmup)
    rise = warmup_tokens(cfg, steps * 64)
    values = [learning_rate(step * 64, cfg, total=steps * 64, warmup=rise) for step in range(1, steps + 1)]
    first = math.ceil(rise / 64)
    assert all(0 <= value <= 3e-3 * (1 + 1e-12) for value in values)
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in zip(values[first:], values[first + 1 :], strict=False))


def test_warmup_is_a_share_or_tokens() -> None:
    assert parse_warmup("2%") == parse_warmup(0.02) == parse_warmup("0.02") == 0.02
    assert parse_warmup("500K") == parse_warmup(500_000) == 500_000
    assert warmup_tokens(LoopConfig(warmup="10%"), 3200) == 320
    assert warmup_tokens(LoopConfig(warmup=640), 3200) == 640
    with pytest.raises(UserError, match="whole run has 320"):
        warmup_tokens(LoopConfig(warmup=640), 320)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_rate_may_end_before_or_after_the_run(schedule: str) -> None:
    early = rates(schedule, steps=100, warmup=0, decay_over="80%")
    assert early[79:] == pytest.approx([0.1] * 21) and early[78] > 0.1
    # GPT-3: to a tenth over 260B tokens, and on at that to 300B.
    cfg = LoopConfig(lr=6e-5, schedule=schedule, warmup="375M", decay_over="260B")
    assert learning_rate(260_000_000_000, cfg, total=300_000_000_000, warmup=3.75e8) == pytest.approx(6e-6)
    # BLOOM: the cosine would have ended at 410B, and training did at 366B.
    late = LoopConfig(lr=1.0, schedule=schedule, warmup=0, decay_over="410B")
    assert learning_rate(366_000_000_000, late, total=366_000_000_000, warmup=0) > 0.11


def test_batches_of_one_size_cover_the_budget() -> None:
    plan = plan_batches(TrainConfig(tokens="1M", tokens_per_step=4096), 256)
    assert (plan.steps, plan.sequences, plan.of(3)) == (245, 16, range(48, 64))
    with pytest.raises(UserError, match=r"tokens_per_step \(4,096\) is not a multiple.*\n.*take 4200"):
        plan_batches(TrainConfig(tokens_per_step=4096), 300)


@given(
    full=st.integers(1, 64), start=st.integers(1, 64), over=st.integers(1, 5000), by=st.integers(1, 5),
    tokens=st.integers(1, 20_000), context=st.sampled_from([1, 4, 16]),
)  # fmt: skip
def test_a_growing_batch_leaves_no_sequence_out(full: int, start: int, over: int, by: int, tokens: int, context: int) -> None:
    start = min(start, full)
    cfg = TrainConfig(tokens=tokens, tokens_per_step=full * context, warmup=0,
                      batch_ramp={"start": start * context, "over": over * context, "increment": by * context})  # fmt: skip
    plan = plan_batches(cfg, context)
    sizes = [len(plan.of(step)) for step in range(plan.steps)]
    assert sizes[0] == start and sizes == sorted(sizes) and max(sizes) <= full
    assert plan.tokens_after(plan.steps) == sum(sizes) * context >= tokens > plan.tokens_after(plan.steps - 1)
    numbers = [number for step in range(plan.steps) for number in plan.of(step)]
    assert numbers == list(range(sum(sizes)))
    assert all(plan.step_of(number) == step for step in range(plan.steps) for number in plan.of(step))
    if tokens > over * context + full * context:
        assert sizes[-1] == full


def test_a_ramp_that_shrinks_is_refused() -> None:
    with pytest.raises(UserError, match="more than a full step"):
        plan_batches(TrainConfig(tokens_per_step=1024, batch_ramp={"start": 2048, "over": "1M"}), 256)
