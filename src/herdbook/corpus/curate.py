"""The corpus station: from sources to documents, with a funnel that says what left and why.

    read → extract → (licence) → language → repetition → quality   batches of records, in any number of processes
    exact duplicates → near-duplicates                             here, over all documents
    → documents-*.parquet, heldout-*.parquet, removed-*.parquet, funnel.json

Records are drawn in a fixed order and results come back in that order, so the output is the same, byte for byte, for any number
of workers. What passes the filters is spooled to disk; memory holds the hashes of each document (128 bytes, by default) and a
few batches. A run that is cut off starts this station again: until its pedigree is written nothing here counts as done.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from herdbook import pedigree
from herdbook.console import Progress, Terminal
from herdbook.corpus import builtin
from herdbook.corpus.config import CorpusConfig, Source
from herdbook.corpus.dedup import choose, clusters, exact_duplicates
from herdbook.corpus.filters import Removal
from herdbook.corpus.funnel import EXAMPLES, STEPS, Funnel, example
from herdbook.corpus.passages import Passages
from herdbook.corpus.readers import read_files, source_files
from herdbook.corpus.reasons import advice, file_warnings, in_words
from herdbook.corpus.records import Record, Skip
from herdbook.corpus.urlfilter import prepare
from herdbook.corpus.work import Kept, Removed, Result, Task, Worker, skip_record, stack_keys
from herdbook.documents import SCHEMA, DocumentWriter, read_documents
from herdbook.errors import UserError, user_errors
from herdbook.facts.licenses import UNKNOWN, find_expression
from herdbook.files import PARTIAL, remove_partials, write_json
from herdbook.pool import Pool, WorkerDied
from herdbook.units import human_bytes

BATCH_BYTES = 1 << 20
BATCH_RECORDS = 512
_SKIPS_KEPT = 1000  # a source, to say what was found; the funnel counts them all
_DUPLICATES = {"exact": "exact_duplicate", "minhash": "near_duplicate"}
REMOVED_SCHEMA = pa.schema(
    [
        *SCHEMA,
        pa.field("removed_by", pa.string(), nullable=False),
        pa.field("value", pa.float64()),  # what was measured
        pa.field("threshold", pa.float64()),  # the limit it passed
        pa.field("duplicate_of", pa.string()),  # the id of the document that stays
    ]
)


def curate(cfg: CorpusConfig, out: Path, terminal: Terminal, *, workers: int | None = None) -> None:
    """Read all sources, keep what the rules of `cfg` let pass, and write the corpus to the folder `out`.

    Args:
        workers: processes to use; the number of cores by default. The output does not depend on it.

    Raises UserError when a source yields nothing, when nothing is left in the end, when a licence forbids what is asked for,
    and for what is wrong with disks and permissions.
    """
    with user_errors():
        _refuse_licenses(cfg)
        with pedigree.record(out, "corpus", cfg.model_dump(mode="json")) as rec:
            _clear(out)
            _Curation(cfg, out, terminal, workers or pedigree.cores()).run(rec)


def input_paths(cfg: CorpusConfig) -> list[Path]:
    """The files and folders that a corpus is made from, as its pedigree records them (built-in sources have none)."""
    paths: list[Path] = []
    for source in cfg.sources:
        for text in source.paths:
            path = Path(text).expanduser()
            if path.exists():
                paths.append(path)
            else:
                one = source.model_copy(update={"path": text})
                paths += [file for file, _ in source_files(one)[0]]
    url = cfg.url
    lists = [*url.blocklists, url.strict_words, url.hard_words, url.soft_words] if url.enabled else []
    lists += [cfg.c4.bad_words] if cfg.c4.enabled else []
    lists += cfg.dedup.contamination.sets
    paths += [path for name in lists if name is not None and (path := Path(name).expanduser()).exists()]
    return list(dict.fromkeys(paths))


def require_sources(cfg: CorpusConfig) -> None:
    """Raise UserError for a path of the recipe that leads nowhere, before anything is read or moved."""
    for index, source in enumerate(cfg.sources):
        for skip in source_files(source)[1]:
            if skip.reason == "name_not_utf8":
                continue
            what = "there are no files to read here" if skip.reason == "no_files" else "there is no such file or folder"
            raise UserError(f"{what} (corpus.sources.{index}.path)", where=skip.where, todo="check the path")


def _refuse_licenses(cfg: CorpusConfig) -> None:
    """With `commercial`, refuse sources whose licence forbids it before anything is read."""
    for index, source in enumerate(cfg.sources):
        license_id = builtin.license_of(source)
        if cfg.commercial and license_id and not find_expression(license_id).commercial:
            raise UserError(
                f"the licence of the source {source.name!r} ({license_id}) does not allow commercial use",
                where=f"corpus.sources.{index}", todo="leave the source out, or set corpus.commercial=false",
            )  # fmt: skip


def _clear(out: Path) -> None:
    """Take away what an earlier run left, finished or not."""
    remove_partials(out)
    for pattern in (
        "documents-*.parquet",
        "heldout-*.parquet",
        "removed-*.parquet",
        "cuts-*.parquet",
        "funnel.json",
        "contamination.json",
    ):
        for old in out.glob(pattern):
            old.unlink()


class _Curation:
    """One run of the station."""

    def __init__(self, cfg: CorpusConfig, out: Path, terminal: Terminal, workers: int) -> None:
        self.cfg, self.out, self.terminal, self.workers = cfg, out, terminal, workers
        self.sources: list[Source] = []
        self.funnel = Funnel()
        self.removed = Removed(None if cfg.removed_sample == "all" else cfg.removed_sample)
        self.skips: dict[str, list[Skip]] = {source.name: [] for source in cfg.sources}
        self.texts: Counter[str] = Counter()
        self.licenses: set[str] = set()
        self.exact: list[bytes] = []
        self.keys: list[np.ndarray[Any, np.dtype[np.uint64]]] = []
        self.sizes: list[int] = []
        self.ids: list[str] = []
        self.source_of: list[str] = []
        self.places: list[int] = []  # where the held-out split sees a document, in [0, 2^63)

    def run(self, rec: pedigree.Record) -> None:
        """All of it, leaving the counts in `rec`."""
        self.sources = builtin.prepare(self.cfg.sources, self.terminal, self.workers)
        if not self.sources:
            raise UserError("none of the sources is there", where="corpus.sources", todo="see the notices above")
        spool = self.out / f".spool{PARTIAL}"
        try:
            self._judge(spool)
            self._demand_something_read()
            self._compare_and_write(spool)
        finally:
            shutil.rmtree(spool, ignore_errors=True)
        self._write_removed()
        write_json(self.out / "funnel.json", self._funnel_dict())
        self._note(rec)
        self._show()

    def _judge(self, spool: Path) -> None:
        """Everything that looks at one document at a time; what passes goes to the spool."""
        # Lists of domains are made ready once, here; the workers map them.
        url = prepare(self.cfg.url, builtin.cache_folder()) if self.cfg.url.enabled else self.cfg.url
        pool: Pool[Task, Result] = Pool(Worker, (self.cfg.model_copy(update={"url": url}),), self.workers, _rescue)
        with (
            self.terminal.progress("curating") as progress,
            DocumentWriter(spool, "documents") as writer,
            closing(pool.map(self._tasks())) as results,
        ):
            for result in results:
                self.funnel.merge(result.funnel)
                self.removed.merge(result.removed)
                self.texts[result.source] += result.texts
                skips = self.skips[result.source]
                skips += result.skips[: max(0, _SKIPS_KEPT - len(skips))]
                for kept in result.kept:
                    self._take(kept, writer)
                _progress(progress, self.funnel, self.cfg.steps[-1])

    def _take(self, kept: Kept, writer: DocumentWriter) -> None:
        writer.write(kept.row)
        self.exact.append(kept.exact)
        self.keys.append(kept.keys)
        self.sizes.append(kept.size)
        self.ids.append(kept.row["id"])
        self.source_of.append(kept.row["source"])
        self.places.append(kept.place)

    def _tasks(self) -> Iterator[Task]:
        """Batches of one source each, drawn while they are worked on."""
        for source in self.sources:
            items: list[Record | Skip] = []
            size = 0
            for item in self._items(source):
                items.append(item)
                size += len(item.payload) if isinstance(item, Record) else 0
                if size >= BATCH_BYTES or len(items) >= BATCH_RECORDS:
                    yield Task(source, items)
                    items, size = [], 0
            if items:
                yield Task(source, items)

    def _items(self, source: Source) -> Iterator[Record | Skip]:
        limit = self.cfg.limits.max_record_bytes
        records = 0
        for item in builtin.read(source, limit) if source.builtin else read_files(source, limit):
            yield item
            records += isinstance(item, Record)
            if records == source.limit:
                return

    def _demand_something_read(self) -> None:
        """Raise UserError for a source without a single record that is text, saying what was found instead."""
        for source in self.sources:
            if self.texts[source.name]:
                continue
            skips = self.skips[source.name]
            raise UserError(f"the source {source.name!r} has nothing that can be read: {in_words(skips)}",
                            where=", ".join(source.paths) or f"builtin: {source.builtin}", todo=advice(skips))  # fmt: skip

    def _compare_and_write(self, spool: Path) -> None:
        """Find duplicates, and write what stays to its side of the split."""
        keep = self._find_duplicates()
        passages = Passages(self.cfg.dedup, self.funnel, self.ids)
        alive = [index for index, (reason, _) in enumerate(keep) if reason is None]
        passages.look(
            lambda: (row for index, row in enumerate(read_documents(spool)) if keep[index][0] is None), alive, self.out
        )
        heldout_places = self._heldout_places([reason is None for reason, _ in keep])
        with (
            self.terminal.progress("writing", len(keep)) as progress,
            DocumentWriter(self.out, "documents") as train,
            DocumentWriter(self.out, "heldout") as heldout,
        ):
            for index, row in enumerate(read_documents(spool)):
                progress.advance()
                reason, leader = keep[index]
                if reason is not None:
                    self._drop_duplicate(row, index, reason, leader)
                    continue
                removal = passages.judge(row)
                if removal is not None:
                    self.removed.add(row, removal, self.cfg.seed)
                    continue
                self.sizes[index] = len(row["text"].encode())
                self.licenses.add(row["license"])
                count = self.funnel.source(row["source"])
                if self.places[index] < self.cfg.heldout * 2**63 or self.places[index] in heldout_places:
                    heldout.write(row)
                    count.heldout_documents += 1
                    count.heldout_bytes += self.sizes[index]
                else:
                    train.write(row)
                    count.documents_out += 1
                    count.bytes_out += self.sizes[index]
            passages.write(self.out)
            if not train.rows:
                raise UserError(
                    f"no document is left: {self._losses()}", todo="loosen the rule that removes most, or give more text"
                )

    def _heldout_places(self, stays: list[bool]) -> set[int]:
        """For each source that chance leaves without a held-out document, the lowest place, so that it can be measured too."""
        places: dict[str, set[int]] = {}
        for source, place, alive in zip(self.source_of, self.places, stays, strict=True):
            if alive:
                places.setdefault(source, set()).add(place)
        lowest = {min(found) for found in places.values() if len(found) > 1}
        return lowest if self.cfg.heldout else set()

    def _find_duplicates(self) -> list[tuple[str | None, int]]:
        """For each document the rule that removes it, or None, and the index of the document that stays in its place."""
        count = len(self.sizes)
        sizes = np.array(self.sizes, np.int64)
        leader = np.arange(count)
        reason: list[str | None] = [None] * count
        alive = np.ones(count, bool)
        dedup = self.cfg.dedup
        if dedup.exact:
            alive = self._apply("exact", alive, leader, reason, lambda: exact_duplicates(self.exact))
        if dedup.minhash.enabled:
            keys = stack_keys(self.keys, dedup.minhash.bands)
            self._apply("minhash", alive, leader, reason, lambda: choose(clusters(keys[alive]), sizes[alive], dedup.keep))
        return list(zip(reason, leader.tolist(), strict=True))

    def _apply(
        self,
        name: str,
        alive: np.ndarray[Any, np.dtype[np.bool_]],
        leader: np.ndarray[Any, np.dtype[np.int64]],
        reason: list[str | None],
        find: Callable[[], np.ndarray[Any, np.dtype[np.int64]]],
    ) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Run one comparison over the documents still alive; those whose leader is another one go."""
        step = self.funnel.steps[name]
        began = time.process_time()
        places = np.flatnonzero(alive)
        leaders = places[find()]
        step.cpu_s += time.process_time() - began
        sizes = np.array(self.sizes, np.int64)
        step.documents_in, step.bytes_in = len(places), int(sizes[places].sum())
        gone = places[leaders != places]
        leader[gone] = leaders[leaders != places]
        for index in gone.tolist():
            reason[index] = _DUPLICATES[name]
        left = alive.copy()
        left[gone] = False
        step.documents_out, step.bytes_out = int(left.sum()), int(sizes[left].sum())
        step.reasons.update([str(reason[index]) for index in gone.tolist()])
        return left

    def _drop_duplicate(self, row: dict[str, Any], index: int, reason: str, leader: int) -> None:
        """Keep a duplicate in the sample, with the share of bands it has in common with the one that stays."""
        exact = reason == _DUPLICATES["exact"]
        value = 1.0 if exact else float((self.keys[index] == self.keys[leader]).mean())
        threshold = None if exact else 1 / self.cfg.dedup.minhash.bands
        self.removed.add(row, Removal(reason, value, threshold), self.cfg.seed, duplicate_of=self.ids[leader])
        step = self.funnel.steps["exact" if exact else "minhash"]
        if len(step.examples) < EXAMPLES:
            shown = example(row["id"], row["url"], reason, value, threshold, row["text"])
            step.examples.append({**shown, "duplicate_of": self.ids[leader]})

    def _losses(self) -> str:
        """The rules that removed most, in words."""
        reasons: Counter[str] = Counter()
        for step in self.funnel.steps.values():
            reasons.update(step.reasons)
        return ", ".join(f"{count:,} by {reason}" for reason, count in reasons.most_common(4)) or "nothing was read"

    def _write_removed(self) -> None:
        with DocumentWriter(self.out, "removed", REMOVED_SCHEMA) as writer:
            for row in self.removed.sorted_rows():
                writer.write(row)

    def _funnel_dict(self) -> dict[str, Any]:
        described = {
            source.name: {"description": builtin.describe(source), "license": builtin.license_of(source) or UNKNOWN}
            for source in self.sources
        }
        return self.funnel.as_dict(described, set(STEPS) - {*self.cfg.steps, *self.cfg.dedup.steps})

    def _note(self, rec: pedigree.Record) -> None:
        """Inputs, licences and counts for the pedigree."""
        for path in input_paths(self.cfg):
            rec.add_input(path, "source")
        for source in self.sources:
            for thing in builtin.things(source):
                rec.add_thing(thing.name, f"source {source.name}", thing.sha256, license_id=thing.license, note=thing.note)
        for license_id in sorted(self.licenses):
            rec.add_license(license_id)
        rows = self.funnel.sources.values()
        rec.counts.update(
            documents_in=self.funnel.steps["read"].documents_in,
            documents_out=sum(row.documents_out for row in rows),
            heldout_documents=sum(row.heldout_documents for row in rows),
            bytes_in=self.funnel.steps["read"].bytes_in,
            bytes_out=sum(row.bytes_out for row in rows),
            heldout_bytes=sum(row.heldout_bytes for row in rows),
        )

    def _show(self) -> None:
        """The funnel as a table, and what could not be read."""
        facts = self._funnel_dict()
        rows = []
        for step in facts["steps"]:
            lost = ", ".join(f"{count:,} {reason}" for reason, count in list(step["reasons"].items())[:4])
            edits = ", ".join(f"{count:,} {rule}" for rule, count in list(step["edits"].items())[:3])
            lost += f"{'; ' if lost else ''}cut or masked: {edits}" if edits else ""
            rows.append((step["title"], f"{step['documents_in']:,}", f"{step['documents_out']:,}",
                         human_bytes(step["bytes_out"]), lost))  # fmt: skip
        self.terminal.table(["step", "documents in", "out", "bytes out", "removed, by rule"], rows, title="Funnel")
        for name, skips in self.skips.items():
            for line in file_warnings(name, skips):
                self.terminal.warn(line)


def _rescue(task: Task, ask: Callable[[Task], Result]) -> Result:
    """After a worker died on a batch: each record alone, giving up those that kill."""
    total: Result | None = None
    for item in task.items:
        single = Task(task.source, [item])
        try:
            part = ask(single)
        except WorkerDied:
            if isinstance(item, Skip):
                raise
            crash = Skip("crashed", item.url or item.id, len(item.payload), "the process that worked on this record died")
            part = Result(task.source.name, Funnel(), Removed(None))
            skip_record(crash, task.source, part)
        if total is None:
            total = part
        else:
            total.merge(part)
    assert total is not None
    return total


def _progress(progress: Progress, funnel: Funnel, last: str) -> None:
    read = funnel.steps["read"]
    passed = funnel.steps[last].documents_out
    progress.show(f"curating: {read.documents_in:,} read ({human_bytes(read.bytes_in)}), {passed:,} pass the filters")
