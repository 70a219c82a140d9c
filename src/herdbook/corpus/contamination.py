"""Copies of evaluation sets in a corpus: finding them, cutting them out, and saying which items were met.

Two published ways to say what a match is, on the words of a text (`\\w+`, in lower case):

- GPT-3 (Brown et al. 2020, appendix C): an n-gram of words, n the 5th percentile of the lengths of an evaluation set's items
  within 8 to 13. Matches are cut out with 200 characters on each side, pieces under 200 characters go, documents that fall into
  more than 10 pieces go, and n-grams found in more than 10 documents are common phrases and ignored.
- LLaMA-2 (Touvron et al. 2023, appendix A.6): more than 10 tokens that begin with 10 equal ones and end with an equal one, up
  to 4 between differing. An item's tokens in any match make its contamination: under 20 % it is clean, from 80 % on dirty.

The n-grams of all items are one array of sorted 64-bit hashes, in which a document's are looked up by binary search. Among a
million n-grams of items, one n-gram of a document in 2^44 matches by chance.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from herdbook.corpus.config_dedup import ContaminationConfig
from herdbook.corpus.filters import Removal
from herdbook.corpus.words import Array, ngram_hashes, word_hashes

Places = npt.NDArray[np.int64]

_WORD = re.compile(r"\w+")


class Item(NamedTuple):
    """One item of an evaluation set; n-grams do not cross from one of its texts into the next."""

    task: str
    id: str
    texts: list[str]


class Hit(NamedTuple):
    """Words `start` to `start + length` of a document, found in an item from the word `item_start` of its texts on."""

    task: str
    item: str
    start: int
    length: int
    item_start: int


class Verdict(NamedTuple):
    """What becomes of a document: the pieces that stay (the text itself if nothing is cut), and why it goes, if so."""

    pieces: list[str]
    removal: Removal | None


def words_of(text: str) -> list[str]:
    """The words of a text as they are compared: without punctuation, in lower case."""
    return [word.lower() for word in _WORD.findall(text)]


class EvaluationIndex:
    """The n-grams of evaluation sets, and what was met of each item so far.

    Documents may be looked up in any number of processes; `merge` adds what another one met.
    """

    def __init__(self, items: Iterable[Item], cfg: ContaminationConfig) -> None:
        self.cfg = cfg
        self.items: list[Item] = []
        texts: list[tuple[int, Array]] = []
        for number, item in enumerate(items):
            self.items.append(item)
            texts += [(number, word_hashes(words_of(text))) for text in item.texts]
        self._words = np.concatenate([words for _, words in texts]) if texts else np.zeros(0, np.uint64)
        self._ends = np.cumsum([len(words) for _, words in texts], dtype=np.int64)  # of texts among all words
        self._item_of = np.array([number for number, _ in texts], np.int64)
        lengths = np.zeros(len(self.items), np.int64)
        np.add.at(lengths, self._item_of, [len(words) for _, words in texts])
        self.lengths = lengths
        self._starts = np.cumsum(lengths) - lengths  # of items among all words
        self.sizes = self._ngram_sizes()
        self._grams = [self._sorted_grams(size) for size in sorted(set(self.sizes.values()))]
        self._met = np.zeros(len(self._words), bool)
        self._documents = [np.zeros(len(grams.hashes), np.int64) for grams in self._grams]
        self._common = [np.zeros(len(grams.hashes), bool) for grams in self._grams]

    def _ngram_sizes(self) -> dict[str, int]:
        """The n of each evaluation set."""
        lengths: dict[str, list[int]] = {}
        for item, length in zip(self.items, self.lengths.tolist(), strict=True):
            lengths.setdefault(item.task, []).append(length)
        if self.cfg.method == "llama2":
            return dict.fromkeys(lengths, self.cfg.min_match)
        low, high = self.cfg.min_ngram, self.cfg.max_ngram
        return {task: int(np.clip(np.percentile(all_, 5), low, high)) for task, all_ in lengths.items()}

    def _sorted_grams(self, size: int) -> _Grams:
        hashes, places = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        for end, begin, item in zip(self._ends, np.append(0, self._ends[:-1]), self._item_of, strict=True):
            if end - begin >= size and self.sizes[self.items[item].task] == size:
                hashes.append(ngram_hashes(self._words[begin:end], size))
                places.append(np.arange(begin, end - size + 1))
        found, where = np.concatenate(hashes), np.concatenate(places)
        order = np.argsort(found, kind="stable")
        return _Grams(size, found[order], where[order])

    def count(self, words: list[str]) -> None:
        """Note which n-grams a document has; after all documents `ignore_common` drops those of too many."""
        tokens = word_hashes(words)
        for grams, documents in zip(self._grams, self._documents, strict=True):
            if len(tokens) >= grams.size:
                _, index = _lookup(np.unique(ngram_hashes(tokens, grams.size)), grams)
                documents[index] += 1

    def ignore_common(self) -> None:
        """Leave out n-grams that were counted in more documents than `max_documents`."""
        if self.cfg.max_documents is not None:
            self._common = [documents > self.cfg.max_documents for documents in self._documents]

    def find_hits(self, words: list[str]) -> list[Hit]:
        """Where a document (its `words_of`) has words of an item, in order of place; marks those words as met."""
        tokens = word_hashes(words)
        hits: set[Hit] = set()
        for grams, common in zip(self._grams, self._common, strict=True):
            for start, place, count in _matches(tokens, grams, common):
                length = count + grams.size - 1
                if self.cfg.method == "llama2":
                    length = self._extended(tokens, start + count - 1, place + count - 1) + count - 1
                    if length <= self.cfg.min_match:
                        continue
                hits.add(self._hit(start, place, length))
        return sorted(hits, key=lambda hit: (hit.start, hit.length, hit.task, hit.item, hit.item_start))

    def _extended(self, tokens: Array, start: int, place: int) -> int:
        """How long the match from the last seed of a chain on is, with up to `skips` differing tokens inside."""
        end = int(self._ends[np.searchsorted(self._ends, place, "right")])
        room = min(len(tokens) - start, end - place)
        same = tokens[start : start + room] == self._words[place : place + room]
        within = np.cumsum(~same) <= self.cfg.skips
        return int(np.flatnonzero(same & within)[-1]) + 1

    def _hit(self, start: int, place: int, length: int) -> Hit:
        self._met[place : place + length] = True
        number = int(self._item_of[np.searchsorted(self._ends, place, "right")])
        item = self.items[number]
        return Hit(item.task, item.id, start, length, place - int(self._starts[number]))

    def merge(self, other: EvaluationIndex) -> None:
        """Add what another index over the same items met and counted."""
        self._met |= other._met
        for ours, theirs in zip(self._documents, other._documents, strict=True):
            ours += theirs

    def report(self) -> dict[str, dict[str, Any]]:
        """What was met of each evaluation set.

        `ngram` is its n, `items` how many it has, `too_short` how many of them have no n-gram, `hit` the ids of those met. By
        the share of words met, `clean`, `not_clean`, `not_dirty` and `dirty` count items as LLaMA-2's table does.
        """
        sums = np.concatenate(([0], np.cumsum(self._met)))
        met = sums[self._starts + self.lengths] - sums[self._starts]
        shares = met / np.maximum(1, self.lengths)
        tasks: dict[str, dict[str, Any]] = {}
        for task, size in self.sizes.items():
            mine = np.array([item.task == task for item in self.items])
            tasks[task] = {
                "ngram": size,
                "items": int(mine.sum()),
                "too_short": int((mine & (self.lengths < size)).sum()),
                "hit": [self.items[number].id for number in np.flatnonzero(mine & (met > 0)).tolist()],
                "clean": int((shares[mine] < self.cfg.clean_share).sum()),
                "not_clean": int((shares[mine] >= self.cfg.clean_share).sum()),
                "not_dirty": int((shares[mine] < self.cfg.dirty_share).sum()),
                "dirty": int((shares[mine] >= self.cfg.dirty_share).sum()),
            }
        return tasks


class _Grams(NamedTuple):
    """The n-grams of items, sorted by hash, and where each stands among the words of all items."""

    size: int
    hashes: Array
    places: Places


def _lookup(sought: Array, grams: _Grams) -> tuple[Places, Places]:
    """All pairs of a place in `sought` and a place in `grams` with the same hash, ordered by the former."""
    low = np.searchsorted(grams.hashes, sought)
    counts = np.searchsorted(grams.hashes, sought, "right") - low
    present = np.flatnonzero(counts)
    low, counts = low[present], counts[present]
    index = np.repeat(low - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
    return np.repeat(present, counts), index


def _matches(tokens: Array, grams: _Grams, common: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int, int]]:
    """Runs of matching n-grams, which follow each other on both sides: (position, place among items' words, how many)."""
    if len(tokens) < grams.size:
        return
    positions, index = _lookup(ngram_hashes(tokens, grams.size), grams)
    rare = ~common[index]
    positions, places = positions[rare], grams.places[index[rare]]
    order = np.lexsort((positions, places - positions))
    positions, places = positions[order], places[order]
    goes_on = (np.diff(positions) == 1) & (np.diff(places) == 1)
    begins = np.flatnonzero(np.concatenate((np.ones(min(1, len(positions)), bool), ~goes_on)))
    lengths = np.diff(np.append(begins, len(positions)))
    yield from zip(positions[begins].tolist(), places[begins].tolist(), lengths.tolist(), strict=True)


def hit_texts(text: str, hits: Iterable[Hit]) -> Iterator[str]:
    """What stands in a text at each of its hits."""
    words = [match.span() for match in _WORD.finditer(text)]
    for hit in hits:
        yield text[words[hit.start][0] : words[hit.start + hit.length - 1][1]]


def decontaminate(text: str, hits: list[Hit], cfg: ContaminationConfig) -> Verdict:
    """Drop a document that has hits, or cut them out of it with `window` characters on each side, as GPT-3 did.

    Reason to drop: `contaminated`, with the share of words in hits (action `drop`), the number of pieces when it is above
    `max_pieces` or 0. A share of at most `min_share` leaves the document as it is.
    """
    words = [match.span() for match in _WORD.finditer(text)]
    inside = np.zeros(len(words) + 1, bool)
    for hit in hits:
        inside[hit.start : hit.start + hit.length] = True
    share = float(inside.sum() / max(1, len(words)))
    if share <= cfg.min_share:
        return Verdict([text], None)
    if cfg.action == "drop":
        return Verdict([], Removal("contaminated", share, cfg.min_share))
    cuts: list[list[int]] = []
    for begin, end in np.flatnonzero(np.diff(inside.astype(np.int8), prepend=0)).reshape(-1, 2):
        first, last = max(0, words[begin][0] - cfg.window), min(len(text), words[end - 1][1] + cfg.window)
        if cuts and first <= cuts[-1][1]:
            cuts[-1][1] = last
        else:
            cuts.append([first, last])
    between = itertools.pairwise([0, *itertools.chain(*cuts), len(text)])
    pieces = [text[begin:end] for begin, end in between][::2]
    pieces = [piece for piece in pieces if piece and len(piece) >= cfg.min_piece]
    if not pieces or len(pieces) > cfg.max_pieces:
        return Verdict([], Removal("contaminated", len(pieces), cfg.max_pieces))
    return Verdict(pieces, None)
