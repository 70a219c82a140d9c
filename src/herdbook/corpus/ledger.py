"""The ledger: every document that was removed with the rule, the measured value and the threshold; and every passage cut out.

`removed-*.parquet` has one row for each removed document. Its text is kept for a sample of each rule, for a look; with
`removed_sample: all` for every one. `cuts-*.parquet` has passages that were cut out of documents that passed the filters: a
sample of each rule, or all of them; for copies it says in which document the passage stands first. What documents have of
evaluation sets is told in full, with the item it is of, and its text for a sample.

Cuts are noted before it is known whether their document stays: a copy of it, or an evaluation set, may take it away later. The
`decision` says so: `cut`, `masked`, `kept` (seen and left alone), or `removed` with its whole document.

A sample is what has the lowest hash of all that a rule removed, so it does not depend on the order or number of tasks. Tasks
write ledgers of their own, with at least the texts that may be in the sample; `assemble` makes one of them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from herdbook.documents import SCHEMA, DocumentWriter

REMOVED_SCHEMA = pa.schema(
    [
        *(
            pa.field("text", pa.large_string()) if field.name == "text" else field for field in SCHEMA
        ),  # null outside the sample
        pa.field("removed_by", pa.string(), nullable=False),
        pa.field("value", pa.float64()),  # what was measured
        pa.field("threshold", pa.float64()),  # the limit it passed
        pa.field("detail", pa.string()),  # the word, domain or mark that decided, where there is one
        pa.field("duplicate_of", pa.string()),  # the id of the document that stays
    ]
)
CUTS_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # of the document
        pa.field("number", pa.int64(), nullable=False),  # of the cut in its document
        pa.field("rule", pa.string(), nullable=False),
        pa.field("decision", pa.string(), nullable=False),  # cut, masked, kept, or removed with its document
        pa.field("text", pa.string()),  # the beginning of what was cut; of rules told in full null outside the sample
        pa.field("words", pa.int64(), nullable=False),
        pa.field("also_in", pa.string()),  # the document a copied passage stands in first
        pa.field("also_at", pa.int64()),  # the word of that document, or of the item
        pa.field("evaluation_set", pa.string()),
        pa.field("item", pa.string()),  # of the evaluation set
    ]
)
# In ledgers of blocks also which of the block's documents a cut is of: ids need not be unique.
PART_CUTS_SCHEMA = CUTS_SCHEMA.append(pa.field("document", pa.int64()))
CONTAMINATION = "contamination"
TOLD_IN_FULL = frozenset({CONTAMINATION})  # rules whose every cut has a row, whatever the sample
EXCERPT = 300  # characters of a cut
CUTS_A_SAMPLE = 20  # cuts kept for each removed document that is kept
Sample = int | Literal["all"]
_SCAN_ROWS = 1024


def hash_id(id_: str, seed: int, purpose: str) -> int:
    """A 63-bit hash of a document's id, another one for every seed and purpose."""
    return xxhash.xxh3_64_intdigest(f"{purpose}:{seed}:{id_}".encode()) >> 1


class Lowest:
    """For each rule the keys (hash, id, number) that are the lowest so far."""

    def __init__(self, limit: Sample) -> None:
        self.limit = limit
        self._heaps: dict[str, list[tuple[int, str, int]]] = {}
        self._known: set[tuple[str, str, int]] = set()

    def offer(self, rule: str, hash_: int, id_: str, number: int = 0) -> bool:
        """Take part; whether the key is among the lowest now."""
        if self.limit == "all":
            return True
        heap = self._heaps.setdefault(rule, [])
        # Negated, since heapq keeps the smallest on top and the largest hash is the one to go.
        entry = (-hash_, id_, number)
        if not self.limit or (rule, id_, number) in self._known:  # one of several with the same id is enough for a sample
            return False
        if len(heap) == self.limit:
            gone = heapq.heappushpop(heap, entry)
            self._known.discard((rule, *gone[1:]))
            if gone == entry:
                return False
        else:
            heapq.heappush(heap, entry)
        self._known.add((rule, id_, number))
        return True

    def chosen(self) -> set[tuple[str, str, int]]:
        """The keys that stayed, as (rule, id, number)."""
        return set(self._known)


class LedgerWriter:
    """The ledger of a part of a run: `FOLDER/PREFIX-removed-00000.parquet` and `…-cuts-…`.

    Args:
        sample: documents whose text is kept, a rule; or all.
        seed: of the hash that draws the sample.
    """

    def __init__(self, folder: Path, prefix: str, sample: Sample, seed: int) -> None:
        self._removed = DocumentWriter(folder, f"{prefix}-removed", REMOVED_SCHEMA, rows_per_file=1 << 62)
        self._cuts = DocumentWriter(folder, f"{prefix}-cuts", PART_CUTS_SCHEMA, rows_per_file=1 << 62)
        self._texts, self._passages = Lowest(sample), Lowest(cut_sample(sample))
        self._seed = seed

    def remove(self, row: dict[str, Any]) -> None:
        """Add a removed document, a row of `REMOVED_SCHEMA`."""
        stays = self._texts.offer(row["removed_by"], hash_id(row["id"], self._seed, "removed"), row["id"])
        self._removed.write(row if stays else {**row, "text": None})

    def cut(self, row: dict[str, Any]) -> None:
        """Add a passage, a row of `PART_CUTS_SCHEMA` (`decision` is `cut` if it is not said), if it may be in the sample."""
        key = hash_id(f"{row['id']}:{row['number']}", self._seed, "cut")
        stays = self._passages.offer(row["rule"], key, row["id"], row["number"])
        if stays or row["rule"] in TOLD_IN_FULL:
            self._cuts.write({"decision": "cut", **row, "text": row["text"][:EXCERPT] if stays else None})

    def drop(self) -> None:
        """Give both files up."""
        self._removed.drop()
        self._cuts.drop()

    def close(self) -> None:
        """Finish both files."""
        self._removed.close()
        self._cuts.close()


def cut_sample(sample: Sample) -> Sample:
    """How many cuts of a rule are kept."""
    return "all" if sample == "all" else CUTS_A_SAMPLE * sample


def part_files(folder: Path, prefix: str) -> tuple[Path, Path]:
    """The two files of a `LedgerWriter`."""
    return folder / f"{prefix}-removed-00000.parquet", folder / f"{prefix}-cuts-00000.parquet"


def assemble(
    parts: Sequence[tuple[Path, Path]],
    out: Path,
    sample: Sample,
    seed: int,
    stay: Sequence[npt.NDArray[np.bool_] | None] | None = None,
) -> None:
    """Make one ledger of the ledgers of tasks, in their order: `removed-*.parquet` and `cuts-*.parquet` in `out`.

    Args:
        stay: for each part which of its documents stay in the end; cuts of the others are marked as removed. None where a
            part says so itself.
    """
    texts = Lowest(sample)
    passages = Lowest(cut_sample(sample))
    if sample != "all":
        for row in _rows((removed for removed, _ in parts), ["removed_by", "id"]):
            texts.offer(row["removed_by"], hash_id(row["id"], seed, "removed"), row["id"])
        for row in _rows((cuts for _, cuts in parts), ["rule", "id", "number"]):
            passages.offer(row["rule"], hash_id(f"{row['id']}:{row['number']}", seed, "cut"), row["id"], row["number"])
    chosen, chosen_cuts = texts.chosen(), passages.chosen()
    with DocumentWriter(out, "removed", REMOVED_SCHEMA) as writer:
        for table in _tables(removed for removed, _ in parts):
            if sample != "all":
                keys = zip(table["removed_by"].to_pylist(), table["id"].to_pylist(), strict=True)
                stays = pa.array([_take(chosen, (rule, id_, 0)) for rule, id_ in keys], pa.bool_())
                text = pc.if_else(stays, table["text"], pa.scalar(None, pa.large_string()))
                table = _replace(table, "text", text)
            writer.write_table(table)
    with DocumentWriter(out, "cuts", CUTS_SCHEMA) as writer:
        for (_, cuts), stays in zip(parts, stay if stay is not None else [None] * len(parts), strict=True):
            for table in _tables([cuts]):
                if stays is not None and len(table):
                    gone = pa.array(~stays[table["document"].to_numpy()])
                    table = _replace(table, "decision", pc.if_else(gone, "removed", table["decision"]))
                writer.write_table(table if sample == "all" else _sampled(table, chosen_cuts))


def _sampled(table: pa.Table, chosen: set[tuple[str, str, int]]) -> pa.Table:
    """The cuts in the sample, and without their text those that are told in full."""
    rules = table["rule"].to_pylist()
    taken = [_take(chosen, key) for key in zip(rules, table["id"].to_pylist(), table["number"].to_pylist(), strict=True)]
    text = pc.if_else(pa.array(taken, pa.bool_()), table["text"], pa.scalar(None, pa.string()))
    wanted = [mine or rule in TOLD_IN_FULL for mine, rule in zip(taken, rules, strict=True)]
    return _replace(table, "text", text).filter(pa.array(wanted, pa.bool_()))


def _replace(table: pa.Table, name: str, column: Any) -> pa.Table:
    at = table.column_names.index(name)
    return table.set_column(at, table.schema.field(at), column)


def _take(chosen: set[tuple[str, str, int]], key: tuple[str, str, int]) -> bool:
    """Whether a row is in the sample; of several with the same key the first is."""
    if key in chosen:
        chosen.remove(key)
        return True
    return False


def _rows(paths: Iterable[Path], columns: list[str]) -> Iterator[dict[str, Any]]:
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=columns):
                yield from batch.to_pylist()


def _tables(paths: Iterable[Path]) -> Iterator[pa.Table]:
    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_SCAN_ROWS):
                yield pa.Table.from_batches([batch])
