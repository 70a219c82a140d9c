"""A sample of the corpus: bounded in bytes, shared out between sources, the same for the same seed.

A first pass adds up the bytes of each source by a hash of (seed, id), in a few thousand buckets; so the second knows below
which hash the documents of a source fill its share, and which documents are drawn does not hang on how the corpus is cut into
files. Memory stays the same for any size of corpus.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from herdbook.documents import Split, read_documents
from herdbook.errors import UserError

BUCKETS = 4096


class Sampled(NamedTuple):
    """A document of the sample; its text may be cut at the end to keep the bound."""

    source: str
    language: str
    text: str


class Survey:
    """What one split of a corpus holds, by source.

    Attributes:
        sizes: UTF-8 bytes of text by source.
    """

    def __init__(self, corpus: Path, split: Split, seed: int) -> None:
        self._corpus, self._split, self._seed = corpus, split, seed
        self._buckets: dict[str, npt.NDArray[np.int64]] = {}
        for row in read_documents(corpus, split, columns=["id", "source", "text"]):
            if row["source"] not in self._buckets:
                self._buckets[row["source"]] = np.zeros(BUCKETS, dtype=np.int64)
            self._buckets[row["source"]][self._bucket(row["id"])] += len(row["text"].encode())
        self.sizes = {name: int(buckets.sum()) for name, buckets in sorted(self._buckets.items())}

    def _bucket(self, document_id: str) -> int:
        return int(xxhash.xxh3_64_intdigest(document_id.encode(), self._seed % 2**64) % BUCKETS)

    def draw(self, quota: Mapping[str, int]) -> Iterator[Sampled]:
        """Documents that fill the quota of each source to the byte; the last of a source is cut to fit."""
        left = dict(quota)
        last = {name: int(np.searchsorted(np.cumsum(self._buckets[name]), size)) for name, size in quota.items()}
        for row in read_documents(self._corpus, self._split, columns=["id", "source", "language", "text"]):
            source, text = row["source"], row["text"]
            if left.get(source, 0) <= 0 or self._bucket(row["id"]) > last[source]:
                continue
            encoded = text.encode()
            if len(encoded) > left[source]:
                text = encoded[: left[source]].decode(errors="ignore")
            left[source] -= len(encoded)
            yield Sampled(source, row["language"] or "unknown", text)


def check_sources(named: Iterable[str] | None, present: Mapping[str, int], *, key: str) -> None:
    """Raise UserError when a weight names a source the corpus does not have, or one without any text."""
    for name in named or ():
        if not present.get(name):
            state = "holds no text in" if name in present else "is not in"
            raise UserError(
                f"the source {name!r} {state} the corpus", where=key, todo=f"its sources are: {', '.join(sorted(present))}"
            )


def quotas(sizes: Mapping[str, int], weights: Mapping[str, float] | None, budget: int) -> dict[str, int]:
    """How many bytes of each source make a sample of `budget` bytes.

    A source gives its weight's share (default: its share of the corpus). One that has less gives all of it, never a repeat,
    and the others share what it leaves.
    """
    wanted = {name: (weights or sizes).get(name, 0.0) for name, size in sizes.items() if size}
    wanted = {name: weight for name, weight in wanted.items() if weight > 0}
    result: dict[str, int] = {}
    while wanted:
        left, total = budget - sum(result.values()), sum(wanted.values())
        full = [name for name in wanted if left * wanted[name] / total >= sizes[name]]
        if not full:
            return result | {name: int(left * weight / total) for name, weight in wanted.items()}
        for name in full:
            result[name] = sizes[name]
            del wanted[name]
    return result
