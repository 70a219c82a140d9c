"""Token shards on disk: what one looks like, and the writer.

    SOURCE-00000.bin           token ids, little-endian uint16 or uint32, no header
    SOURCE-00000.docs.parquet  offset (of the first token in this shard), tokens, id, url, license: a row a document
    index.json                 dtype, vocabulary, hash of the tokenizer, the mixture, and by source: counts, licence, shards

A document begins with the separator and never lies in two shards. The characters of a source's name that no file may have
in its name are written as %XX.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from herdbook.facts.licenses import find_expression, strictest
from herdbook.files import atomic_path, sha256_file

INDEX = "index.json"
VERSION = 2
DOCS_SUFFIX = ".docs.parquet"
DOCS_SCHEMA = pa.schema(
    [("offset", pa.int64()), ("tokens", pa.int64()), ("id", pa.string()), ("url", pa.string()), ("license", pa.string())]
)


@dataclass
class Piece:
    """The documents of one source in one task, encoded one after another."""

    source: str
    tokens: npt.NDArray[Any]
    lengths: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    urls: list[str | None] = field(default_factory=list)
    licenses: list[str] = field(default_factory=list)
    bytes: int = 0


class SourceWriter:
    """Writes one source's shards; a shard takes its name only when it is whole."""

    def __init__(self, folder: Path, source: str, dtype: str, shard_tokens: int) -> None:
        self._folder, self._stem, self._dtype, self._shard_tokens = folder, quote(source, safe=""), dtype, shard_tokens
        self._shard: _Shard | None = None
        self._shards: list[dict[str, Any]] = []
        self._licenses: set[str] = set()
        self._bytes = 0

    def add(self, piece: Piece) -> None:
        """Append the documents of a piece, beginning a new shard behind the document that fills one."""
        self._licenses.update(piece.licenses)
        self._bytes += piece.bytes
        ends = np.cumsum(piece.lengths)
        first = 0
        while first < len(ends):
            if self._shard is None:
                self._shard = _Shard(self._folder / f"{self._stem}-{len(self._shards):05d}.bin")
            begun = int(ends[first - 1]) if first else 0
            last = min(len(ends), 1 + int(np.searchsorted(ends, begun + self._shard_tokens - self._shard.tokens)))
            self._shard.add(piece, begun, first, last, np.dtype(self._dtype).newbyteorder("<"))
            first = last
            if self._shard.tokens >= self._shard_tokens:
                self._finish()

    def _finish(self) -> None:
        if self._shard is not None:
            self._shards.append(self._shard.finish())
            self._shard = None

    def as_dict(self) -> dict[str, Any]:
        """This source's part of index.json."""
        return {
            "tokens": sum(shard["tokens"] for shard in self._shards),
            "documents": sum(shard["documents"] for shard in self._shards),
            "bytes": self._bytes,
            "license": strictest(map(find_expression, sorted(self._licenses))).id,
            "shards": self._shards,
        }

    def __enter__(self) -> SourceWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._finish()
        elif self._shard is not None:
            self._shard.drop(kind, error, trace)


class _Shard:
    """One shard while it is written."""

    def __init__(self, path: Path) -> None:
        self._path, self._stack, self._hash = path, ExitStack(), hashlib.sha256()
        self._file: BinaryIO = self._stack.enter_context(self._stack.enter_context(atomic_path(path)).open("wb"))
        self._lengths: list[int] = []
        self._ids: list[str] = []
        self._urls: list[str | None] = []
        self._licenses: list[str] = []
        self.tokens = 0

    def add(self, piece: Piece, begun: int, first: int, last: int, dtype: np.dtype[Any]) -> None:
        """Append documents `first` to `last` of a piece; the tokens of the first begin at `begun`."""
        lengths = piece.lengths[first:last]
        raw = piece.tokens[begun : begun + sum(lengths)].astype(dtype, copy=False).tobytes()
        self._hash.update(raw)
        self._file.write(raw)
        self._lengths += lengths
        self._ids += piece.ids[first:last]
        self._urls += piece.urls[first:last]
        self._licenses += piece.licenses[first:last]
        self.tokens += sum(lengths)

    def finish(self) -> dict[str, Any]:
        """Close the shard and its list of documents; its row in index.json."""
        ends = np.cumsum(self._lengths)
        numbers = [pa.array(ends - self._lengths, pa.int64()), pa.array(self._lengths, pa.int64())]
        table = pa.table([*numbers, self._ids, self._urls, self._licenses], schema=DOCS_SCHEMA)
        listing = self._path.with_name(self._path.stem + DOCS_SUFFIX)
        with atomic_path(listing) as aside:
            pq.write_table(table, aside, compression="zstd")
        self._stack.close()
        return {
            "file": self._path.name,
            "tokens": self.tokens,
            "documents": len(self._lengths),
            "sha256": self._hash.hexdigest(),
            "listing": listing.name,
            "listing_bytes": listing.stat().st_size,
            "listing_sha256": sha256_file(listing),
        }

    def drop(self, kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
        """Remove what was written."""
        self._stack.__exit__(kind, error, trace)
