"""The order of the data when a run is resumed, on other numbers of ranks and workers, with little data, over many epochs."""

from __future__ import annotations

import itertools
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.errors import UserError
from herdbook.tokens.loader import Mixture
from herdbook.tokens.order import BLOCK, Interleaving, Schedule, derive

from .made import shards

SMALL = settings(max_examples=15, deadline=None)
PACKINGS = ["concat", "best_fit"]
DOCUMENTS = {"wiki": [7, 30, 12, 55, 3, 90, 41] * 4, "code": [5, 5, 120, 64], "tiny": [2]}
STAGES = [{"after": 2000, "sources": {"wiki": 1, "code": 3}}, {"after": 3000, "sources": {"tiny": "10%", "code": 1}}]
CURRICULUM = {"sources": {"wiki": 4, "code": 1}, "curriculum": STAGES}

Rows = npt.NDArray[np.int64]


def read(folder: Path, numbers: list[int], seed: int = 3) -> Rows:
    """What a process of its own reads."""
    return Mixture(folder, context=24, seed=seed, length=6000).sequences(numbers).tokens_BT


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("mixture", [{}, CURRICULUM], ids=["plain", "curriculum"])
def test_ranks_together_read_the_global_batch(packing: str, mixture: dict[str, Any]) -> None:
    with shards(DOCUMENTS, mixture={**mixture, "packing": packing}) as folder:
        whole = Mixture(folder, context=24, seed=3, length=6000)
        for step in range(21):
            batch = whole.batch(step, 12)
            for ranks in (1, 2, 3, 4):
                per = 12 // ranks
                first = 12 * step
                parts = [list(range(first + rank * per, first + (rank + 1) * per)) for rank in range(ranks)]
                strided = [list(range(first + rank, first + 12, ranks)) for rank in range(ranks)]
                fresh = [Mixture(folder, context=24, seed=3, length=6000) for _ in range(ranks)]  # each rank opens its own
                blocks = [mixture.sequences(numbers) for mixture, numbers in zip(fresh, parts, strict=True)]
                assert (np.concatenate([part.tokens_BT for part in blocks]) == batch.tokens_BT).all()
                assert (np.concatenate([part.targets_BT for part in blocks]) == batch.targets_BT).all()
                assert (np.concatenate([part.sources_B for part in blocks]) == batch.sources_B).all()
                for rank, numbers in enumerate(strided):
                    assert (whole.sequences(numbers).documents_BT == batch.documents_BT[rank::ranks]).all()


@pytest.mark.parametrize("packing", PACKINGS)
def test_workers_together_read_the_global_batch(packing: str) -> None:
    with shards(DOCUMENTS, mixture={**CURRICULUM, "packing": packing}) as folder:
        whole = read(folder, list(range(180)))
        shares = [list(range(worker, 180, 3)) for worker in range(3)]
        with ProcessPoolExecutor(2) as processes:
            parts = list(processes.map(read, [folder] * 3, shares))
        for worker, part in enumerate(parts):
            assert (part == whole[worker::3]).all()
        shared = Mixture(folder, context=24, seed=3, length=6000)  # one loader under several threads
        with ThreadPoolExecutor(4) as threads:
            rows = list(threads.map(lambda number: shared.sequence(number)[0], range(180)))
        assert (np.stack(rows) == whole).all()


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_resumed_run_goes_on_in_the_order_it_had(packing: str) -> None:
    """torchtitan #2864: each epoch shuffled what the epoch before had shuffled, a resumed run the data as it was at first, so
    from the second epoch on a resumed run saw another order. Here an epoch's order does not come from the one before."""
    with shards({"wiki": DOCUMENTS["wiki"]}, mixture={"packing": packing}) as folder:
        straight = Mixture(folder, context=24, seed=3)
        windows = straight._packings[0].windows
        unbroken = [straight.sequence(number)[0] for number in range(5 * windows)]
        for resumed_at in (1, windows - 1, windows, windows + 1, 2 * windows + 5, 4 * windows):
            resumed = Mixture(folder, context=24, seed=3)
            for number in range(resumed_at, 5 * windows):
                assert (resumed.sequence(number)[0] == unbroken[number]).all()
        back = [Mixture(folder, context=24, seed=3).sequence(number)[0] for number in reversed(range(5 * windows))]
        assert (np.stack(back[::-1]) == np.stack(unbroken)).all()


@pytest.mark.parametrize("packing", PACKINGS)
def test_no_epoch_is_in_the_order_of_another(packing: str) -> None:
    with shards({"wiki": [25] * 400}, mixture={"packing": packing}) as folder:
        mixture = Mixture(folder, context=25, seed=0)
        orders = [
            tuple(mixture.sequences(range(400 * epoch, 400 * epoch + 400)).tokens_BT[:, 1].tolist()) for epoch in range(6)
        ]
        assert len(set(orders)) == 6
        for earlier, later in itertools.pairwise(orders):
            assert np.mean(np.array(earlier) == np.array(later)) < 0.05
        if packing == "best_fit":
            assert len({tuple(sorted(order)) for order in orders}) == 1, "the same windows each time, each once"


TINY: list[dict[str, list[int]]] = [
    {"a": [1]}, {"a": [3]}, {"a": [1, 1, 1]}, {"a": [], "b": [2]}, {"a": [24]}, {"a": [25]}, {"a": [23]}, {"a": [47, 1]},
    {"a": [2], "b": [1], "c": [5000]},
]  # fmt: skip


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("sources", TINY, ids=str)
def test_tiny_data_never_hangs(sources: dict[str, list[int]], packing: str) -> None:
    """Fewer tokens than a window, one document, an empty source, one shard for many ranks: always whole batches."""
    with shards(sources, mixture={"packing": packing}) as folder:
        mixture = Mixture(folder, context=24, seed=0)
        batches = [mixture.batch(step, 8) for step in range(20)]
        assert all(batch.tokens_BT.shape == (8, 25) for batch in batches)
        assert all((batch.targets_BT >= 0).any(axis=1).all() for batch in batches), "every sequence teaches something"
        for ranks in (2, 8):
            parts = [mixture.sequences(range(rank, 160, ranks)) for rank in range(ranks)]
            assert sum(len(part.sources_B) for part in parts) == 160
        assert all(times > 0 for times in mixture.epochs(160_000).values())
        assert mixture.trace(159)
        assert "a" not in mixture.sources or sources["a"]


def test_no_tokens_at_all() -> None:
    with shards({"a": [], "b": []}) as folder, pytest.raises(UserError, match="no tokens to train on"):
        Mixture(folder, context=8, seed=0)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_curriculum_counts_epochs_through(packing: str) -> None:
    """No window comes again before its source is through, whatever the stages; and the shares are those of the stage."""
    documents = {"web": [10] * 600, "code": [10] * 300}
    stages = [{"after": 2000, "sources": {"web": 1, "code": 1}}, {"after": "60%", "sources": {"code": 1}}]
    with shards(documents, mixture={"sources": {"web": 4, "code": 1}, "curriculum": stages, "packing": packing}) as folder:
        mixture = Mixture(folder, context=10, seed=5, length=5000)
        batch = mixture.sequences(range(500))
        code = mixture.sources.index("code")
        shares = [(batch.sources_B[a:b] == code).mean() for a, b in ((0, 200), (200, 300), (300, 500))]
        assert shares == pytest.approx([0.2, 0.5, 1.0], abs=0.02)
        counted = np.bincount(batch.sources_B, minlength=2)
        assert dict(zip(mixture.sources, counted.tolist(), strict=True)) == mixture.counts(500)
        for number in range(0, 500, 7):
            counted = np.bincount(batch.sources_B[:number], minlength=2)
            assert mixture.counts(number) == dict(zip(mixture.sources, counted.tolist(), strict=True))
        for source in range(2):
            windows = [tuple(row) for row in batch.tokens_BT[batch.sources_B == source].tolist()]
            epoch = mixture._packings[source].windows
            assert max(Counter(windows[:epoch]).values()) == 1
        assert mixture.epochs(500)["code"] == pytest.approx((40 + 50 + 200) / 300, abs=0.01)
        row = next(row for row in mixture.rows(500) if row.name == "code")
        assert row.shares == pytest.approx((0.2, 0.5, 1.0)) and row.trained == 10 * mixture.counts(500)["code"]


def test_what_comes_before_a_milestone_does_not_change_with_it() -> None:
    plain = {"sources": {"wiki": 4, "code": 1}}
    with shards(DOCUMENTS, mixture=plain) as one, shards(DOCUMENTS, mixture={**CURRICULUM, **plain}) as other:
        first, second = (Mixture(folder, context=20, seed=3, length=6000).sequences(range(150)) for folder in (one, other))
        assert (first.tokens_BT[:100] == second.tokens_BT[:100]).all()
        assert not (first.tokens_BT[100:] == second.tokens_BT[100:]).all()


def test_epochs_are_realised() -> None:
    documents = {"web": [50] * 400, "wiki": [50] * 20}
    for packing in PACKINGS:
        with shards(documents, mixture={"sources": {"web": 1, "wiki": "3ep"}, "packing": packing}) as folder:
            mixture = Mixture(folder, context=50, seed=0, length=15_000)
            assert mixture.epochs(300) == pytest.approx({"wiki": 3.0, "web": 12_000 / 20_000}, rel=0.02)
            with pytest.raises(UserError, match="length of the run"):
                Mixture(folder, context=50, seed=0)


WEIGHTS = st.lists(st.floats(0, 10), min_size=3, max_size=3).filter(lambda weights: sum(weights) > 0.1)


@given(st.lists(st.tuples(st.integers(1, 2 * BLOCK), WEIGHTS), min_size=1, max_size=4), st.integers(0, 99), st.data())
@SMALL
def test_turns_count_up_without_gaps_through_stages(
    parts: list[tuple[int, list[float]]], seed: int, data: st.DataObject
) -> None:
    starts = np.cumsum([0, *(length for length, _ in parts[:-1])]).tolist()
    schedule = Schedule(list(zip(starts, (weights for _, weights in parts), strict=True)), seed)
    for start in [*starts, data.draw(st.integers(0, sum(length for length, _ in parts)))]:
        begin = max(0, start - 40)
        seen = schedule.counts(begin)
        for number in range(begin, start + 40):
            source, turn = schedule.turn(number)
            assert turn == seen[source]
            seen[source] += 1
        assert (schedule.counts(start + 40) == seen).all()


def test_a_schedule_of_one_stage_is_an_interleaving() -> None:
    one, other = Schedule([(0, [3.0, 0.0, 1.0])], 7), Interleaving([3, 1], derive(7, "interleaving"))
    for number in range(500):
        source, turn = other.turn(number)
        assert one.turn(number) == ((0, 2)[source], turn)
