"""What jobs leave on disk: blocks of documents that passed the filters, each whole or absent.

A block is what came of up to 64 MiB of records. In the folder of its job it is
- `NNNN-documents-00000.parquet`: the documents kept;
- `NNNN.marks`: for each of them what comparing asks for (`marks_type`), in the same order;
- `NNNN-removed-00000.parquet`, `NNNN-cuts-00000.parquet`: its ledger;
- `NNNN.json`: counts; written last, so a block without it is made again.

`Blocks` shows the blocks of all jobs as one sequence of documents, numbered from 0, without holding it in memory.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from herdbook.corpus.funnel import Funnel
from herdbook.corpus.ledger import LedgerWriter, Sample, part_files
from herdbook.corpus.records import Skip
from herdbook.corpus.work import Result
from herdbook.documents import DocumentWriter, read_documents
from herdbook.files import PARTIAL, read_json, sync, write_json

Marks = npt.NDArray[Any]
SKIPS_KEPT = 100  # a block, to say what was found; the ledger has them all


def marks_type(bands: int) -> np.dtype[Any]:
    """One document's marks; see `work.Kept`."""
    return np.dtype([("exact", ">u8", (2,)), ("place", "<u8"), ("size", "<u8"), ("url", "<u8"), ("keys", "<u8", (bands,))])


class BlockWriter:
    """Writes one block; nothing of it counts before `commit`.

    Args:
        folder: of the job.
        bands: keys a document has.
        sample: how many removed documents keep their text.
    """

    def __init__(self, folder: Path, number: int, bands: int, sample: Sample, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._name = folder, f"{number:04d}"
        (folder / f"{self._name}.json").unlink(missing_ok=True)
        self._documents = DocumentWriter(folder, f"{self._name}-documents", rows_per_file=1 << 62)
        self._ledger = LedgerWriter(folder, self._name, sample, seed)
        self._type = marks_type(bands)
        self._aside = folder / f".{self._name}.marks{PARTIAL}"
        self._marks = self._aside.open("wb")
        self._facts: dict[str, Any] = {"texts": 0, "documents": 0, "source": ""}
        self._skips: list[list[Any]] = []
        self._funnel = Funnel()

    def add(self, result: Result) -> None:
        """Add what came of the next records."""
        marks = np.zeros(len(result.kept), self._type)
        for number, (mark, kept) in enumerate(zip(marks, result.kept, strict=True), self._facts["documents"]):
            self._documents.write(kept.row)
            for row in kept.cuts:
                self._ledger.cut({**row, "document": number})
            mark["exact"] = np.frombuffer(kept.exact, ">u8")
            mark["place"], mark["size"], mark["url"], mark["keys"] = kept.place, kept.size, kept.url, kept.keys
        self._marks.write(marks.tobytes())
        for row in result.removed:
            self._ledger.remove(row)
        self._funnel.merge(result.funnel)
        self._facts["source"] = result.source
        self._facts["texts"] += result.texts
        self._facts["documents"] += len(result.kept)
        for skip in result.skips[: max(0, SKIPS_KEPT - len(self._skips))]:
            self._skips.append([skip.reason, skip.where, skip.bytes, skip.detail])

    def commit(self, items: int, digest: str) -> None:
        """Finish the block, made of so many items of the reader, whose names have this hash."""
        self._documents.close()
        self._ledger.close()
        self._marks.close()
        sync(self._aside)
        self._aside.replace(self._folder / f"{self._name}.marks")
        write_json(
            self._folder / f"{self._name}.json",
            {**self._facts, "items": items, "digest": digest, "skips": self._skips, "funnel": self._funnel.to_json()},
        )

    def drop(self) -> None:
        """Give up what is half-written."""
        self._marks.close()
        self._documents.drop()
        self._ledger.drop()
        for path in (*self._folder.glob(f".{self._name}*{PARTIAL}"), *self._folder.glob(f"{self._name}[-.]*")):
            path.unlink(missing_ok=True)


def committed(folder: Path, number: int) -> tuple[int, str] | None:
    """How many items of the reader went into a block, and the hash of their names; None if it is not whole."""
    marker = folder / f"{number:04d}.json"
    facts = read_json(marker, what="block") if marker.exists() else None
    return (int(facts["items"]), str(facts["digest"])) if facts is not None else None


class Block:
    """One block on disk."""

    def __init__(self, folder: Path, number: int, bands: int) -> None:
        self._folder, self._name = folder, f"{number:04d}"
        facts = self._facts()
        self.documents, self.texts, self.source = int(facts["documents"]), int(facts["texts"]), str(facts["source"])
        self.ledger = part_files(folder, self._name)
        self._type = marks_type(bands)

    def _facts(self) -> dict[str, Any]:
        return dict(read_json(self._folder / f"{self._name}.json", what="block"))

    def counts(self) -> tuple[Funnel, list[Skip]]:
        """What was counted, and some of what could not be read; read from disk each time."""
        facts = self._facts()
        return Funnel.from_json(facts["funnel"]), [Skip(*row) for row in facts["skips"]]

    @property
    def path(self) -> Path:
        """The documents."""
        return self._folder / f"{self._name}-documents-00000.parquet"

    def marks(self) -> Marks:
        """The marks of its documents, mapped from disk."""
        path = self._folder / f"{self._name}.marks"
        return np.memmap(path, self._type, "r", shape=(self.documents,)) if self.documents else np.zeros(0, self._type)


class Blocks:
    """The documents of all blocks, in order."""

    def __init__(self, blocks: list[Block]) -> None:
        self.blocks = blocks
        self._starts = list(accumulate((block.documents for block in blocks), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def parts(self) -> Iterator[tuple[int, Block]]:
        """Each block that has documents, and the number of its first one."""
        for start, block in zip(self._starts, self.blocks, strict=False):
            if block.documents:
                yield start, block

    def marks(self) -> Iterator[tuple[int, Marks]]:
        """The number of the first document of each block, and the marks of the block."""
        for start, block in self.parts():
            yield start, block.marks()

    def rows(self) -> Iterator[dict[str, Any]]:
        """The documents, one by one."""
        for block in self.blocks:
            if block.documents:
                yield from read_documents(block.path)

    def ids(self) -> Iterator[str]:
        """The ids of the documents, one by one."""
        for block in self.blocks:
            yield from pq.read_table(block.path, columns=["id"])["id"].to_pylist()

    def mark(self, number: int) -> Any:
        """The marks of one document."""
        block = bisect.bisect_right(self._starts, number) - 1
        return self.blocks[block].marks()[number - self._starts[block]]


class Names:
    """The ids of all documents in a file, to look one up by its number.

    Args:
        path: of the file to make; scratch.
    """

    def __init__(self, blocks: Blocks, path: Path) -> None:
        self._ends = np.zeros(len(blocks) + 1, np.uint64)
        at = 0
        with path.open("wb") as stream:
            for number, id_ in enumerate(blocks.ids(), 1):
                stream.write(name := id_.encode())
                at += len(name)
                self._ends[number] = at
        self._bytes: Any = np.memmap(path, np.uint8, "r") if at else np.zeros(0, np.uint8)

    def __getitem__(self, number: int) -> str:
        return bytes(self._bytes[int(self._ends[number]) : int(self._ends[number + 1])]).decode()
