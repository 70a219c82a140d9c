"""Exact substrings: passages of K tokens and more that stand elsewhere in the corpus, and what to do about them.

Lee et al. (2021) find them with a suffix array over all tokens, RefinedWeb cuts those of 50 and more out. For a fixed K that
needs no suffix array: hash the K tokens from every position on, sort the hashes, and equal ones are equal windows. Sorting is
done by `buckets`, so it takes as little memory as it is given and any number of workers. Where a window was seen at a lower
position, in an earlier document or before in the same one, all its tokens count as seen; windows that follow each other there
and here make one span. So the first occurrence stays, and a text that repeats itself with a period under K collapses to one
period (by many spans, because the first occurrence of all its windows is in its first period).

The hash of a window is Σ t_i·M^i over its tokens, each mixed to 64 random-looking bits before, modulo 2^64. A record has such a
hash for one multiplier M and, as the tag beside the position, the top 24 bits of another one's: windows are taken for equal if
88 bits are, which among N windows is wrong for N²/2^89 pairs: 2e-9 for a billion tokens, 2e-3 for a trillion. A span therefore
is not compared token by token.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from herdbook.corpus.buckets import NUMBER_BITS, Buckets, BucketWriter, Numbers, bucket_writer, linked, tagged
from herdbook.corpus.config_dedup import BucketsConfig, SubstringConfig
from herdbook.corpus.filters import Removal
from herdbook.corpus.words import Array, word_hashes

_BATCH = 1 << 20  # tokens to collect before hashing
_BLOCK = 1 << 14  # tokens to hash at a time: a few arrays of them stay in a core's cache
_MULTIPLIERS = (
    0xD1342543DE82EF95,
    0xAF251AF3B0F025B5,
)  # of good spectra in linear congruential generators (Steele, Vigna 2021)
_TAG_SHIFT = np.uint64(NUMBER_BITS)
_SPACE = np.array([chr(code).isspace() for code in range(0x3001)] + [False])


class Span(NamedTuple):
    """Tokens `start` to `end` of a document, which are the same as those from `other_start` on in `other_document`."""

    start: int
    end: int
    other_document: int
    other_start: int


@cache
def _powers(multiplier: int, k: int) -> tuple[Array, Array]:
    """M^0, M^1, … for a block with k tokens more, and their inverses modulo 2^64."""
    count = _BLOCK + k
    forward, back = (np.full(count, factor, np.uint64) for factor in (multiplier, pow(multiplier, -1, 1 << 64)))
    forward[0] = back[0] = 1
    return np.cumprod(forward, dtype=np.uint64), np.cumprod(back, dtype=np.uint64)


def _mixed(tokens: Array) -> Array:
    """Token ids of any kind as 64 bits that look random, different ones for different ids (the finaliser of SplitMix64)."""
    mixed = tokens ^ (tokens >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def window_hashes(tokens: Array, k: int) -> tuple[Array, Array]:
    """Two 64-bit hashes of the k tokens from each position on, each of length max(0, tokens − k + 1)."""
    count = max(0, len(tokens) - k + 1)
    found = np.empty((2, count), np.uint64)
    sums = np.zeros(_BLOCK + k, np.uint64)
    for start in range(0, count, _BLOCK):
        mixed = _mixed(tokens[start : start + _BLOCK + k - 1])
        many, windows = len(mixed), len(mixed) - k + 1
        for row, multiplier in zip(found, _MULTIPLIERS, strict=True):
            forward, back = _powers(multiplier, k)
            np.cumsum(mixed * forward[:many], out=sums[1 : many + 1])
            out = np.subtract(sums[k : many + 1], sums[:windows], out=row[start : start + windows])
            out *= back[:windows]
    return found[0], found[1]


def write_windows(documents: Iterable[Array], writer: BucketWriter, k: int, first_token: int = 0) -> Numbers:
    """Add every window of consecutive documents (arrays of token ids). Gives the documents' lengths in tokens.

    Args:
        first_token: how many tokens are in all documents before these, so that workers can share the work.
    """
    lengths: list[int] = []
    batch: list[Array] = []
    waiting = 0
    for document in documents:
        batch.append(np.asarray(document).astype(np.uint64, copy=False))
        lengths.append(len(document))
        waiting += len(document)
        if waiting >= _BATCH:
            _add_windows(batch, writer, k, first_token)
            first_token += waiting
            batch, waiting = [], 0
    _add_windows(batch, writer, k, first_token)
    return np.array(lengths, np.int64)


def _add_windows(batch: list[Array], writer: BucketWriter, k: int, first_token: int) -> None:
    lengths = np.array([len(document) for document in batch], np.int64)
    ends = np.cumsum(lengths)
    if not len(batch) or ends[-1] < k:
        return
    key, check = window_hashes(np.concatenate(batch), k)
    places = np.arange(len(key), dtype=np.int64)
    whole = places + k <= np.repeat(ends, lengths)[: len(key)]  # not from one document into the next
    writer.add(key[whole], tagged(check[whole] >> _TAG_SHIFT, (places[whole] + first_token).astype(np.uint64)))


def spans_of(buckets: Buckets, lengths: Numbers, k: int, scratch: Path, memory: int) -> Iterator[list[Span]]:
    """The spans of each document, in order of documents and positions; overlapping ones have different sources.

    Args:
        buckets: all windows, from `write_windows`.
        lengths: of all documents, in tokens.
        scratch: a folder to sort found windows by position in.
        memory: bytes for that.
    """
    with bucket_writer(scratch, "found", memory=memory) as writer:
        for position, first in linked(buckets):
            writer.add(position.astype(np.uint64), first.astype(np.uint64))
    ends = np.cumsum(lengths)
    document, waiting = 0, list[Span]()
    for start, other, windows in _chains(Buckets(scratch, memory)):
        home, source = (int(np.searchsorted(ends, place, "right")) for place in (start, other))
        while document < home:
            yield waiting
            document, waiting = document + 1, []
        begin = start - int(ends[home] - lengths[home])
        waiting.append(Span(begin, begin + windows + k - 1, source, other - int(ends[source] - lengths[source])))
    for _ in range(document, len(lengths)):
        yield waiting
        waiting = []


def _chains(found: Iterable[Array]) -> Iterator[tuple[int, int, int]]:
    """Found windows that follow each other, there and here, as (position, other position, how many)."""
    last: tuple[int, int, int] | None = None
    for rows in found:
        places = rows.astype(np.int64)
        begins = np.flatnonzero(np.concatenate(([True], (np.diff(places, axis=0) != 1).any(axis=1))))
        counts = np.diff(np.append(begins, len(places)))
        for (start, other), count in zip(places[begins].tolist(), counts.tolist(), strict=True):
            if last is not None and (last[0] + last[2], last[1] + last[2]) == (start, other):
                last = (last[0], last[1], last[2] + count)
                continue
            if last is not None:
                yield last
            last = (start, other, count)
    if last is not None:
        yield last


def find_spans(
    documents: Iterable[Array], k: int = 50, *, scratch: Path | None = None, memory: int = BucketsConfig().memory
) -> Iterator[list[Span]]:
    """For each document the passages of k and more tokens that stand before, in order.

    Memory is bounded by `memory` and 8 bytes a document; the disk holds 16 bytes a token meanwhile.

    Args:
        documents: arrays of token ids: any integers, or hashes of words as of `word_tokens`.
        scratch: a folder in which to sort; the system's place for temporary files without.
    """
    folder = Path(tempfile.mkdtemp(prefix="substring-", dir=scratch))
    try:
        with bucket_writer(folder / "windows", "all", memory=memory) as writer:
            lengths = write_windows(documents, writer, k)
        yield from spans_of(Buckets(folder / "windows", memory), lengths, k, folder / "found", memory)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def word_tokens(text: str) -> tuple[Array, Numbers]:
    """A text's words (what stands between white space) as 64-bit hashes, and the characters they span, shape (words, 2)."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    space = np.concatenate(([True], _SPACE[np.minimum(codes, len(_SPACE) - 1)], [True]))
    borders = np.flatnonzero(space[1:] != space[:-1])
    return word_hashes(text.split()), borders.reshape(-1, 2).astype(np.int64)


class Applied(NamedTuple):
    """What becomes of a document: its text, the characters of the old one that are no longer there, and why it goes, if so."""

    text: str
    cuts: list[tuple[int, int]]
    removal: Removal | None


def apply_spans(text: str, offsets: Numbers, spans: Iterable[Span], cfg: SubstringConfig) -> Applied:
    """Cut or mask a document's spans, or drop it.

    Reasons to drop: `duplicate_passages` (drop_any and drop_partial, with the share of tokens in spans), `few_characters`.

    Args:
        offsets: of each token its first character and the one after its last, shape (tokens, 2).
    """
    seen = np.zeros(len(offsets) + 1, bool)
    for span in spans:
        seen[span.start : span.end] = True
    share = float(seen.sum() / max(1, len(offsets)))
    limit = cfg.max_share if cfg.variant == "drop_partial" else 0.0
    if cfg.variant in ("drop_any", "drop_partial"):
        return Applied(text, [], Removal("duplicate_passages", share, limit) if share > limit else None)
    borders = np.flatnonzero(np.diff(seen.astype(np.int8), prepend=0)).reshape(-1, 2)
    ranges = [_snapped(text, int(offsets[begin, 0]), int(offsets[end - 1, 1]), cfg.snap) for begin, end in borders]
    cuts: list[tuple[int, int]] = []
    for begin, end in ranges:
        if begin < end:
            first, last = (begin, end) if cfg.variant == "mask" else _with_space(text, begin, end)
            cuts.append((max(first, cuts[-1][1] if cuts else 0), last))
    kept = [text[begin:end] for begin, end in itertools.pairwise([0, *itertools.chain(*cuts), len(text)])][::2]
    left = sum(not character.isspace() for piece in kept for character in piece)
    removal = Removal("few_characters", left, cfg.min_characters) if cuts and left < cfg.min_characters else None
    return Applied((cfg.marker if cfg.variant == "mask" else "").join(kept), cuts, removal)


def _snapped(text: str, begin: int, end: int, snap: str) -> tuple[int, int]:
    """The whole words or lines within a range: it shrinks, so that nothing goes that stands only here."""
    if snap == "none":
        return begin, end

    def border(place: int) -> bool:
        if snap == "line":
            return place in (0, len(text)) or text[place - 1] == "\n" or text[place] == "\n"
        return place in (0, len(text)) or text[place - 1].isspace() or text[place].isspace()

    while begin < end and (text[begin].isspace() or not border(begin)):
        begin += 1
    while begin < end and (text[end - 1].isspace() or not border(end)):
        end -= 1
    return begin, end


def _with_space(text: str, begin: int, end: int) -> tuple[int, int]:
    """A cut together with the white space on one of its sides: that of fewer lines, so that words and lines stay apart."""
    before, after = begin, end
    while before > 0 and text[before - 1].isspace():
        before -= 1
    while after < len(text) and text[after].isspace():
        after += 1
    fewer_after = before < begin and text.count("\n", before, begin) >= text.count("\n", end, after)
    if begin == 0 or fewer_after:
        return begin, after
    return before, end
