from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.documents import read_documents
from herdbook.errors import UserError
from herdbook.files import write_json
from herdbook.tokens.loader import Mixture
from herdbook.tokens.tokenizer import load_encoder

from .made import Sources, shards

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)
SOURCES = st.dictionaries(st.sampled_from(["wiki", "code", "a/b"]), LENGTHS, min_size=1)
SMALL = settings(max_examples=15, deadline=None)


@given(SOURCES, st.integers(1, 30), st.integers(0, 99), st.data())
@SMALL
def test_batches_do_not_hang_on_how_they_are_asked_for(sources: Sources, context: int, seed: int, data: st.DataObject) -> None:
    with shards(sources) as folder:
        mixture, later = (Mixture(folder, context=context, seed=seed) for _ in range(2))
        steps = data.draw(st.permutations(range(6)))
        batches = {step: mixture.batch(step, 4) for step in steps}
        for step in range(6):
            for row in data.draw(st.permutations(range(4))):  # one by one, from a loader that has seen nothing else
                tokens_T1, documents_T1, source = later.sequence(4 * step + row)
                assert (tokens_T1 == batches[step].tokens_BT[row]).all()
                assert (documents_T1 == batches[step].documents_BT[row]).all()
                assert source == batches[step].sources_B[row]
        whole = later.sequences(range(24))
        ranks = [later.sequences(range(rank, 24, 3)) for rank in range(3)]
        for rank, part in enumerate(ranks):
            assert (part.tokens_BT == whole.tokens_BT[rank::3]).all()
        assert (np.concatenate([batches[step].tokens_BT for step in range(6)]) == whole.tokens_BT).all()


@given(LENGTHS, st.integers(1, 30), st.integers(0, 99))
@SMALL
def test_an_epoch_predicts_every_token_once(lengths: list[int], context: int, seed: int) -> None:
    total = sum(lengths)
    with shards({"wiki": lengths}) as folder:
        mixture = Mixture(folder, context=context, seed=seed)
        windows = total // context
        orders = []
        for epoch in range(3 if windows else 0):
            batch = mixture.sequences(range(epoch * windows, (epoch + 1) * windows))
            # A token is known by its id; a separator by the token in front of it, or behind it where separators follow.
            targets = Counter(batch.tokens_BT[:, 1:].flatten().tolist())
            separators = targets.pop(0, 0)
            assert max(targets.values(), default=1) == 1
            assert separators <= len(lengths)
            assert sum(targets.values()) + separators == windows * context > total - context
            orders.append(batch.tokens_BT[:, 0].tolist())
        if windows > 8:
            assert orders[0] != orders[1] != orders[2]


def test_windows_overlap_by_one() -> None:
    with shards({"wiki": [1000]}) as folder:
        mixture = Mixture(folder, context=10, seed=3)
        batch = mixture.sequences(range(100))
        follows = dict(zip(batch.tokens_BT[:, 0].tolist(), batch.tokens_BT[:, -1].tolist(), strict=True))
        assert set(follows) == set(follows.values())


@given(LENGTHS, st.integers(1, 120), st.integers(0, 9), st.integers(0, 50))
@SMALL
def test_documents_and_trace_agree(lengths: list[int], context: int, seed: int, index: int) -> None:
    with shards({"wiki": lengths}) as folder:
        mixture = Mixture(folder, context=context, seed=seed)
        tokens_T1, documents_T1, _ = mixture.sequence(index)
        traced = mixture.trace(index)
        assert documents_T1[0] == 0
        assert len(traced) == documents_T1[-1] + 1
        ends = np.cumsum(lengths)
        for token, document in zip(tokens_T1.tolist(), documents_T1.tolist(), strict=True):
            if token:
                home = int(np.searchsorted(ends, token))
                assert traced[document] == (f"wiki/{home}", f"https://wiki/{home}")
        assert np.diff(documents_T1).tolist() == (tokens_T1[1:] == 0).tolist()


@given(LENGTHS, st.integers(1, 30), st.integers(1, 400), st.integers(0, 9))
@SMALL
def test_shard_size_does_not_change_the_order(lengths: list[int], context: int, shard_tokens: int, seed: int) -> None:
    with shards({"wiki": lengths}) as one, shards({"wiki": lengths}, shard_tokens=shard_tokens) as other:
        batches = [Mixture(folder, context=context, seed=seed).batch(2, 5) for folder in (one, other)]
        assert (batches[0].tokens_BT == batches[1].tokens_BT).all()


def test_a_source_shorter_than_a_window_goes_round() -> None:
    with shards({"tiny": [1, 3], "wiki": [5000]}) as folder:
        mixture = Mixture(folder, context=64, seed=0, weights={"tiny": 1, "wiki": 1})
        batch = mixture.batch(0, 32)
        tiny = batch.tokens_BT[batch.sources_B == mixture.sources.index("tiny")]
        assert len(tiny) == 16
        assert set(tiny.flatten().tolist()) == {0, 3, 4}
        assert mixture.epochs(32)["tiny"] == 16 * 64 / 4
    with shards({"one": [1]}) as folder:
        assert Mixture(folder, context=8, seed=0).batch(3, 2).tokens_BT.sum() == 0


@given(st.dictionaries(st.sampled_from("abcd"), st.floats(0.01, 10), min_size=1), st.integers(0, 9))
@SMALL
def test_realised_shares_match_the_weights(weights: dict[str, float], seed: int) -> None:
    with shards({name: [200] for name in "abcd"}) as folder:
        mixture = Mixture(folder, context=10, seed=seed, weights=weights)
        assert mixture.weights == pytest.approx({name: weights[name] / sum(weights.values()) for name in sorted(weights)})
        batch = mixture.sequences(range(500))
        for length in (7, 50, 500):
            counted = np.bincount(batch.sources_B[:length], minlength=len(mixture.sources))
            assert dict(zip(mixture.sources, counted.tolist(), strict=True)) == mixture.counts(length)
            for name, count in zip(mixture.sources, counted, strict=True):
                assert abs(count - length * mixture.weights[name]) <= 1.1 + len(weights) * mixture.weights[name]
        assert mixture.epochs(500) == pytest.approx({name: mixture.counts(500)[name] * 10 / 200 for name in mixture.sources})


def test_weights_default_to_tokens_or_to_what_was_configured() -> None:
    with shards({"a": [300], "b": [100], "empty": []}) as folder:
        assert Mixture(folder, context=10, seed=0).weights == {"a": 0.75, "b": 0.25}
        assert Mixture(folder, context=10, seed=0, weights={"b": 2}).sources == ["b"]
        index = json.loads((folder / "index.json").read_text())
        index["mixture"] = {"sources": {"a": 1.0, "b": 4.0}}
        write_json(folder / "index.json", index)
        mixture = Mixture(folder, context=10, seed=0)
        assert mixture.weights == {"a": 0.2, "b": 0.8}
        assert mixture.tokens == 400


def test_another_source_does_not_change_the_order_within_one() -> None:
    with shards({"a": [500]}) as alone, shards({"a": [500], "b": [500]}) as both:
        first = Mixture(alone, context=10, seed=1).sequences(range(50)).tokens_BT
        mixed = Mixture(both, context=10, seed=1).sequences(range(100))
        assert (mixed.tokens_BT[mixed.sources_B == 0][:45] == first[:45]).all()


def test_seeds_and_epochs_differ() -> None:
    with shards({"a": [4000]}) as folder:
        starts = [Mixture(folder, context=10, seed=seed).sequences(range(400)).tokens_BT[:, 0].tolist() for seed in (0, 1)]
        again = Mixture(folder, context=10, seed=0).sequences(range(400, 800)).tokens_BT[:, 0].tolist()
        assert starts[0] != starts[1]
        assert starts[0] != again
        same = np.mean(np.array(starts[0]) == np.array(again))
        assert same < 0.05


def test_shapes_and_types() -> None:
    with shards({"a": [500]}) as folder:
        batch = Mixture(folder, context=10, seed=0).batch(0, 3)
    assert (batch.tokens_BT.shape, batch.tokens_BT.dtype) == ((3, 11), np.int64)
    assert (batch.documents_BT.shape, batch.documents_BT.dtype) == ((3, 11), np.int32)
    assert (batch.sources_B.shape, batch.sources_B.dtype) == ((3,), np.int16)


def test_a_sequence_leads_back_to_its_documents(corpus: Path, tokenizer: Path, tokens: Path) -> None:
    mixture = Mixture(tokens, context=64, seed=0, tokenizer=tokenizer, verify=True)
    encoder = load_encoder(tokenizer)
    texts = {row["id"]: row["text"] for row in read_documents(corpus)}
    for index in range(40):
        tokens_T1, documents_T1, source = mixture.sequence(index)
        for number, (name, url) in enumerate(mixture.trace(index)):
            part = encoder.decode(tokens_T1[(documents_T1 == number) & (tokens_T1 != 0)].tolist())
            assert part.strip("\ufffd") in texts[name]
            assert url == f"https://example.org/{name}"
            assert name.startswith(mixture.sources[source])


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        change(index)
        (folder / "index.json").write_text(json.dumps(index))

    return apply


def cut(folder: Path) -> None:
    path = folder / "code-00000.bin"
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, r"code-00000\.bin: the shard is cut short"),
        (lambda folder: (folder / "code-00000.bin").unlink(), "a shard is missing"),
        (lambda folder: (folder / "index.json").unlink(), "no index of token shards"),
        (lambda folder: (folder / "index.json").write_text("{"), "not valid JSON"),
        (edit(lambda index: index.update(version=1)), "not of version 2"),
        (edit(lambda index: index.update(dtype="uint32")), "cut short"),
        (edit(lambda index: index.update(dtype="float32")), "not 'float32'"),
        (edit(lambda index: index.pop("separator_id")), "lacks separator_id"),
        (edit(lambda index: index.update(mixture={"sources": {"code": "a lot"}})), "'a lot' is not a weight"),
        (edit(lambda index: index["sources"]["code"]["shards"][0].pop("listing_sha256")), "not describe the source 'code'"),
        (edit(lambda index: index["sources"]["code"].pop("shards")), "does not describe the source 'code'"),
        (edit(lambda index: index["sources"]["code"]["shards"].pop()), "do not add up"),
        (edit(lambda index: index["sources"]["code"]["shards"][0].update(file="../../etc/passwd")), "leads out of its folder"),
        (edit(lambda index: index.update(sources={})), "no tokens to train on"),
    ],
)
def test_damaged_folders(tokens: Path, tmp_path: Path, damage: Callable[[Path], None], says: str) -> None:
    shutil.copytree(tokens, tmp_path / "tokens")
    damage(tmp_path / "tokens")
    with pytest.raises(UserError, match=says):
        Mixture(tmp_path / "tokens", context=32, seed=0)


def test_other_bytes_are_found_by_verify(tokens: Path, tmp_path: Path) -> None:
    shutil.copytree(tokens, tmp_path / "tokens")
    path = tmp_path / "tokens" / "code-00000.bin"
    path.write_bytes(path.read_bytes()[::-1])
    Mixture(tmp_path / "tokens", context=32, seed=0)
    with pytest.raises(UserError, match="not the one its index describes"):
        Mixture(tmp_path / "tokens", context=32, seed=0, verify=True)


def test_ids_beyond_the_vocabulary() -> None:
    with shards({"a": [500]}, vocab_size=100) as folder, pytest.raises(UserError, match="the vocabulary has 100"):
        Mixture(folder, context=400, seed=0).batch(0, 2)


def test_another_tokenizer(tokens: Path, tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text((tokenizer / "tokenizer.json").read_text() + " ")
    with pytest.raises(UserError, match="made with another tokenizer"):
        Mixture(tokens, context=32, seed=0, tokenizer=tmp_path)
    with pytest.raises(UserError, match="no tokenizer here"):
        Mixture(tokens, context=32, seed=0, tokenizer=tmp_path / "nowhere")


def test_wrong_weights(tokens: Path) -> None:
    with pytest.raises(UserError, match="did you mean tales"):
        Mixture(tokens, context=32, seed=0, weights={"tale": 1})
    for wrong in (-1, 0, float("inf"), "much", "-2ep", "200%"):
        with pytest.raises(UserError, match="weights: the mixture is wrong"):
            Mixture(tokens, context=32, seed=0, weights={"tales": wrong})
    with pytest.raises(UserError, match="names no source"):
        Mixture(tokens, context=32, seed=0, weights={})


def test_wrong_calls(tokens: Path) -> None:
    mixture = Mixture(tokens, context=32, seed=0)
    for call in (lambda: mixture.batch(-1, 4), lambda: mixture.batch(0, 0), lambda: mixture.sequence(-1)):
        with pytest.raises(ValueError):
            call()
    with pytest.raises(ValueError):
        Mixture(tokens, context=0, seed=0)
