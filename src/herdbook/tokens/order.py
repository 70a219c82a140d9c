"""Order without state: which source a sequence comes from, and which window of it, by arithmetic on the sequence's number.

`Permutation` is a Feistel network (Luby and Rackoff 1988) on the smallest even number of bits that holds the domain, walked
until it lands inside (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains", section 4): a shuffle of billions of
windows that costs nothing to set up, to store or to resume.

`Interleaving` deals sequences out to sources. A block of 65,536 sequences holds every source exactly as often as its weight
says; within the block a source's k-th turn falls somewhere in the k-th of its equal strides, so that after any number of
sequences each source is within about one of where its weight wants it. `Schedule` puts one interleaving behind another, where
a curriculum changes the shares.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

BLOCK = 1 << 16
ROUNDS = 6
_MASK = (1 << 64) - 1


def derive(*parts: object) -> int:
    """A 64-bit key from a seed and names, the same on every machine."""
    return xxhash.xxh3_64_intdigest("\x1f".join(map(str, parts)).encode())


def _mix(value: int) -> int:
    """A 64-bit hash of an integer (the finaliser of splitmix64, Steele et al. 2014)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


class Permutation:
    """A permutation of range(size) chosen by `key`; `permutation[i]` takes about 10 microseconds and no memory."""

    def __init__(self, size: int, key: int) -> None:
        assert size > 0
        self.size = size
        self._half = max(1, ((size - 1).bit_length() + 1) // 2)
        self._keys = [_mix((key + number * 0x9E3779B97F4A7C15) & _MASK) for number in range(1, ROUNDS + 1)]

    def __getitem__(self, position: int) -> int:
        if not 0 <= position < self.size:
            raise IndexError(position)
        half, mask = self._half, (1 << self._half) - 1
        while True:
            left, right = position >> half, position & mask
            for key in self._keys:
                left, right = right, left ^ (_mix(right ^ key) & mask)
            position = left << half | right
            if position < self.size:
                return position


class Interleaving:
    """Which source each sequence comes from.

    Args:
        weights: positive, one a source, on any scale; rounded to whole turns of 65,536, one turn at least.
        key: chooses where in its stride each turn falls.
    """

    def __init__(self, weights: Sequence[float], key: int) -> None:
        assert 0 < len(weights) <= BLOCK
        assert min(weights) > 0
        self.turns = _apportion(np.asarray(weights, dtype=np.float64), BLOCK)
        generator = np.random.Generator(np.random.PCG64(key))
        strides = [(np.arange(turns) + generator.random(turns)) / turns for turns in self.turns]
        source_of_turn = np.repeat(np.arange(len(weights)), self.turns)
        order = np.argsort(np.concatenate(strides), kind="stable")
        self._source: npt.NDArray[np.int16] = source_of_turn[order].astype(np.int16)
        rank = np.concatenate([np.arange(turns) for turns in self.turns])
        self._rank: npt.NDArray[np.int32] = rank[order].astype(np.int32)

    def turn(self, sequence: int) -> tuple[int, int]:
        """The source of a sequence, and how many sequences of that source come before it."""
        block, position = divmod(sequence, BLOCK)
        source = int(self._source[position])
        return source, block * int(self.turns[source]) + int(self._rank[position])

    def counts(self, sequences: int) -> npt.NDArray[np.int64]:
        """How many of the first `sequences` sequences come from each source."""
        blocks, rest = divmod(sequences, BLOCK)
        return blocks * self.turns + np.bincount(self._source[:rest], minlength=len(self.turns))


class Schedule:
    """Which source each sequence comes from when shares change on the way: one interleaving a stage, turns counted through.

    Args:
        stages: (number of the first sequence, a weight for each source, 0 for none), in order, the first from 0 on.
        seed: chooses where turns fall.
    """

    def __init__(self, stages: Sequence[tuple[int, Sequence[float]]], seed: int) -> None:
        assert stages[0][0] == 0
        assert all(before[0] < after[0] for before, after in itertools.pairwise(stages))
        self._starts = [start for start, _ in stages]
        self._sources = [[index for index, weight in enumerate(weights) if weight > 0] for _, weights in stages]
        # The key of the first stage is that of a run without a curriculum, so that one may be added to what is to come.
        keys = [derive(seed, "interleaving", *([number] if number else [])) for number in range(len(stages))]
        self._dealt = [
            Interleaving([weights[index] for index in sources], key)
            for (_, weights), sources, key in zip(stages, self._sources, keys, strict=True)
        ]
        self._before = [np.zeros(len(stages[0][1]), dtype=np.int64)]
        for number in range(1, len(stages)):
            length = self._starts[number] - self._starts[number - 1]
            self._before.append(self._before[-1] + self._counts(number - 1, length))

    def turn(self, sequence: int) -> tuple[int, int]:
        """The source of a sequence, and how many sequences of that source come before it."""
        stage = bisect.bisect_right(self._starts, sequence) - 1
        position, turn = self._dealt[stage].turn(sequence - self._starts[stage])
        source = self._sources[stage][position]
        return source, turn + int(self._before[stage][source])

    def counts(self, sequences: int) -> npt.NDArray[np.int64]:
        """How many of the first `sequences` sequences come from each source."""
        stage = max(0, bisect.bisect_left(self._starts, sequences) - 1)
        return self._before[stage] + self._counts(stage, sequences - self._starts[stage])

    def _counts(self, stage: int, sequences: int) -> npt.NDArray[np.int64]:
        counts = np.zeros_like(self._before[0])
        counts[self._sources[stage]] = self._dealt[stage].counts(sequences)
        return counts


def _apportion(weights: npt.NDArray[np.float64], seats: int) -> npt.NDArray[np.int64]:
    """Whole numbers in proportion to the weights that add up to `seats`, at least one each (largest remainders)."""
    ideal = weights / weights.max()
    ideal = ideal / ideal.sum() * seats
    whole: npt.NDArray[np.int64] = np.maximum(1, np.floor(ideal)).astype(np.int64)
    missing = seats - int(whole.sum())
    if missing >= 0:
        whole[np.argsort(whole - ideal, kind="stable")[:missing]] += 1
    while missing < 0:  # many sources too small for a turn of their own were given one: the largest pay for it
        largest = int(np.argmax(whole))
        paid = min(-missing, max(1, int(whole[largest]) // 2))
        whole[largest] -= paid
        missing += paid
    return whole
