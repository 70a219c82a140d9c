"""One source's shards, read as a ring of tokens: the shards in order, the last followed by the first.

A position on the ring leads to tokens, and to the documents that they are from. Shards are memory-mapped and lists of documents
are read one shard at a time, so what is in memory does not grow with the source.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from herdbook.errors import UserError
from herdbook.files import inside, read_json, sha256_file
from herdbook.tokens.shards import INDEX, VERSION

AGAIN = "`herdbook tokens` makes the shards again"
_LISTINGS = 4  # lists of documents that are held at a time
_ROW = {"file", "tokens", "sha256", "listing", "listing_bytes", "listing_sha256"}


class Files(Protocol):
    """Where the files that an index names are."""

    def find(self, name: str, size: int, sha256: str) -> Path:
        """A file of this size on this machine. Raises UserError when it cannot be had, or is cut short."""

    def require(self, needed: int) -> None:
        """Raise UserError when files of so many bytes cannot be there at the same time."""


@dataclass(frozen=True)
class Local:
    """Files in a tokens folder on this machine."""

    folder: Path

    def find(self, name: str, size: int, sha256: str) -> Path:
        """The file of that name; its hash is left to `verify`."""
        path = inside(self.folder, name)
        try:
            found = path.stat().st_size
        except FileNotFoundError:
            raise UserError("a shard is missing", where=path, todo=AGAIN) from None
        if found != size:
            state = "cut short" if found < size else "too long"
            raise UserError(f"the shard is {state}: {found:,} bytes where the index has {size:,}", where=path, todo=AGAIN)
        return path

    def require(self, needed: int) -> None:
        """They are there."""


class Document(NamedTuple):
    """A document that a sequence goes through.

    Attributes:
        tokens: how many of the sequence's tokens are from it.
    """

    id: str
    url: str | None
    license: str
    tokens: int


class TokenSource:
    """One source's shards as one ring of tokens.

    Args:
        row: the source's part of index.json.
        files: where the shards are; those in a local folder are checked at once, others when they are read.

    Raises UserError when a shard is missing, cut short or outside the folder.
    """

    def __init__(self, files: Files, name: str, row: Mapping[str, Any], dtype: str) -> None:
        self.name, self.tokens, self.license = name, int(row["tokens"]), str(row["license"])
        self._files, self._rows = files, [shard for shard in row["shards"] if shard["tokens"]]
        self._dtype = np.dtype(dtype).newbyteorder("<")
        lengths = [int(shard["tokens"]) for shard in row["shards"]]
        if sum(lengths) != self.tokens or min(lengths, default=0) < 0:
            raise UserError(
                f"the shards of {name!r} do not add up to its {self.tokens:,} tokens", where=name + " in " + INDEX, todo=AGAIN
            )
        self._starts: list[int] = [0, *np.cumsum([shard["tokens"] for shard in self._rows], dtype=np.int64).tolist()]
        self._maps: dict[int, tuple[Path, npt.NDArray[Any]]] = {}
        self._listing = lru_cache(maxsize=_LISTINGS)(self._read_listing)
        if isinstance(files, Local):
            for number in range(len(self._rows)):
                self._map(number)

    def _map(self, number: int) -> npt.NDArray[Any]:
        """A shard's tokens; a mapped file stays readable even when a cache has let go of it."""
        if number not in self._maps:
            row = self._rows[number]
            path = self._files.find(row["file"], row["tokens"] * self._dtype.itemsize, row["sha256"])
            self._maps[number] = path, np.memmap(path, dtype=self._dtype, mode="r")
        return self._maps[number][1]

    def read(self, start: int, length: int) -> npt.NDArray[Any]:
        """`length` tokens from position `start` on, going round the ring as often as needed; on-disk dtype, shape (length,)."""
        parts, position = [], start % self.tokens
        while length > 0:
            number = bisect.bisect_right(self._starts, position) - 1
            offset = position - self._starts[number]
            part = self._map(number)[offset : offset + length]
            parts.append(part)
            length -= len(part)
            position = (position + len(part)) % self.tokens
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def documents(self, start: int, length: int) -> list[Document]:
        """The documents that `read(start, length)` goes through, one entry for each time one is entered."""
        found: list[Document] = []
        position = start % self.tokens
        while length > 0:
            number = bisect.bisect_right(self._starts, position) - 1
            starts, table = self._listing(number)
            row = int(np.searchsorted(starts, position - self._starts[number], side="right")) - 1
            end = int(starts[row + 1]) + self._starts[number] if row + 1 < len(starts) else self._starts[number + 1]
            name, url, license_ = (table.column(key)[row].as_py() for key in ("id", "url", "license"))
            found.append(Document(name, url, license_, min(length, end - position)))
            length -= end - position
            position = end % self.tokens
        return found

    def lengths(self) -> Iterator[npt.NDArray[np.int64]]:
        """The tokens of each document, shard by shard."""
        for number in range(len(self._rows)):
            yield self._listed(number, ["tokens"]).column("tokens").to_numpy()

    def _read_listing(self, number: int) -> tuple[npt.NDArray[np.int64], pa.Table]:
        """Where in a shard its documents begin, and what they are."""
        table = self._listed(number, ["offset", "id", "url", "license"])
        return table.column("offset").to_numpy(), table

    def _listed(self, number: int, columns: list[str]) -> pa.Table:
        row = self._rows[number]
        path = self._files.find(row["listing"], row["listing_bytes"], row["listing_sha256"])
        try:
            return pq.read_table(path, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"the list of documents cannot be read ({error})", where=path, todo=AGAIN) from error

    def verify(self) -> None:
        """Hash every shard. Raises UserError when one is not what the index says."""
        for row in self._rows:
            path = self._files.find(row["file"], row["tokens"] * self._dtype.itemsize, row["sha256"])
            if sha256_file(path) != row["sha256"]:
                raise UserError("the shard is not the one its index describes", where=path, todo=AGAIN)

    @property
    def digest(self) -> str:
        """What identifies the tokens and where the documents in them begin."""
        return "".join(row["sha256"] + row["listing_sha256"] for row in self._rows)


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a tokens folder. Raises UserError when there is none, or this version cannot read it."""
    path = folder / INDEX
    index = read_json(path, what="index of token shards", todo="`herdbook tokens` makes one")
    if not isinstance(index, dict) or index.get("version") != VERSION:
        raise UserError(f"these token shards are not of version {VERSION}", where=path, todo=AGAIN)
    missing = {"dtype", "vocab_size", "tokenizer_sha256", "separator_id", "mixture", "sources"} - set(index)
    if missing or not isinstance(index["sources"], dict):
        raise UserError(f"the index lacks {', '.join(sorted(missing)) or 'its sources'}", where=path, todo=AGAIN)
    if index["dtype"] not in ("uint16", "uint32"):
        raise UserError(f"tokens are uint16 or uint32, not {index['dtype']!r}", where=path, todo=AGAIN)
    for name, row in index["sources"].items():
        lacking = {"tokens", "license", "shards"} - set(row if isinstance(row, dict) else ())
        if lacking or not all(set(shard) >= _ROW for shard in row["shards"]):
            raise UserError(f"the index does not describe the source {name!r} fully", where=path, todo=AGAIN)
    return index
