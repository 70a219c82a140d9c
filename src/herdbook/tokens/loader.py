"""The loader: sequences from memory-mapped shards, in an order that is a pure function of (seed, number of the sequence).

There is no state: sequence 1,000,000 is found by arithmetic, so a run resumes exactly, and any number of ranks or workers,
each asking for its own sequences, sees the same global order.

A source is read as a ring: the tokens of its shards in order, the last followed by the first. An epoch cuts the ring into
windows of T tokens from a starting point that differs from epoch to epoch, and visits each window once, in a new order. A
window is read with one token more than T, the first of the next, so that every token is predicted once an epoch; only the
fewer than T tokens that are left over at the end of the ring are skipped, others each epoch. A source shorter than a window
goes round several times.

Legend: B sequences of a batch, T1 = T + 1 tokens of a sequence.
"""

from __future__ import annotations

import bisect
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from herdbook.errors import UserError
from herdbook.files import inside, read_json, sha256_file
from herdbook.tokens.order import Interleaving, Permutation, derive
from herdbook.tokens.shards import DOCS_SUFFIX, INDEX, VERSION

_AGAIN = "`herdbook tokens` makes the shards again"


@dataclass(frozen=True)
class Batch:
    """Sequences side by side.

    Attributes:
        tokens_BT: (B, T+1) int64; inputs are [:, :-1], targets [:, 1:].
        documents_BT: (B, T+1) int32, which document of its row a token belongs to: 0, 1, 2, …
        sources_B: (B,) int16, index into `Mixture.sources`.
    """

    tokens_BT: npt.NDArray[np.int64]
    documents_BT: npt.NDArray[np.int32]
    sources_B: npt.NDArray[np.int16]


class TokenSource:
    """One source's shards as one ring of tokens.

    Args:
        row: the source's part of index.json.

    Raises UserError when a shard is missing, cut short or outside the folder.
    """

    def __init__(self, folder: Path, name: str, row: Mapping[str, Any], dtype: str) -> None:
        self.name, self.tokens, self.license = name, int(row["tokens"]), str(row["license"])
        self.shards = [inside(folder, shard["file"]) for shard in row["shards"]]
        self.hashes = [str(shard["sha256"]) for shard in row["shards"]]
        lengths = [int(shard["tokens"]) for shard in row["shards"]]
        if sum(lengths) != self.tokens or min(lengths, default=0) < 0:
            raise UserError(
                f"the shards of {name!r} do not add up to its {self.tokens:,} tokens", where=folder / INDEX, todo=_AGAIN
            )
        self._starts = [0, *np.cumsum(lengths).tolist()]
        self._maps = [_map(path, length, dtype) for path, length in zip(self.shards, lengths, strict=True)]

    def read(self, start: int, length: int) -> npt.NDArray[Any]:
        """`length` tokens from position `start` on, going round the ring as often as needed; on-disk dtype, shape (length,)."""
        parts, position = [], start % self.tokens
        while length > 0:
            number = bisect.bisect_right(self._starts, position) - 1
            offset = position - self._starts[number]
            part = self._maps[number][offset : offset + length]
            parts.append(part)
            length -= len(part)
            position = (position + len(part)) % self.tokens
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def documents(self, start: int, length: int) -> list[tuple[str, str | None]]:
        """(id, url) of the documents that `read(start, length)` goes through, one entry for each time one is entered."""
        found: list[tuple[str, str | None]] = []
        position = start % self.tokens
        while length > 0:
            document = bisect.bisect_right(self._document_starts, position) - 1
            end = self._document_starts[document + 1] if document + 1 < len(self._document_starts) else self.tokens
            found.append(self._document_names[document])
            length -= end - position
            position = end % self.tokens
        return found

    @cached_property
    def _documents(self) -> tuple[list[int], list[tuple[str, str | None]]]:
        starts: list[int] = []
        names: list[tuple[str, str | None]] = []
        for path, start in zip(self.shards, self._starts, strict=False):
            listing = path.with_name(path.stem + DOCS_SUFFIX)
            try:
                table = pq.read_table(listing, columns=["offset", "id", "url"])
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"the list of documents cannot be read ({error})", where=listing, todo=_AGAIN) from error
            starts += [start + offset for offset in table.column("offset").to_pylist()]
            names += zip(table.column("id").to_pylist(), table.column("url").to_pylist(), strict=True)
        return starts, names

    @property
    def _document_starts(self) -> list[int]:
        return self._documents[0]

    @property
    def _document_names(self) -> list[tuple[str, str | None]]:
        return self._documents[1]


def _map(path: Path, tokens: int, dtype: str) -> npt.NDArray[Any]:
    width = np.dtype(dtype).itemsize
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise UserError("a shard is missing", where=path, todo=_AGAIN) from None
    if size != tokens * width:
        state = "cut short" if size < tokens * width else "too long"
        raise UserError(f"the shard is {state}: {size:,} bytes where {tokens:,} tokens of {dtype} take {tokens * width:,}",
                        where=path, todo=_AGAIN)  # fmt: skip
    if not tokens:
        return np.empty(0, np.dtype(dtype).newbyteorder("<"))
    return np.memmap(path, dtype=np.dtype(dtype).newbyteorder("<"), mode="r")


class Mixture:
    """All sources of a tokens folder, mixed by weight.

    Args:
        context: T, the tokens a model sees at once; a sequence has one more.
        seed: chooses the order.
        weights: shares by source, on any scale; sources that are not named are left out. Default: the weights the shards were
            built with, or else in proportion to tokens.
        tokenizer: a tokenizer's folder; refused when the shards were made with another one.
        verify: hash every shard and compare with the index.

    Raises UserError when the folder, its index, a shard or a weight is wrong.
    """

    def __init__(
        self, folder: Path, *, context: int, seed: int, weights: Mapping[str, float] | None = None,
        tokenizer: Path | None = None, verify: bool = False,
    ) -> None:  # fmt: skip
        if context < 1:
            raise ValueError(f"context must be positive, not {context}")
        index = read_index(folder)
        if tokenizer is not None:
            _same_tokenizer(index, folder, tokenizer)
        self.context, self.seed = context, seed
        self.separator, self.vocab_size = int(index["separator_id"]), int(index["vocab_size"])
        self.weights = _weights(index, weights, folder)
        self.sources = list(self.weights)
        self._rings = [TokenSource(folder, name, index["sources"][name], index["dtype"]) for name in self.sources]
        if verify:
            _verify(self._rings)
        self.tokens = sum(ring.tokens for ring in self._rings)
        self._windows = [max(1, ring.tokens // context) for ring in self._rings]
        self._interleaving = Interleaving(list(self.weights.values()), derive(seed, "interleaving"))
        self._epoch = lru_cache(maxsize=4 * len(self.sources))(self._make_epoch)

    def sequence(self, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], int]:
        """Sequence number `index`: tokens (T+1,) int64, document numbers (T+1,) int32, and the index of its source."""
        batch = self.sequences([index])
        return batch.tokens_BT[0], batch.documents_BT[0], int(batch.sources_B[0])

    def batch(self, step: int, batch_size: int) -> Batch:
        """The `batch_size` sequences of a step, counted from 0."""
        if step < 0 or batch_size < 1:
            raise ValueError(f"no such batch: step {step}, batch_size {batch_size}")
        return self.sequences(range(step * batch_size, (step + 1) * batch_size))

    def sequences(self, indices: Iterable[int]) -> Batch:
        """Any sequences by their numbers, side by side: what a rank or a micro-batch takes of a step."""
        numbers = list(indices)
        tokens_BT = np.empty((len(numbers), self.context + 1), dtype=np.int64)
        sources_B = np.empty(len(numbers), dtype=np.int16)
        for row, index in enumerate(numbers):
            source, start = self._locate(index)
            tokens_BT[row] = self._rings[source].read(start, self.context + 1)
            sources_B[row] = source
        if tokens_BT.size and tokens_BT.max() >= self.vocab_size:
            raise UserError(f"the shards hold the id {tokens_BT.max()}, and the vocabulary has {self.vocab_size}", todo=_AGAIN)
        begins_BT = tokens_BT == self.separator
        documents_BT = np.cumsum(begins_BT, axis=1, dtype=np.int32) - begins_BT[:, :1]
        return Batch(tokens_BT, documents_BT, sources_B)

    def trace(self, index: int) -> list[tuple[str, str | None]]:
        """(id, url) of the documents in a sequence; entry d is the document that the sequence numbers d."""
        source, start = self._locate(index)
        return self._rings[source].documents(start, self.context + 1)

    def counts(self, sequences: int) -> dict[str, int]:
        """How many of the first `sequences` sequences come from each source."""
        return dict(zip(self.sources, self._interleaving.counts(sequences).tolist(), strict=True))

    def epochs(self, sequences: int) -> dict[str, float]:
        """How often the first `sequences` sequences go through each source."""
        counts = self.counts(sequences)
        return {ring.name: counts[ring.name] * self.context / ring.tokens for ring in self._rings}

    def _locate(self, index: int) -> tuple[int, int]:
        """The source of a sequence, and where on its ring it starts."""
        if index < 0:
            raise ValueError(f"sequences are counted from 0, not {index}")
        source, turn = self._interleaving.turn(index)
        epoch, window = divmod(turn, self._windows[source])
        order, offset = self._epoch(source, epoch)
        return source, offset + order[window] * self.context

    def _make_epoch(self, source: int, epoch: int) -> tuple[Permutation, int]:
        """The order of the windows in an epoch of a source, and where on the ring the first window starts."""
        ring = self._rings[source]
        order = Permutation(self._windows[source], derive(self.seed, ring.name, epoch, "order"))
        return order, derive(self.seed, ring.name, epoch, "offset") % ring.tokens


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a tokens folder. Raises UserError when there is none, or this version cannot read it."""
    path = folder / INDEX
    index = read_json(path, what="index of token shards", todo="`herdbook tokens` makes one")
    if not isinstance(index, dict) or index.get("version") != VERSION:
        raise UserError(f"these token shards are not of version {VERSION}", where=path, todo=_AGAIN)
    missing = {"dtype", "vocab_size", "tokenizer_sha256", "separator_id", "sources"} - set(index)
    if missing or not isinstance(index["sources"], dict):
        raise UserError(f"the index lacks {', '.join(sorted(missing)) or 'its sources'}", where=path, todo=_AGAIN)
    if index["dtype"] not in ("uint16", "uint32"):
        raise UserError(f"tokens are uint16 or uint32, not {index['dtype']!r}", where=path, todo=_AGAIN)
    for name, row in index["sources"].items():
        lacking = {"tokens", "license", "shards"} - set(row if isinstance(row, dict) else ())
        if lacking or not all({"file", "tokens", "sha256"} <= set(shard) for shard in row["shards"]):
            raise UserError(f"the index does not describe the source {name!r} fully", where=path, todo=_AGAIN)
    return index


def _weights(index: Mapping[str, Any], weights: Mapping[str, float] | None, folder: Path) -> dict[str, float]:
    """The share of each source in training, adding up to 1, in the order of the index."""
    tokens = {name: int(row["tokens"]) for name, row in index["sources"].items()}
    configured = {name: row["weight"] for name, row in index["sources"].items() if row.get("weight")}
    for name in weights or {}:
        if not tokens.get(name):
            close = difflib.get_close_matches(name, tokens, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise UserError(
                f"there are no tokens of a source {name!r}", where=folder, todo=f"{hint}There are: {', '.join(tokens)}"
            )
    raw = dict(weights or configured or tokens)
    if any(not 0 <= weight < float("inf") for weight in raw.values()):
        raise UserError("a weight is a number from 0 on", where=", ".join(f"{name}={weight}" for name, weight in raw.items()))
    chosen = {name: float(raw[name]) for name in tokens if raw.get(name) and tokens[name]}
    if not chosen:
        raise UserError(
            "there are no tokens to train on", where=folder, todo="curate some documents, or give a source a weight"
        )
    total = sum(chosen.values())
    return {name: weight / total for name, weight in chosen.items()}


def _same_tokenizer(index: Mapping[str, Any], folder: Path, tokenizer: Path) -> None:
    path = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    if not path.is_file():
        raise UserError("there is no tokenizer here", where=path)
    if sha256_file(path) != index["tokenizer_sha256"]:
        raise UserError("these shards were made with another tokenizer", where=folder,
                        todo=f"`herdbook tokens` makes them again with {path}")  # fmt: skip


def _verify(rings: Iterable[TokenSource]) -> None:
    for ring in rings:
        for path, known in zip(ring.shards, ring.hashes, strict=True):
            if sha256_file(path) != known:
                raise UserError("the shard is not the one its index describes", where=path, todo=_AGAIN)
