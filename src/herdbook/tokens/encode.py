"""What a worker of the station does: rows of parquet in, token ids out. Imports little, since every worker begins with it."""

from __future__ import annotations

import itertools
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from herdbook.documents import document_files
from herdbook.errors import UserError
from herdbook.tokens.shards import Piece

BATCH_ROWS = 256
BYTES_PER_TASK = 4_000_000  # about a second of encoding; what comes before it in its row group is read for nothing


@dataclass(frozen=True)
class Task:
    """Some rows of a row group of a parquet file.

    Attributes:
        first, last: the rows from `first` up to `last`, that one not included.
    """

    path: Path
    row_group: int
    first: int
    last: int
    bytes: int


def open_documents(path: Path) -> pq.ParquetFile:
    """A file of documents. Raises UserError when it is broken or lacks a column."""
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise UserError(f"this is not a whole parquet file ({error})", where=path, todo="write it again") from error
    missing = [name for name in ("id", "text", "url", "source", "license") if name not in file.schema_arrow.names]
    if missing:
        file.close()
        raise UserError(
            f"the column {missing[0]!r} is missing", where=path, todo="`herdbook curate` writes all that are needed"
        )
    return file


def tasks_of(corpus: Path) -> list[Task]:
    """The rows of the training documents of a corpus, in order, cut into tasks. Raises UserError when a file is broken."""
    tasks = []
    for path in document_files(corpus):
        with open_documents(path) as file:
            column = file.metadata.schema.names.index("text")
            for group in range(file.metadata.num_row_groups):
                facts = file.metadata.row_group(group)
                size = int(facts.column(column).total_uncompressed_size)
                parts = max(1, min(facts.num_rows, -(-size // BYTES_PER_TASK)))
                cuts = [facts.num_rows * part // parts for part in range(parts + 1)]
                tasks += [Task(path, group, first, last, size // parts) for first, last in itertools.pairwise(cuts)]
    return tasks


class Encode:
    """Encodes tasks.

    Args:
        tokenizer: tokenizer.json as text, with truncation and padding switched off; `folder`: where it is from.
        separator: the id that begins every document.
        sources: those that are encoded; documents of others are passed over.
    """

    def __init__(self, tokenizer: str, folder: Path, separator: int, dtype: str, sources: frozenset[str]) -> None:
        self.folder, self.separator, self.dtype, self.sources = folder, separator, dtype, sources
        self._encoder = Tokenizer.from_str(tokenizer)
        self._encoder.encode_special_tokens = True  # what looks like a special token stays text; tokenizer.json cannot say so

    def __call__(self, task: Task) -> list[Piece]:
        """The documents of a task by source, in order of first appearance. Raises UserError when the file is broken."""
        pieces: dict[str, Piece] = {}
        parts: dict[str, list[npt.NDArray[Any]]] = {}
        columns = ["id", "text", "url", "source", "license"]
        try:
            with open_documents(task.path) as file:
                seen = 0
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[task.row_group], columns=columns):
                    first, last = max(0, task.first - seen), min(len(batch), task.last - seen)
                    if first < last:
                        rows = batch.slice(first, last - first).to_pylist()
                        self._encode([row for row in rows if row["source"] in self.sources], pieces, parts)
                    seen += len(batch)
                    if seen >= task.last:
                        break
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"this is not a whole parquet file ({error})", where=task.path, todo="write it again") from error
        for name, piece in pieces.items():
            piece.tokens = np.concatenate(parts[name])
        return list(pieces.values())

    def _encode(self, rows: list[dict[str, Any]], pieces: dict[str, Piece], parts: dict[str, list[npt.NDArray[Any]]]) -> None:
        by_source: dict[str, array[int]] = {}
        encoded = self._encoder.encode_batch_fast([row["text"] for row in rows], add_special_tokens=False)
        for row, found in zip(rows, encoded, strict=True):
            ids, name = found.ids, row["source"]
            piece = pieces.setdefault(name, Piece(name, np.empty(0)))
            piece.lengths.append(len(ids) + 1)
            piece.ids.append(row["id"])
            piece.urls.append(row["url"])
            piece.licenses.append(row["license"])
            piece.bytes += len(row["text"].encode())
            flat = by_source.setdefault(name, array("I"))  # half the time of a list that becomes an array
            flat.append(self.separator)
            flat.extend(ids)
        for name, flat in by_source.items():
            tokens = np.frombuffer(flat, dtype=np.uintc).astype(self.dtype)
            documents = sum(row["source"] == name for row in rows)
            if int(np.count_nonzero(tokens == self.separator)) != documents:
                raise UserError(
                    f"this tokenizer turns some text into its own separator (id {self.separator})", where=self.folder,
                    todo="mark that token as special in tokenizer.json",
                )  # fmt: skip
            parts.setdefault(name, []).append(tokens)
