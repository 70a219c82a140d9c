from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.corpus.config import MinHashConfig
from herdbook.corpus.dedup import band_keys, choose, clusters, exact_duplicates, exact_key
from herdbook.corpus.minhash import normalize, signature

CFG = MinHashConfig()


def pair(jaccard: float, shingles: int, seed: int) -> tuple[list[str], list[str]]:
    """Two word lists (with 1-gram shingles) of a known similarity."""
    pick = random.Random(seed)
    common = round(2 * shingles * jaccard / (1 + jaccard))
    words = [f"w{pick.getrandbits(60):x}" for _ in range(2 * shingles - common)]
    return words[:shingles], words[shingles - common :]


@pytest.mark.parametrize("jaccard", [0.1, 0.5, 0.8, 0.95])
def test_signatures_estimate_jaccard(jaccard: float) -> None:
    cfg = MinHashConfig(ngram=1, bands=64, rows=16)
    errors = []
    for seed in range(20):
        left, right = pair(jaccard, 400, seed)
        true = len(set(left) & set(right)) / len(set(left) | set(right))
        ours, theirs = signature(left, cfg), signature(right, cfg)
        assert ours is not None and theirs is not None
        errors.append(float((ours == theirs).mean()) - true)
    spread = (jaccard * (1 - jaccard) / cfg.num_perm) ** 0.5
    assert abs(np.mean(errors)) < 4 * spread / len(errors) ** 0.5 + 0.003
    assert np.sqrt(np.mean(np.square(errors))) < 1.6 * spread + 0.003


@given(st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), min_size=1, max_size=30))
def test_equal_words_equal_keys(words: list[str]) -> None:
    upper = normalize("  ".join(words).upper() + " !")
    assert upper == words
    assert exact_key("x", upper) == exact_key("y", words)
    assert (band_keys(signature(words, CFG), CFG) == band_keys(signature(upper, CFG), CFG)).all()


def test_texts_without_words() -> None:
    assert signature([], CFG) is None
    assert exact_key("+++", []) != exact_key("---", [])
    none = band_keys(None, CFG)
    assert clusters(np.stack([none, none])).tolist() == [0, 1]
    assert clusters(np.zeros((0, 14), np.uint64)).tolist() == []


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=25), st.randoms())
def test_clusters_do_not_depend_on_order(rows: list[list[int]], pick: random.Random) -> None:
    keys = np.array(rows, np.uint64)
    order = list(range(len(rows)))
    pick.shuffle(order)
    one, other = clusters(keys), clusters(keys[order])
    groups = {frozenset(np.flatnonzero(one == root).tolist()) for root in set(one.tolist())}
    shuffled = {frozenset(order[place] for place in np.flatnonzero(other == root)) for root in set(other.tolist())}
    assert groups == shuffled
    for root in set(one.tolist()):
        assert root == np.flatnonzero(one == root).min()
    for left in range(len(rows)):
        for right in range(left):
            if ((keys[left] == keys[right]) & (keys[left] != 0)).any():
                assert one[left] == one[right]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), min_size=1, max_size=20))
def test_one_of_each_cluster_stays(documents: list[tuple[int, int]]) -> None:
    names = [name for name, _ in documents]
    roots = np.array([names.index(name) for name in names], np.int64)
    sizes = np.array([size for _, size in documents], np.int64)
    assert choose(roots, sizes, "first").tolist() == roots.tolist()
    longest = choose(roots, sizes, "longest")
    for place, leader in enumerate(longest.tolist()):
        mates = [other for other in range(len(names)) if names[other] == names[place]]
        assert leader == max(mates, key=lambda other: (sizes[other], -other))


def test_exact_duplicates_point_to_the_first() -> None:
    assert exact_duplicates([b"a", b"b", b"a", b"b", b"c"]).tolist() == [0, 1, 0, 1, 4]


def test_near_duplicates_are_found_and_others_are_not() -> None:
    pick = random.Random(0)
    text = [f"w{pick.randrange(3000)}" for _ in range(600)]
    near = [word if pick.random() > 0.01 else "changed" for word in text]
    other = [f"w{pick.randrange(3000)}" for _ in range(600)]
    keys = np.stack([band_keys(signature(words, CFG), CFG) for words in (text, near, other)])
    assert clusters(keys).tolist() == [0, 0, 2]
