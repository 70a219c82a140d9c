"""The corpus station: from sources to documents, with a funnel that says what left and why.

    jobs      read → addresses → rights → extract → … → masked      each alone, in any process; leaves blocks (jobs.py, work.py)
    compare   exact duplicates → near-duplicates → addresses        over all documents, through files (compare.py)
    write     passages → documents-*, heldout-*, removed-*, cuts-*.parquet, funnel.json

What is done lies in `OUT/work` until all is; a run that is cut off, however it was, goes on from there. Jobs and blocks are cut
by the inputs alone and taken in their order, so the output is the same, byte for byte, whoever worked on it.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from herdbook import pedigree
from herdbook.console import Terminal
from herdbook.corpus import builtin
from herdbook.corpus.blocks import SKIPS_KEPT, Blocks, Names
from herdbook.corpus.compare import REASONS, STEP_OF, Comparison, kept_addresses
from herdbook.corpus.config import CorpusConfig, Source
from herdbook.corpus.executors import do_jobs
from herdbook.corpus.extract import check_engine
from herdbook.corpus.filters import Removal
from herdbook.corpus.funnel import EXAMPLES, STEPS, Funnel, example
from herdbook.corpus.jobs import PLAN, Job, blocks_of, is_done, list_paths, plan_jobs, read_plan, write_plan
from herdbook.corpus.ledger import LedgerWriter, assemble, part_files
from herdbook.corpus.passages import Passages
from herdbook.corpus.places import is_url
from herdbook.corpus.readers import source_files
from herdbook.corpus.reasons import REASONS as READ_REASONS
from herdbook.corpus.reasons import advice, file_warnings, in_words
from herdbook.corpus.records import Skip
from herdbook.corpus.split import Split
from herdbook.corpus.urlfilter import prepare
from herdbook.corpus.urls import SEEN, SeenUrls, seen_file
from herdbook.corpus.work import removed_row
from herdbook.errors import UserError, user_errors
from herdbook.facts.licenses import UNKNOWN, find_expression
from herdbook.files import lock, remove_partials, sha256_json, write_json
from herdbook.units import human_bytes

WORK = "work"  # the folder in a corpus's that holds what is done of it
LOCK = ".lock"


def curate(cfg: CorpusConfig, out: Path, terminal: Terminal, *, workers: int | None = None) -> None:
    """Read all sources, keep what the rules of `cfg` let pass, and write the corpus to the folder `out`.

    What an earlier run with the same settings and inputs has done in `out` is taken over.

    Args:
        workers: processes to use; the number of cores by default. The output does not depend on it.

    Raises UserError when no source yields anything, when files cannot be fetched, when nothing is left in the end, when a
    licence forbids what is asked for, and for what is wrong with disks and permissions.
    """
    with user_errors():
        refuse_licenses(cfg)
        check_engine(cfg.extract)
        with _locked(out):
            with pedigree.record(out, "corpus", cfg.identity()) as rec:
                _clear(out)
                _Curation(cfg, out, terminal, workers or pedigree.cores()).run(rec)
            # Only now, when all is written and hashed, nothing is lost with it.
            (out / WORK / PLAN).unlink(missing_ok=True)
            shutil.rmtree(out / WORK, ignore_errors=True)
        (out / LOCK).unlink(missing_ok=True)


def plan(cfg: CorpusConfig, out: Path, terminal: Terminal) -> int:
    """Write the list of jobs into `out`, for others to do part by part; how many there are. Raises UserError as `curate`."""
    with user_errors():
        refuse_licenses(cfg)
        check_engine(cfg.extract)
        with _locked(out):
            return len(_Curation(cfg, out, terminal, pedigree.cores()).jobs())


def curate_part(cfg: CorpusConfig, out: Path, terminal: Terminal, part: int, parts: int, *, workers: int | None = None) -> None:
    """Do every `parts`-th job of a planned run, beginning with number `part`; `curate` then compares and writes.

    Any number of processes, on any machines that see the folder, may do so at once. Raises UserError when there is no plan in
    `out`, or one for other settings or inputs.
    """
    with user_errors():
        if pedigree.exists(out):
            terminal.say(f"{out} is whole: there is nothing left to do in parts")
            return
        work = _Curation(cfg, out, terminal, workers or 1)
        work.sources = builtin.prepare(cfg.sources, terminal, work.workers)
        with _locked(out, shared=True):
            jobs = read_plan(out / WORK, cfg, work.sources)
            if jobs is None:
                raise UserError(
                    "there is no plan for these settings and inputs here", where=out / WORK, todo="make one with --slurm PARTS"
                )
            work.do(mine := jobs[part::parts], isolated=True)
        terminal.say(f"part {part}/{parts}: {len(mine)} of {len(jobs)} jobs done")


@contextmanager
def _locked(out: Path, *, shared: bool = False) -> Iterator[None]:
    """Parts may work in one folder at once, and nobody beside them or beside a whole run."""
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(out / LOCK, shared=shared))
        except BlockingIOError:
            raise UserError("another herdbook is working here", where=out, todo="wait for it, or stop it") from None
        yield


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
    paths += list_paths(cfg)
    return list(dict.fromkeys(paths))


def require_sources(cfg: CorpusConfig) -> None:
    """Raise UserError for a path of the recipe that leads nowhere, before anything is read or moved."""
    for index, source in enumerate(cfg.sources):
        local = [path for path in source.paths if not is_url(path)]
        for skip in source_files(source.model_copy(update={"path": local}))[1] if local else []:
            if skip.reason == "name_not_utf8":
                continue
            if skip.reason not in ("no_files", "missing_path"):
                raise UserError(f"{READ_REASONS[skip.reason].words} (corpus.sources.{index}.path)", where=skip.where,
                                todo=READ_REASONS[skip.reason].todo)  # fmt: skip
            what = "there are no files to read here" if skip.reason == "no_files" else "there is no such file or folder"
            raise UserError(f"{what} (corpus.sources.{index}.path)", where=skip.where, todo="check the path")


def refuse_licenses(cfg: CorpusConfig) -> None:
    """With `commercial`, refuse sources whose licence forbids it before anything is read."""
    for index, source in enumerate(cfg.sources):
        license_id = builtin.license_of(source)
        if cfg.commercial and license_id and not find_expression(license_id).commercial:
            raise UserError(
                f"the licence of the source {source.name!r} ({license_id}) does not allow commercial use",
                where=f"corpus.sources.{index}", todo="leave the source out, or set corpus.commercial=false",
            )  # fmt: skip


def _clear(out: Path) -> None:
    """Take away what an earlier run wrote, finished or not; what it has done in the work folder may be of use."""
    remove_partials(out)
    for name in ("documents-*", "heldout-*", "removed-*", "cuts-*"):
        for old in out.glob(f"{name}.parquet"):
            old.unlink()
    for name in ("funnel.json", "contamination.json", SEEN):
        (out / name).unlink(missing_ok=True)


class _Curation:
    """One run of the station."""

    def __init__(self, cfg: CorpusConfig, out: Path, terminal: Terminal, workers: int) -> None:
        self.cfg, self.out, self.terminal, self.workers = cfg, out, terminal, workers
        self.work = out / WORK
        self.sources: list[Source] = []
        self.funnel = Funnel()
        self.licenses: set[str] = set()

    def run(self, rec: pedigree.Record) -> None:
        """All of it, leaving the counts in `rec`."""
        jobs = self.jobs()
        self.do(jobs)
        self._demand_all_fetched(jobs)
        blocks = blocks_of(jobs, self.work, self.cfg.dedup.minhash.bands)
        skips, unreadable = self._count(blocks)
        if unreadable is not None:
            self._leave_ledger(blocks, np.zeros(len(blocks), bool))
            raise unreadable
        scratch = self.work / "compare"
        shutil.rmtree(scratch, ignore_errors=True)
        comparison = Comparison(blocks, self.cfg, self.funnel, scratch)
        with self.terminal.progress("comparing documents"):
            comparison.run()
        stay, whole = self._write(blocks, comparison, scratch)
        # Of a corpus that came to nothing the ledger is what is of use: it is left whatever the end.
        self._leave_ledger(blocks, stay, part_files(scratch, "compare"))
        if not whole:
            raise self._nothing_left(int(stay.sum()))
        if self.cfg.dedup.urls.enabled:
            self._keep_addresses(blocks, stay)
        self._note(rec, jobs)
        self._show(skips)

    def jobs(self) -> list[Job]:
        """The jobs of this run: those that are planned in the work folder, else new ones."""
        self.sources = builtin.prepare(self.cfg.sources, self.terminal, self.workers)
        if not self.sources:
            raise UserError("none of the sources is there", where="corpus.sources", todo="see the notices above")
        jobs = read_plan(self.work, self.cfg, self.sources)
        if jobs is None:
            (self.work / PLAN).unlink(missing_ok=True)
            if self.work.exists():
                shutil.rmtree(self.work)
            jobs = plan_jobs(self.sources)
            lost = [skip for job in jobs for skip in job.missing if skip.reason == "unreachable"]
            if lost and self.cfg.unreachable == "stop":
                raise UserError(f"this cannot be fetched: {lost[0].detail}", where=lost[0].where, todo="try again later")
            self.work.mkdir(parents=True)
            write_plan(self.work, self.cfg, jobs)
        elif done := sum(is_done(job, self.work) for job in jobs):
            self.terminal.say(f"  {done} of {len(jobs)} parts are there already")
        return jobs

    def do(self, jobs: list[Job], *, isolated: bool = False) -> None:
        """Everything that looks at one document at a time."""
        # Lists of domains are made ready once, here; the workers map them, which on a cluster see no folder but this one.
        place = self.work / "lists" if self.cfg.executor == "ray" else builtin.cache_folder()
        url = prepare(self.cfg.url, place) if self.cfg.url.enabled else self.cfg.url
        cfg = self.cfg.model_copy(update={"url": url})
        read = size = kept = 0
        with self.terminal.progress("curating", sum(_size(job) for job in jobs) or None) as progress:
            for job in do_jobs(jobs, cfg, self.work, self.workers, isolated=isolated or self.workers > 1):
                for block in blocks_of([job], self.work, self.cfg.dedup.minhash.bands).blocks:
                    step = block.counts()[0].steps["read"]
                    read, size, kept = read + step.documents_in, size + step.bytes_in, kept + block.documents
                progress.advance(_size(job))
                progress.show(f"curating: {read:,} read ({human_bytes(size)}), {kept:,} pass the filters")

    def _demand_all_fetched(self, jobs: list[Job]) -> None:
        """Raise UserError if files could not be fetched, leaving their jobs to be done again; unless they are to be skipped."""
        if self.cfg.unreachable == "skip":
            return
        missed: list[Skip] = []
        for job in jobs:
            found = [block.counts() for block in blocks_of([job], self.work, self.cfg.dedup.minhash.bands).blocks]
            if any(funnel.steps["read"].reasons["unreachable"] for funnel, _ in found):
                missed += [skip for _, skips in found for skip in skips if skip.reason == "unreachable"]
                (self.work / job.name / "done.json").unlink()
                shutil.rmtree(self.work / job.name)
        if missed:
            raise UserError(
                f"{len(missed)} files could not be fetched, {missed[0].where} for one ({missed[0].detail})", where=self.out,
                todo="run again to try them once more (the rest is done), or set corpus.unreachable=skip",
            )  # fmt: skip

    def _count(self, blocks: Blocks) -> tuple[dict[str, list[Skip]], UserError | None]:
        """Add up what the jobs counted; the error to end with if not a single record is text. Warns of sources without."""
        skips: dict[str, list[Skip]] = {source.name: [] for source in self.sources}
        texts: Counter[str] = Counter()
        for block in blocks.blocks:
            funnel, found = block.counts()
            self.funnel.merge(funnel)
            texts[block.source] += block.texts
            skips[block.source] += found[: max(0, 10 * SKIPS_KEPT - len(skips[block.source]))]
        for source in self.sources:
            if not texts[source.name]:
                found = skips[source.name]
                words = f"the source {source.name!r} has nothing that can be read: {in_words(found)}"
                if not any(texts.values()):
                    where = ", ".join(source.paths) or f"builtin: {source.builtin}"
                    return skips, UserError(words, where=where, todo=advice(found))
                self.terminal.warn(words)
        return skips, None

    def _write(self, blocks: Blocks, comparison: Comparison, scratch: Path) -> tuple[npt.NDArray[np.bool_], bool]:
        """Write what stays to its side of the split, and the rest to the ledger.

        Returns which documents stay, and whether any is there to train on; if not, none is written.
        """
        names = Names(blocks, scratch / "names")
        ledger = LedgerWriter(scratch, "compare", self.cfg.removed_sample, self.cfg.seed)
        passages = Passages(self.cfg.dedup, self.funnel, names, ledger)
        alive = comparison.alive()
        removed_by = comparison.removed_by
        passages.look(lambda: (row for number, row in enumerate(blocks.rows()) if not removed_by[number]), alive, scratch)
        split = Split(self.out, blocks, comparison, self.cfg.heldout, self.funnel, scratch)
        try:
            with self.terminal.progress("writing", len(blocks)) as progress:
                rows = enumerate(blocks.rows())
                for _, marks in blocks.marks():
                    progress.advance(len(marks))
                    for place, (number, row) in zip(np.array(marks["place"]).tolist(), rows, strict=False):
                        if removed_by[number]:
                            self._drop_duplicate(row, number, comparison, names, ledger)
                        elif (removal := passages.judge(row)) is not None:
                            ledger.remove(removed_row(row, removal))
                        else:
                            self.licenses.add(row["license"])
                            split.write(number, place, row)
            ledger.close()
            passages.write(self.out)
            whole = split.finish()
            if whole:
                split.close()
            else:
                split.drop()
        except BaseException:
            split.drop()
            ledger.drop()
            raise
        return split.stay, whole

    def _leave_ledger(self, blocks: Blocks, stay: npt.NDArray[np.bool_], *more: tuple[Path, Path]) -> None:
        """Write `removed-*`, `cuts-*` and the funnel, of the blocks and of `more`, which knows itself what stays."""
        ends = np.cumsum([block.documents for block in blocks.blocks], dtype=np.int64)
        stays = [stay[end - block.documents : end] for end, block in zip(ends.tolist(), blocks.blocks, strict=True)]
        assemble([*(block.ledger for block in blocks.blocks), *more], self.out, self.cfg.removed_sample, self.cfg.seed,
                 [*stays, *(None for _ in more)])  # fmt: skip
        write_json(self.out / "funnel.json", self._funnel_dict())

    def _nothing_left(self, heldout: int) -> UserError:
        """What to end with when there is nothing to train on."""
        if heldout:
            return UserError(
                f"no document is left to train on: {heldout:,} held out",
                todo="set corpus.heldout=0, or give more text",
            )
        return UserError(
            f"no document is left: {self._losses()}",
            todo=f"loosen the rule that removes most, or give more text; {self.out}/removed-*.parquet has what went and why",
        )

    def _keep_addresses(self, blocks: Blocks, stay: npt.NDArray[np.bool_]) -> None:
        """Leave the addresses kept so far, here and in the corpora before, for those that come after."""
        seen = SeenUrls(self.out / SEEN)
        for name in self.cfg.dedup.urls.against:
            seen = seen.add(np.array(SeenUrls(seen_file(name)).hashes))
        for hashes in kept_addresses(blocks, stay):
            seen = seen.add(hashes)

    def _drop_duplicate(
        self, row: dict[str, Any], number: int, comparison: Comparison, names: Names, ledger: LedgerWriter
    ) -> None:
        """Put a duplicate into the ledger, with the document that stays in its place."""
        reason = REASONS[comparison.removed_by[number]]
        leader = comparison.stand_in(number)
        removal = Removal(reason, *comparison.value(number))
        twin = names[leader] if leader is not None else None
        ledger.remove(removed_row(row, removal, twin))
        step = self.funnel.steps[STEP_OF[reason]]
        if len(step.examples) < EXAMPLES:
            shown = example(row["id"], row["url"], removal, row["text"])
            step.examples.append({**shown, **({"duplicate_of": twin} if twin else {})})

    def _losses(self) -> str:
        """The rules that removed most, in words."""
        reasons: Counter[str] = Counter()
        for step in self.funnel.steps.values():
            reasons.update(step.reasons)
        return ", ".join(f"{count:,} by {reason}" for reason, count in reasons.most_common(4)) or "nothing was read"

    def _funnel_dict(self) -> dict[str, Any]:
        described = {
            source.name: {"description": builtin.describe(source), "license": builtin.license_of(source) or UNKNOWN}
            for source in self.sources
        }
        return self.funnel.as_dict(described, set(STEPS) - {*self.cfg.steps, *self.cfg.dedup.steps})

    def _note(self, rec: pedigree.Record, jobs: list[Job]) -> None:
        """Inputs, licences and counts for the pedigree."""
        for path in input_paths(self.cfg):
            rec.add_input(path, "source")
        remote: dict[str, int] = {}
        for job in jobs:
            for shard in job.shards:
                for place in filter(is_url, shard.places):
                    remote[place] = remote.get(place, 0) + shard.size
        for place, size in remote.items():
            rec.add_thing(place, "source", sha256_json([place, size]), note="by address: its size stands for it")
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

    def _show(self, read_skips: dict[str, list[Skip]]) -> None:
        """The funnel as a table, and what could not be read."""
        facts = self._funnel_dict()
        rows = []
        for step in facts["steps"]:
            lost = ", ".join(f"{count:,} {reason}" for reason, count in list(step["reasons"].items())[:4])
            lost += ", …" if len(step["reasons"]) > 4 else ""
            edits = ", ".join(f"{count:,} {rule}" for rule, count in list(step["edits"].items())[:3])
            lost += f"{'; ' if lost else ''}cut or masked: {edits}" if edits else ""
            rows.append((step["title"], f"{step['documents_in']:,}", f"{step['documents_out']:,}",
                         human_bytes(step["bytes_out"]), lost))  # fmt: skip
        self.terminal.table(["step", "documents in", "out", "bytes out", "removed, by rule"], rows, title="Funnel")
        for name, skips in read_skips.items():
            for line in file_warnings(name, skips):
                self.terminal.warn(line)


def _size(job: Job) -> int:
    return sum(shard.size for shard in job.shards)
