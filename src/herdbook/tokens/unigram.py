"""Training of a Unigram vocabulary: expectation maximisation, and pruning of the pieces that are missed least.

A text's probability is the product of its pieces'. Beginning with every stretch that occurs often, rounds of expectation
maximisation fit the pieces' probabilities, and between them the quarter is dropped whose loss lowers the likelihood least
(Kudo 2018, 1804.10959, section 3.2; constants are those of SentencePiece's trainer). Working on words and how often they
occur, not on text, makes time grow with the variety of a sample rather than with its size.

Every step runs on arrays over many words of one length. Sums are taken in a fixed order, so threads do not show: the same words
give the same pieces. (The trainer of the `tokenizers` library gives others each time.)

Shapes: W words of a chunk, L characters of each, K the most characters of a piece, P pieces. A stretch of characters is
`[end - 1, length - 1]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from herdbook import pedigree
from herdbook.tokens.pieces import MAX_PIECE_CHARACTERS

MOST_SEEDS = 1_000_000
MOST_WORDS = 1_000_000  # the most frequent ones; what is rarer hardly moves a probability
SHRINK = 0.75  # of the pieces this share stays in each round
SPARE = 1.1  # rounds end at this multiple of the size that is wanted; the likeliest are taken from it
FEWEST = 0.5  # a piece that is expected to occur less often is dropped
ROUNDS = 2  # of expectation maximisation between two prunings
CELLS = 1_000_000  # stretches of a chunk, so that its arrays take some tens of MB
BASE = np.uint64(0x9E3779B97F4A7C15)  # of the polynomial that stretches are hashed by; any large odd number would do

K = MAX_PIECE_CHARACTERS
POWERS = np.cumprod(np.array([1, *[BASE] * K], np.uint64), dtype=np.uint64)
Floats = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint64]
Many = npt.NDArray[np.int64]
Result = TypeVar("Result")


def train_unigram(
    words: Mapping[str, int], size: int, alphabet: Sequence[str], *, min_frequency: int = 2, threads: int | None = None
) -> list[tuple[str, float]]:
    """The pieces of a Unigram vocabulary with their log probabilities, the likeliest first.

    Args:
        words: words and how often they occur; no piece reaches across two.
        size: how many pieces; fewer come back when the words do not hold as many that are of use.
        alphabet: characters that are pieces in any case; every word is made of them.
        min_frequency: a longer piece occurs at least this often.
        threads: how many work (default: the cores this process may use); the pieces are the same for any number.
    """
    assert len(alphabet) <= size, "the alphabet has to fit"
    chosen = sorted(words, key=lambda word: (-words[word], word))[:MOST_WORDS]
    with ThreadPoolExecutor(threads or pedigree.cores()) as pool:
        trainer = _Trainer({word: words[word] for word in chosen}, alphabet, min_frequency, pool)
        while True:
            for _ in range(ROUNDS):
                trainer.maximise()
            if len(trainer.pieces) <= max(SPARE * size, len(alphabet)):
                return trainer.best(size)
            trainer.prune(max(int(SPARE * size), int(SHRINK * len(trainer.pieces))))


class _Chunk:
    """Words of one length.

    Attributes:
        codes_LW: the code points of their characters.
        values_W: a number for each word: how often it occurs, or which piece it is.
        ids_LKW: which piece each stretch is, or -1.
    """

    def __init__(self, words: list[str], values_W: npt.NDArray[Any]) -> None:
        length = len(words[0])
        codes = np.array(words, dtype=f"U{length}").view(np.uint32).reshape(len(words), length)
        self.codes_LW, self.values_W = np.ascontiguousarray(codes.T), values_W
        self.ids_LKW = np.full((length, min(K, length), len(words)), -1, np.int32)

    def hashes(self, lengths: Iterable[int]) -> Iterator[tuple[int, int, Hashes]]:
        """Where a stretch ends, how long it is, and its hash in each word."""
        before = np.zeros((len(self.codes_LW) + 1, self.codes_LW.shape[1]), np.uint64)
        for at, codes_W in enumerate(self.codes_LW):
            before[at + 1] = before[at] * BASE + codes_W
        for length in lengths:
            for end in range(length, len(before)):
                yield end, length, before[end] - before[end - length] * POWERS[length]

    def find(self, table: tuple[Hashes, Many]) -> None:
        """Note which piece each stretch is; `table` holds the hashes of pieces in order, and which pieces they are."""
        keys, pieces = table
        for end, length, hashes in self.hashes(range(1, self.ids_LKW.shape[1] + 1)):
            places = np.minimum(np.searchsorted(keys, hashes), len(keys) - 1)
            self.ids_LKW[end - 1, length - 1] = np.where(keys[places] == hashes, pieces[places], -1)

    def rename(self, names_P: npt.NDArray[np.int32]) -> None:
        """Pieces have other numbers now; `names_P` ends with -1, which the last index, -1, leads to."""
        self.ids_LKW = names_P[self.ids_LKW]

    def expect(self, scores_P: Floats) -> Floats:
        """How often each piece is expected in these words (forward and backward sums over all ways to cut them)."""
        edges_LKW = scores_P[self.ids_LKW]
        length, most, count = edges_LKW.shape
        ahead, behind = np.zeros((length + 1, count)), np.zeros((length + 1, count))
        for end in range(1, length + 1):
            few = min(most, end)
            ahead[end] = _log_sum(edges_LKW[end - 1, :few] + ahead[end - few : end][::-1])
        for start in range(length - 1, -1, -1):
            steps = np.arange(min(most, length - start))
            behind[start] = _log_sum(edges_LKW[start + steps, steps] + behind[start + 1 + steps])
        for end in range(1, length + 1):
            few = min(most, end)
            edges_LKW[end - 1, :few] += ahead[end - few : end][::-1] + (behind[end] - ahead[-1])
        shares = np.exp(edges_LKW, out=edges_LKW) * self.values_W
        return np.bincount(self.ids_LKW.ravel() + 1, shares.ravel(), len(scores_P))[1:].astype(np.float64)

    def likeliest(self, scores_P: Floats, *, cut: bool = False) -> tuple[Floats, Many, Many]:
        """The likeliest way to cut each word: its score, and for all its pieces the number of the word and the piece.

        Args:
            cut: leave out the way that does not cut the word at all.
        """
        edges_LKW = scores_P[self.ids_LKW]
        length, most, count = edges_LKW.shape
        if cut:
            edges_LKW[-1, -1] = -np.inf
        best, back = np.zeros((length + 1, count)), np.zeros((length + 1, count), np.int64)
        for end in range(1, length + 1):
            few = min(most, end)
            ways = edges_LKW[end - 1, :few] + best[end - few : end][::-1]
            back[end] = ways.argmax(0)
            best[end] = np.take_along_axis(ways, back[end][None], 0)[0]
        rows, ends = np.arange(count), np.full(count, length)
        found = []
        while len(rows):
            last = back[ends, rows]
            found.append((rows, self.ids_LKW[ends - 1, last, rows].astype(np.int64)))
            ends = ends - last - 1
            rows, ends = rows[ends > 0], ends[ends > 0]
        return best[-1], np.concatenate([rows for rows, _ in found]), np.concatenate([ids for _, ids in found])


class _Trainer:
    """The pieces of a round with their log probabilities.

    Attributes:
        pieces: their texts; the alphabet comes first and stays.
        scores_P: log probabilities, and behind them one of minus infinity that -1 leads to.
    """

    def __init__(self, words: Mapping[str, int], alphabet: Sequence[str], fewest: int, pool: ThreadPoolExecutor) -> None:
        self._pool, self._fixed = pool, len(alphabet)
        self._words = _chunks(list(words), np.array(list(words.values()), np.float64))
        seeds = _seeds(self._words, fewest)
        self.pieces = [*alphabet, *(text for text, _ in seeds)]
        chars = dict.fromkeys(alphabet, FEWEST)
        for word, count in words.items():
            for char in word:
                chars[char] += count
        self.scores_P = _log_shares(np.array([*chars.values(), *(weight for _, weight in seeds)]))
        longer = np.arange(self._fixed, len(self.pieces))
        self._own = _chunks(self.pieces[self._fixed :], longer)
        table = _table(self.pieces)
        for chunk in [*self._words, *self._own]:
            chunk.find(table)

    def _map(self, work: Callable[[_Chunk], Result], chunks: Sequence[_Chunk]) -> Iterator[Result]:
        return self._pool.map(work, chunks)

    def maximise(self) -> None:
        """One round of expectation maximisation; pieces that are hardly ever expected go."""
        counts_P = np.zeros(len(self.pieces))
        for part in self._map(lambda chunk: chunk.expect(self.scores_P), self._words):
            counts_P += part
        counts_P[: self._fixed] = np.maximum(counts_P[: self._fixed], FEWEST)
        kept = np.flatnonzero(counts_P >= FEWEST)
        self._keep(kept)
        counts = counts_P[kept]
        # Instead of the logarithm its expectation under a sparse prior (Liang et al. 2007), as in SentencePiece: the digamma
        # function takes more from what is rare.
        self.scores_P = np.append(_digamma(counts) - _digamma(counts.sum(keepdims=True)), -np.inf)

    def prune(self, size: int) -> None:
        """Keep `size` pieces at most: those without which the words would lose most of their likelihood."""
        counts_P = np.zeros(len(self.pieces))
        for part in self._map(self._used, self._words):
            counts_P += part
        losses_P = np.full(len(self.pieces), -np.inf)
        losses_P[: self._fixed] = np.inf
        for chunk, losses in zip(self._own, self._map(lambda chunk: self._missed(chunk, counts_P), self._own), strict=True):
            losses_P[chunk.values_W] = losses
        order = np.lexsort((np.arange(len(losses_P)), -losses_P))[:size]
        kept = np.sort(order[losses_P[order] > -np.inf])
        self.scores_P = np.append(self.scores_P[kept], -np.inf)
        self._keep(kept)

    def _used(self, chunk: _Chunk) -> Floats:
        """How often each piece is in the likeliest cuts."""
        _, rows, ids = chunk.likeliest(self.scores_P)
        return np.bincount(ids, chunk.values_W[rows], len(self.pieces)).astype(np.float64)

    def _missed(self, chunk: _Chunk, counts_P: Floats) -> Floats:
        """What the likelihood of all words loses without each piece of a chunk; minus infinity where nothing."""
        own = chunk.values_W
        instead, rows, ids = chunk.likeliest(self.scores_P, cut=True)
        count, total = counts_P[own], counts_P.sum()
        parts = np.bincount(rows, minlength=len(own))
        with np.errstate(divide="ignore", invalid="ignore"):
            now = np.log(count) - np.log(total)
            then = np.bincount(rows, np.log(counts_P[ids] + count[rows]), len(own)) - parts * np.log(
                total + count * (parts - 1)
            )
            losses = count * (now - then)
        return np.where((count > 0) & (self.scores_P[own] > instead), losses, -np.inf)

    def _keep(self, kept: Many) -> None:
        if len(kept) == len(self.pieces):
            return
        names_P = np.full(len(self.pieces) + 1, -1, np.int32)
        names_P[kept] = np.arange(len(kept))
        self.pieces = [self.pieces[index] for index in kept.tolist()]
        for chunk in self._own:
            stay = names_P[chunk.values_W] >= 0
            chunk.codes_LW, chunk.ids_LKW = chunk.codes_LW[:, stay], chunk.ids_LKW[..., stay]
            chunk.values_W = names_P[chunk.values_W[stay]]
        self._own = [chunk for chunk in self._own if len(chunk.values_W)]
        for _ in self._map(lambda chunk: chunk.rename(names_P), [*self._words, *self._own]):
            pass

    def best(self, size: int) -> list[tuple[str, float]]:
        """The alphabet and the likeliest other pieces, with scores rounded so that the last digits of a sum do not show."""
        order = np.lexsort((np.arange(len(self.pieces)), -self.scores_P[:-1]))
        longer = order[order >= self._fixed][: size - self._fixed]
        rows = [
            (self.pieces[index], round(float(self.scores_P[index]), 6)) for index in [*range(self._fixed), *longer.tolist()]
        ]
        return sorted(rows, key=lambda row: (-row[1], row[0]))


def _chunks(words: list[str], values: npt.NDArray[Any]) -> list[_Chunk]:
    """Words of the same length together, in parts that fit a cache or two."""
    by_length: dict[int, list[int]] = {}
    for index, word in enumerate(words):
        by_length.setdefault(len(word), []).append(index)
    chunks = []
    for length, indices in sorted(by_length.items()):
        step = max(1, CELLS // (length * min(length, K)))
        for start in range(0, len(indices), step):
            part = indices[start : start + step]
            chunks.append(_Chunk([words[index] for index in part], values[part]))
    return chunks


def _seeds(chunks: Sequence[_Chunk], fewest: int) -> list[tuple[str, float]]:
    """Stretches of two characters or more that occur often, with how many characters of the words they cover."""
    counts, spots, places = [], [], list[tuple[_Chunk, int, int]]()
    for length in range(2, K + 1):
        here = [(chunk, end, hashes) for chunk in chunks for end, _, hashes in chunk.hashes([length])]
        if not here:
            break
        starts = np.cumsum([0, *(len(hashes) for _, _, hashes in here)])
        weights = np.concatenate([chunk.values_W for chunk, _, _ in here])
        _, first, which = np.unique(np.concatenate([hashes for *_, hashes in here]), return_index=True, return_inverse=True)
        found = np.bincount(which, weights)
        often = np.flatnonzero(found >= fewest)
        where = np.searchsorted(starts, first[often], side="right") - 1
        counts.append(found[often] * length)
        spots.append(np.stack([where + len(places), first[often] - starts[where]]))
        places += [(chunk, end, length) for chunk, end, _ in here]
    if not places:
        return []
    covered, (where, rows) = np.concatenate(counts), np.concatenate(spots, axis=1)
    seeds = []
    for index in np.argsort(-covered, kind="stable")[:MOST_SEEDS].tolist():
        chunk, end, length = places[where[index]]
        codes = chunk.codes_LW[end - length : end, rows[index]]
        seeds.append((codes.tobytes().decode("utf-32-le"), float(covered[index])))
    return seeds


def _table(pieces: Sequence[str]) -> tuple[Hashes, Many]:
    """The hashes of pieces in order, and which pieces they are."""
    hashes = np.zeros(len(pieces), np.uint64)
    for chunk in _chunks(list(pieces), np.arange(len(pieces))):
        hashes[chunk.values_W] = next(chunk.hashes([len(chunk.codes_LW)]))[2]
    order = np.argsort(hashes, kind="stable")
    return hashes[order], order


def _log_sum(values: Floats) -> Floats:
    """log(sum(exp(values))) over the first axis."""
    top = values.max(0)
    total: Floats = top + np.log(np.exp(values - top).sum(0))
    return total


def _log_shares(weights: Floats) -> Floats:
    return np.append(np.log(weights / weights.sum()), -np.inf)


def _digamma(values: Floats) -> Floats:
    """The derivative of log(gamma), by its asymptotic series above 6 and its recurrence below (Bernardo 1976, AS 103)."""
    values, result = values.copy(), np.zeros_like(values)
    while (small := values < 6).any():
        result[small] -= 1 / values[small]
        values[small] += 1
    inverse = 1 / values**2
    series: Floats = result + np.log(values) - 0.5 / values - inverse * (1 / 12 - inverse * (1 / 120 - inverse / 252))
    return series
