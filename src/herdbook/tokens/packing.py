"""How documents become sequences of T tokens: which pieces of a source's ring lie in which window.

`Concatenated` takes documents one after another and cuts where a window ends (GPT-3, section 2.2, and nearly everybody since).
`BestFit` is best-fit-decreasing bin packing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling", section 3): a
document is only cut when it is longer than a window, and then into whole windows and a rest; documents and rests are put,
longest first, into the fullest window that still has room. What stays empty, mostly far below 1 %, is padding that nothing
is learned on.

The packing works on lengths alone. All of one length are placed at once, which gives the very result of placing them one by
one in time that grows with T, not with the documents; and blocks of a few million documents are packed each by itself, so
that memory is bounded. The result is three files beside the shards, made once for each T.
"""

from __future__ import annotations

import bisect
import itertools
import os
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from herdbook.errors import UserError
from herdbook.files import atomic_folder, lock, read_json, sha256_json, write_json
from herdbook.tokens.order import Permutation, derive
from herdbook.tokens.source import TokenSource

BLOCK = 1 << 22  # documents that are packed together
PLANS = "work"  # what lies there is no part of a station's output: it can always be made again
_VERSION = 1
_FILES = {"starts": "<i8", "lengths": "<i4", "ends": "<i8"}

Ints = npt.NDArray[np.int64]


class Piece(NamedTuple):
    """A part of a window.

    Attributes:
        start: where on the ring it begins.
        length: tokens of it that are inputs; each is followed by its target, the token behind it on the ring.
    """

    start: int
    length: int


class Packing(Protocol):
    """The windows of one source.

    Attributes:
        windows: how many make an epoch.
        room: positions of a window times their number, padding included.
        padding: share of `room` that is padding.
    """

    windows: int
    room: int
    padding: float

    def pieces(self, epoch: int, turn: int) -> list[Piece]:
        """What lies in the window that is visited at a turn of an epoch."""


class _Shuffled:
    """Windows in an order that is another one each epoch, and does not come from the one before."""

    def __init__(self, name: str, windows: int, seed: int) -> None:
        self._name, self._seed, self.windows = name, seed, windows
        self._order = lru_cache(maxsize=4)(lambda epoch: Permutation(windows, derive(seed, name, epoch, "order")))

    def window(self, epoch: int, turn: int) -> int:
        """Which window is visited at a turn of an epoch."""
        return self._order(epoch)[turn]


class Concatenated(_Shuffled):
    """The ring cut every T tokens, from a starting point that is another one each epoch.

    Every token is predicted once an epoch but for the fewer than T that are left over at the end, others each time. A source
    shorter than a window goes round several times.
    """

    padding = 0.0

    def __init__(self, source: TokenSource, context: int, seed: int) -> None:
        super().__init__(source.name, max(1, source.tokens // context), seed)
        self._tokens, self._context = source.tokens, context
        self.room = source.tokens

    def pieces(self, epoch: int, turn: int) -> list[Piece]:
        """One piece as long as the window."""
        offset = derive(self._seed, self._name, epoch, "offset") % self._tokens
        return [Piece((offset + self.window(epoch, turn) * self._context) % self._tokens, self._context)]


class BestFit(_Shuffled):
    """Windows that hold whole documents, by a plan that is made once and kept in `folder`."""

    def __init__(self, source: TokenSource, context: int, seed: int, folder: Path) -> None:
        plan = _plan(source, context, folder)
        self._starts, self._lengths, self._ends = (_open(plan, name) for name in _FILES)
        super().__init__(source.name, len(self._ends), seed)
        self.room = self.windows * context
        self.padding = 1 - source.tokens / self.room

    def pieces(self, epoch: int, turn: int) -> list[Piece]:
        """The documents of a window, and what is left of one that was too long."""
        window = self.window(epoch, turn)
        begin, end = int(self._ends[window - 1]) if window else 0, int(self._ends[window])
        starts, lengths = self._starts[begin:end].tolist(), self._lengths[begin:end].tolist()
        return [Piece(start, length) for start, length in zip(starts, lengths, strict=True)]


def best_fit_decreasing(lengths: Ints, capacity: int) -> Ints:
    """Best-fit-decreasing bin packing.

    Args:
        lengths: of the items, each from 1 to `capacity`.

    Returns the number of the bin of each item: placed longest first, each into the bin with the least room that takes it, and
    into a new one where none does.
    """
    assert len(lengths) == 0 or 1 <= lengths.min() <= lengths.max() <= capacity
    order = np.argsort(-lengths, kind="stable")
    sizes, begins = np.unique(-lengths[order], return_index=True)
    bin_of = np.empty(len(lengths), dtype=np.int64)
    bins = _Bins(capacity)
    for size, (begin, end) in zip((-sizes).tolist(), itertools.pairwise([*begins.tolist(), len(lengths)]), strict=True):
        bin_of[order[begin:end]] = bins.place(size, end - begin)
    return bin_of


class _Bins:
    """Bins by the room that is left in them."""

    def __init__(self, capacity: int) -> None:
        self._capacity, self._opened = capacity, 0
        self._by_room: defaultdict[int, list[Ints]] = defaultdict(list)
        self._rooms: list[int] = []  # those that bins have, sorted

    def place(self, size: int, count: int) -> Ints:
        """The bins of `count` items of one size, no larger than any placed before.

        A bin that is the fullest to take one such item still is when it has taken it, for as long as it can: so it is filled up
        before another is begun, and all bins with the same room can be filled at once.
        """
        placed: list[Ints] = []
        while count:
            at = bisect.bisect_left(self._rooms, size)
            if at < len(self._rooms):
                room = self._rooms.pop(at)
                candidates = np.concatenate(self._by_room.pop(room))
            else:
                room = self._capacity
                candidates = self._opened + np.arange(-(-count // (room // size)), dtype=np.int64)
                self._opened += len(candidates)
            each = room // size
            used = candidates[: -(-count // each)]
            items = np.repeat(used, each)[:count]
            self._put_back(candidates[len(used) :], room)
            last = len(items) - each * (len(used) - 1)  # the last bin may get fewer
            self._put_back(used[:-1], room - each * size)
            self._put_back(used[-1:], room - last * size)
            placed.append(items)
            count -= len(items)
        return np.concatenate(placed)

    def _put_back(self, bins: Ints, room: int) -> None:
        if len(bins) and room:
            if room not in self._by_room:
                bisect.insort(self._rooms, room)
            self._by_room[room].append(bins)


def pack_block(starts: Ints, lengths: Ints, context: int) -> tuple[Ints, Ints, Ints]:
    """Documents as windows: (starts of the pieces, their lengths, the number of pieces up to the end of each window).

    Args:
        starts: where on the ring each document begins; lengths: its tokens.
    """
    whole = lengths // context
    cut_starts = np.repeat(starts, whole) + context * _counted(whole)
    rests = lengths - whole * context
    rest_starts, rests = (starts + whole * context)[rests > 0], rests[rests > 0]
    # Neighbours of the same length are often made from one template: they should not all come into the same window.
    mixed = np.random.Generator(np.random.PCG64(len(rests))).permutation(len(rests))
    rest_starts, rests = rest_starts[mixed], rests[mixed]
    bin_of = best_fit_decreasing(rests, context)
    order = np.argsort(bin_of, kind="stable")
    bins = np.bincount(bin_of) if len(rests) else np.empty(0, np.int64)
    counts = np.concatenate([np.ones(len(cut_starts), dtype=np.int64), bins])
    piece_starts = np.concatenate([cut_starts, rest_starts[order]])
    piece_lengths = np.concatenate([np.full(len(cut_starts), context, dtype=np.int64), rests[order]])
    return piece_starts, piece_lengths, np.cumsum(counts)


def _counted(counts: Ints) -> Ints:
    """0 … count-1 for each count, one after another: [2, 0, 3] → [0, 1, 0, 1, 2]."""
    return np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(np.cumsum(counts) - counts, counts)


def _plan(source: TokenSource, context: int, folder: Path) -> Path:
    """The plan of a source's windows, made when there is none yet; several processes may ask for it at a time."""
    key = sha256_json([_VERSION, source.digest, context, BLOCK])[:16]
    target = folder / f"windows-{quote(source.name, safe='')[:80]}-{context}-{key}"
    if not _is_whole(target):
        with lock(folder / f".{target.name}.lock", wait=True):
            if not _is_whole(target):  # another process may have made it while we waited
                _write(source, context, target)
    return target


def plans_folder(tokens: Path, cache: Path) -> Path:
    """Where the plans of a tokens folder are kept: in it, or in the cache when nothing may be written there."""
    inside = tokens / PLANS
    return inside if os.access(inside if inside.exists() else tokens, os.W_OK) else cache / "windows"


def _write(source: TokenSource, context: int, target: Path) -> None:
    with atomic_folder(target) as aside:
        with (
            (aside / "starts").open("wb") as starts,
            (aside / "lengths").open("wb") as lengths,
            (aside / "ends").open("wb") as ends,
        ):
            pieces = _write_blocks(source, context, {"starts": starts, "lengths": lengths, "ends": ends})
        sizes = {name: (aside / name).stat().st_size for name in _FILES}
        write_json(aside / "plan.json", {"version": _VERSION, "context": context, "pieces": pieces, "sizes": sizes})


def _write_blocks(source: TokenSource, context: int, streams: dict[str, BinaryIO]) -> int:
    pieces = 0
    for starts, lengths in _blocks(source):
        found = pack_block(starts, lengths, context)
        for (name, dtype), values in zip(_FILES.items(), (found[0], found[1], pieces + found[2]), strict=True):
            streams[name].write(values.astype(dtype).tobytes())
        pieces += len(found[0])
    return pieces


def _blocks(source: TokenSource) -> Iterator[tuple[Ints, Ints]]:
    """Where documents begin and how long they are, in blocks that do not hang on how they are cut into shards."""
    waiting, start = np.empty(0, dtype=np.int64), 0
    for lengths in source.lengths():
        waiting = np.concatenate([waiting, lengths])
        while len(waiting) >= BLOCK:
            yield start + np.cumsum(waiting[:BLOCK]) - waiting[:BLOCK], waiting[:BLOCK]
            start += int(waiting[:BLOCK].sum())
            waiting = waiting[BLOCK:]
    if len(waiting):
        yield start + np.cumsum(waiting) - waiting, waiting


def _is_whole(target: Path) -> bool:
    if not (target / "plan.json").is_file():
        return False
    plan = read_json(target / "plan.json", what="plan of windows")
    return all((target / name).is_file() and (target / name).stat().st_size == size for name, size in plan["sizes"].items())


def _open(plan: Path, name: str) -> npt.NDArray[np.int64]:
    try:
        return np.memmap(plan / name, dtype=_FILES[name], mode="r")
    except (OSError, ValueError) as error:
        raise UserError(
            f"the plan of windows cannot be read ({error})", where=plan, todo="delete it: it is made again"
        ) from error
