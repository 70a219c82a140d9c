from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.tokens.order import BLOCK, Interleaving, Permutation, derive

WEIGHTS = st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=12)


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
@settings(max_examples=40, deadline=None)
def test_a_permutation_meets_everything_once(size: int, key: int) -> None:
    order = Permutation(size, key)
    assert sorted(order[position] for position in range(size)) == list(range(size))


def test_a_permutation_of_billions_needs_no_memory() -> None:
    order = Permutation(10**12 + 7, 5)
    found = {order[position] for position in range(1000)}
    assert len(found) == 1000
    assert all(0 <= value < 10**12 + 7 for value in found)
    assert 0.4e12 < np.mean(sorted(found)) < 0.6e12


def test_permutations_look_shuffled() -> None:
    size = 4096
    for key in range(5):
        order = np.array([Permutation(size, key)[position] for position in range(size)])
        assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.06
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.06


def test_every_order_of_three_occurs() -> None:
    orders = {tuple(Permutation(3, key)[position] for position in range(3)) for key in range(200)}
    assert len(orders) == 6


def test_outside_a_permutation() -> None:
    for position in (-1, 4):
        with pytest.raises(IndexError):
            Permutation(4, 0)[position]


@given(WEIGHTS, st.integers(0, 2**63))
@settings(max_examples=40, deadline=None)
def test_shares_hold_at_every_prefix(weights: list[float], key: int) -> None:
    mixture = Interleaving(weights, key)
    assert mixture.turns.sum() == BLOCK
    assert mixture.turns.min() >= 1
    shares = mixture.turns / BLOCK
    sources = np.array([mixture.turn(number)[0] for number in range(3000)])
    for source, share in enumerate(shares):
        off = np.abs(np.cumsum(sources == source) - share * np.arange(1, len(sources) + 1))
        assert off.max() <= 1 + share * len(weights)


@given(WEIGHTS)
def test_the_turns_of_a_block_are_the_weights(weights: list[float]) -> None:
    ideal = np.array(weights) / sum(weights) * BLOCK
    turns = Interleaving(weights, 0).turns
    small = ideal < 1  # these are given one turn, the others pay
    assert np.all(np.abs(turns - ideal)[~small] <= 1 + small.sum())


def test_more_sources_than_turns_to_spare() -> None:
    turns = Interleaving([1e9, *[1e-9] * 60_000], 0).turns
    assert turns.sum() == BLOCK
    assert turns.min() == 1


@given(WEIGHTS, st.integers(0, 5 * BLOCK))
@settings(max_examples=30, deadline=None)
def test_turns_count_up_without_gaps(weights: list[float], start: int) -> None:
    mixture = Interleaving(weights, 1)
    seen = mixture.counts(start)
    for number in range(start, start + 300):
        source, turn = mixture.turn(number)
        assert turn == seen[source]
        seen[source] += 1
    assert (mixture.counts(start + 300) == seen).all()


def test_the_order_is_part_of_the_format() -> None:
    """A run that was begun with another version of herdbook has to resume in the same order."""
    assert derive(0, "wiki", 3, "order") == 5057869656149945257
    assert derive("a", "bc") != derive("ab", "c")
    assert [Permutation(10, 42)[position] for position in range(10)] == [2, 7, 4, 0, 8, 3, 6, 9, 5, 1]
    assert [Interleaving([3, 1], 7).turn(number)[0] for number in range(8)] == [0, 1, 0, 0, 0, 1, 0, 0]
