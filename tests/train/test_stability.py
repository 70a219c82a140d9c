from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdbook.train.config import StabilityConfig
from herdbook.train.stability import EVENTS, Watch, last_rewind, log_event, read_events


def test_a_leap_is_judged_by_what_went_before() -> None:
    watch = Watch(StabilityConfig(spike="skip", spike_window=8, spike_sigma=3))
    assert [watch.judge(loss, 1.0) for loss in (4.0, 900.0, 3.0, 5.0)] == [None] * 4  # not enough is known
    watch.losses = [4.0, 4.2, 3.8, 4.1, 3.9, 4.0]
    trouble = watch.judge(5.0, 1.0)
    assert trouble is not None and (trouble.kind, trouble.action) == ("spike", "skip")
    assert watch.losses[-1] == 4.0, "a leap does not become the measure of the next"
    assert watch.judge(4.3, 1.0) is None
    assert Watch(StabilityConfig(), {"losses": [4.0, 4.1] * 40}).judge(900.0, 1.0) is None, "by default a leap is kept"


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (4.0, math.nan), (4.0, math.inf)])
def test_what_is_not_finite_is_always_wrong(loss: float, norm: float) -> None:
    for action in ("stop", "skip", "rewind"):
        trouble = Watch(StabilityConfig(nonfinite=action)).judge(loss, norm)
        assert trouble is not None and (trouble.kind, trouble.action) == ("nonfinite", action)


def test_skips_in_a_row_and_rewinds_are_bounded() -> None:
    watch = Watch(StabilityConfig(most_in_a_row=3))
    for expected in ("skip", "skip", "stop"):
        trouble = watch.judge(math.nan, 1.0)
        assert trouble is not None and trouble.action == expected
        if expected == "skip":
            watch.note(trouble)
    assert watch.judge(4.0, 1.0) is None and watch.in_a_row == 0 and watch.skipped == 2
    rewinding = Watch(StabilityConfig(nonfinite="rewind", most_rewinds=1))
    trouble = rewinding.judge(math.nan, 1.0)
    assert trouble is not None and trouble.action == "rewind"
    rewinding.note(trouble)
    trouble = rewinding.judge(math.nan, 1.0)
    assert trouble is not None and trouble.action == "stop"


@given(st.lists(st.floats(0.1, 20), max_size=60), st.lists(st.floats(0.1, 20), min_size=1, max_size=20))
def test_a_resumed_watch_judges_as_the_uninterrupted_one(before: list[float], after: list[float]) -> None:
    cfg = StabilityConfig(spike="skip", spike_window=8, spike_sigma=2, most_in_a_row=99)
    whole = Watch(cfg)
    for loss in before:
        trouble = whole.judge(loss, 1.0)
        if trouble is not None:
            whole.note(trouble)
    resumed = Watch(cfg, whole.state())
    assert [whole.judge(loss, 1.0) for loss in after] == [resumed.judge(loss, 1.0) for loss in after]
    assert whole.state() == resumed.state()


def test_events_survive_a_torn_line(tmp_path: Path) -> None:
    assert read_events(tmp_path) == []
    first = {"event": "rewind", "to_step": 8, "rewinds": 1}
    log_event(tmp_path, first)
    with (tmp_path / EVENTS).open("a") as stream:
        stream.write('{"event": "rew\n')
    second = {"event": "rewind", "to_step": 8, "rewinds": 2}
    log_event(tmp_path, second)
    assert read_events(tmp_path) == [first, second]
    assert last_rewind(read_events(tmp_path), 8, 0) == second
    assert last_rewind(read_events(tmp_path), 8, 2) is None
    assert last_rewind(read_events(tmp_path), 4, 0) is None
