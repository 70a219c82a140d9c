"""The held-out split: which of the documents that stay no training may see.

A document's place is a hash of its id (or of its group, which keeps texts that share passages on one side); those of a low
place are held out. Where chance leaves a source without any, the lowest place among its documents is held out too, so that
each source can be measured. Passages of documents are judged while they are written, and that may take away the very one that
was chosen: then another is chosen when all are judged, and moved. All of it follows from places and from what stays, never
from who worked on it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from herdbook.corpus.blocks import Blocks
from herdbook.corpus.compare import Comparison
from herdbook.corpus.funnel import Funnel
from herdbook.documents import DocumentWriter, document_files, read_documents


class Split:
    """Writes documents that stay to `documents-*.parquet` and `heldout-*.parquet`, and counts them.

    Args:
        out: the corpus's folder.
        share: of documents to hold out; 0 holds none out.
        scratch: a folder for files that have to be written again.

    Attributes:
        stay: for each document of all blocks whether it was written.
    """

    def __init__(self, out: Path, blocks: Blocks, comparison: Comparison, share: float, funnel: Funnel, scratch: Path) -> None:
        self._out, self._blocks, self._funnel, self._scratch, self._share = out, blocks, funnel, scratch, share
        self.stay = np.zeros(len(blocks), bool)
        self._held = np.zeros(len(blocks), bool)
        self._limit = int(share * 2**63)
        there = np.zeros(len(blocks), bool)
        there[comparison.alive()] = True
        self._chosen = self._lowest_places(there)
        self._train, self._heldout = DocumentWriter(out, "documents"), DocumentWriter(out, "heldout")

    def write(self, number: int, place: int, row: dict[str, Any]) -> None:
        """Write the document of a number, which stays; numbers rise."""
        self.stay[number] = True
        self._put(number, row, held=place < self._limit or place in self._chosen)

    def finish(self) -> bool:
        """Give every source a held-out document that can have one; whether there is any document to train on."""
        self._chosen = self._lowest_places(self.stay, self._held)
        if self._chosen:
            self._move()
        return self._train.rows > 0

    def close(self) -> None:
        """Finish the files."""
        self._train.close()
        self._heldout.close()

    def drop(self) -> None:
        """Give all of it up; what is finished already goes too."""
        self._train.drop()
        self._heldout.drop()
        for prefix in ("documents", "heldout"):
            for path in self._out.glob(f"{prefix}-*.parquet"):
                path.unlink()

    def _put(self, number: int, row: dict[str, Any], *, held: bool) -> None:
        self._held[number] = held
        self._count(row, 1, held=held)
        (self._heldout if held else self._train).write(row)

    def _count(self, row: dict[str, Any], sign: int, *, held: bool) -> None:
        count, size = self._funnel.source(row["source"]), sign * len(row["text"].encode())
        if held:
            count.heldout_documents += sign
            count.heldout_bytes += size
        else:
            count.documents_out += sign
            count.bytes_out += size

    def _lowest_places(self, there: npt.NDArray[np.bool_], held: npt.NDArray[np.bool_] | None = None) -> set[int]:
        """For each source the lowest place, if it is not that of all: what is held out must leave something to train on.

        Args:
            there: which documents count.
            held: which are held out already; sources that have one need no other.
        """
        lowest: dict[str, int] = {}
        highest: dict[str, int] = {}
        measured: set[str] = set()
        for start, block in self._blocks.parts() if self._share else ():
            mine = slice(start, start + block.documents)
            places = block.marks()["place"][there[mine]]
            if len(places):
                lowest[block.source] = min(lowest.get(block.source, 1 << 63), int(places.min()))
                highest[block.source] = max(highest.get(block.source, 0), int(places.max()))
            if held is not None and held[mine].any():
                measured.add(block.source)
        return {place for source, place in lowest.items() if place < highest[source] and source not in measured}

    def _move(self) -> None:
        """Hold the places out that were chosen last: write the documents to train on once more, without them."""
        self._train.close()
        aside = self._scratch / "split"
        aside.mkdir()
        for path in document_files(self._out):
            shutil.move(path, aside / path.name)
        self._train = DocumentWriter(self._out, "documents")
        rows = read_documents(aside)
        for start, marks in self._blocks.marks():
            places, mine = marks["place"], slice(start, start + len(marks))
            for at in np.flatnonzero(self.stay[mine] & ~self._held[mine]).tolist():
                row = next(rows)
                self._count(row, -1, held=False)
                self._put(start + at, row, held=int(places[at]) in self._chosen)
        shutil.rmtree(aside)
