from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.tokens import packing
from herdbook.tokens.loader import IGNORED, Mixture
from herdbook.tokens.packing import best_fit_decreasing, pack_block, plans_folder

from .made import shards

SMALL = settings(max_examples=25, deadline=None)
BEST_FIT = {"packing": "best_fit"}
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def one_by_one(lengths: list[int], capacity: int) -> list[int]:
    """The rooms that textbook best-fit-decreasing leaves."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [number for number, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda number: rooms[number])] -= length
        else:
            rooms.append(capacity - length)
    return sorted(rooms)


@given(st.integers(1, 60), st.data())
def test_all_of_a_length_at_once_is_as_one_by_one(capacity: int, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=80))
    bin_of = best_fit_decreasing(np.array(lengths, dtype=np.int64), capacity)
    filled = np.bincount(bin_of, weights=lengths).astype(int) if lengths else np.empty(0, int)
    assert sorted((capacity - filled).tolist()) == one_by_one(lengths, capacity)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(1, 40))
def test_pieces_hold_every_token_once(lengths: list[int], context: int) -> None:
    sizes = np.array(lengths, dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    piece_starts, piece_lengths, ends = pack_block(starts, sizes, context)
    covered: Counter[int] = Counter()
    for start, length in zip(piece_starts.tolist(), piece_lengths.tolist(), strict=True):
        covered.update(range(start, start + length))
    assert covered == Counter(range(sum(lengths)))
    rows = np.split(piece_lengths, ends[:-1])
    assert all(0 < row.sum() <= context for row in rows)
    pieces = Counter(np.searchsorted(starts, piece_starts, side="right").tolist())
    assert all(pieces[number] == -(-length // context) for number, length in enumerate(lengths, 1)), "only cut when too long"


def test_hardly_any_padding_on_text_like_lengths() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(6, 1.2, 50_000).astype(np.int64), 1, None)
    *_, ends = pack_block(np.cumsum(lengths) - lengths, lengths, 2048)
    assert 1 - lengths.sum() / (len(ends) * 2048) < 0.001


@given(LENGTHS, st.integers(2, 30), st.integers(0, 99))
@SMALL
def test_an_epoch_predicts_every_token_and_every_end_once(lengths: list[int], context: int, seed: int) -> None:
    """A token is known by its id; documents begin with a separator, which is also what is predicted at the end of one."""
    with shards({"wiki": lengths}, mixture=BEST_FIT) as folder:
        mixture = Mixture(folder, context=context, seed=seed)
        windows = mixture._packings[0].windows
        for epoch in range(3):
            batch = mixture.sequences(range(epoch * windows, (epoch + 1) * windows))
            targets = Counter(batch.targets_BT[batch.targets_BT != IGNORED].tolist())
            assert targets.pop(0) == len(lengths)
            ends = np.cumsum(lengths)
            wanted = {token for token in range(1, sum(lengths) + 1) if token - 1 not in (ends - lengths)}
            assert targets == Counter(wanted)
        assert mixture.epochs(3 * windows) == {"wiki": 3.0}
        assert mixture.padding["wiki"] == pytest.approx(1 - sum(lengths) / (windows * context))


@given(LENGTHS, st.integers(2, 60), st.integers(0, 9), st.integers(0, 50))
@SMALL
def test_rows_targets_documents_and_trace_agree(lengths: list[int], context: int, seed: int, index: int) -> None:
    with shards({"wiki": lengths}, mixture=BEST_FIT) as folder:
        mixture = Mixture(folder, context=context, seed=seed)
        batch = mixture.sequences([index])
        tokens, targets, documents = batch.tokens_BT[0], batch.targets_BT[0], batch.documents_BT[0]
        origin = mixture.origin(index).documents
        trained = int((targets != IGNORED).sum())
        assert trained == sum(document.tokens for document in origin)
        assert (targets[trained:] == IGNORED).all() and (tokens[trained + 1 :] == 0).all()
        ends = np.cumsum(lengths)
        counted: Counter[int] = Counter(documents[:trained].tolist())
        assert [counted[number] for number in range(len(origin))] == [document.tokens for document in origin]
        for place in range(trained):
            if tokens[place]:
                home = int(np.searchsorted(ends, tokens[place]))
                assert origin[documents[place]][:3] == (f"wiki/{home}", f"https://wiki/{home}", "MIT")
                assert targets[place] == (tokens[place] + 1 if tokens[place] != ends[home] else 0)
        if trained < context:
            assert (documents[trained:] == len(origin)).all(), "what is filled up is a document of its own"


@given(LENGTHS, st.integers(2, 30), st.integers(1, 400))
@SMALL
def test_how_tokens_are_cut_into_shards_does_not_matter(lengths: list[int], context: int, shard_tokens: int) -> None:
    sources = {"a": lengths}
    with shards(sources, mixture=BEST_FIT) as one, shards(sources, shard_tokens=shard_tokens, mixture=BEST_FIT) as other:
        batches = [Mixture(folder, context=context, seed=1).batch(1, 7) for folder in (one, other)]
        assert (batches[0].tokens_BT == batches[1].tokens_BT).all()


@given(LENGTHS, st.integers(2, 30), st.integers(1, 9))
@SMALL
def test_blocks_bound_the_memory_and_lose_nothing(lengths: list[int], context: int, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch, shards({"a": lengths}, shard_tokens=17, mixture=BEST_FIT) as folder:
        patch.setattr(packing, "BLOCK", block)
        mixture = Mixture(folder, context=context, seed=0)
        batch = mixture.sequences(range(mixture._packings[0].windows))
        assert int((batch.targets_BT != IGNORED).sum()) == sum(lengths)


def test_a_plan_is_made_once_and_a_broken_one_again() -> None:
    with shards({"a": [5, 9, 30, 2, 8]}, mixture=BEST_FIT) as folder:
        before = Mixture(folder, context=12, seed=0).batch(0, 9).tokens_BT
        [plan] = (folder / "work").glob("windows-a-12-*")
        stamp = (plan / "starts").stat().st_mtime_ns
        assert (Mixture(folder, context=12, seed=0).batch(0, 9).tokens_BT == before).all()
        assert (plan / "starts").stat().st_mtime_ns == stamp
        (plan / "starts").write_bytes(b"cut")
        assert (Mixture(folder, context=12, seed=0).batch(0, 9).tokens_BT == before).all()
        Mixture(folder, context=20, seed=0)
        assert len(list((folder / "work").glob("windows-*"))) == 2


def test_several_processes_may_plan_at_once() -> None:
    code = (
        "import sys; from pathlib import Path; from herdbook.tokens.loader import Mixture; "
        "print(Mixture(Path(sys.argv[1]), context=64, seed=0).batch(0, 8).tokens_BT.sum())"
    )
    lengths = np.random.default_rng(1).integers(1, 90, 600).tolist()
    with shards({"a": lengths}, shard_tokens=5000, mixture=BEST_FIT) as folder:
        children = [subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE) for _ in range(3)]
        answers = {child.communicate(timeout=60)[0] for child in children}
        assert len(answers) == 1 and int(answers.pop()) > 0
        assert len(list((folder / "work").glob("windows-*"))) == 1


def test_where_nothing_may_be_written_plans_go_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plans_folder(tmp_path, tmp_path / "cache") == tmp_path / "work"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert plans_folder(tmp_path, tmp_path / "cache") == tmp_path / "cache" / "windows"
