"""Jobs: what one process does alone, and leaves on disk as blocks.

A job reads some shards of one source and judges their records. Jobs are cut by the sizes of the inputs alone, never by how many
processes there are, and blocks by the records in them; so whoever does a job, and however often it is cut off, the same blocks
come out. `plan.json` lists the jobs of a run. A job is done when its `done.json` is there; of one that was cut off the blocks
that are whole stay, and their records are read again but not judged again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import xxhash

from herdbook import pedigree
from herdbook.corpus import builtin
from herdbook.corpus.blocks import Block, Blocks, BlockWriter, committed
from herdbook.corpus.classifier import CARD
from herdbook.corpus.config import CorpusConfig, Source
from herdbook.corpus.evaluation_items import evaluation_files
from herdbook.corpus.funnel import Funnel
from herdbook.corpus.located import Located
from herdbook.corpus.places import find_places, is_url
from herdbook.corpus.records import Record, Skip
from herdbook.corpus.shards import Shard, make_shards, read_shard, split_size
from herdbook.corpus.urls import seen_file
from herdbook.corpus.work import Result, Task, Worker, skip_record
from herdbook.errors import UserError
from herdbook.files import lock, read_json, sha256_json, write_json
from herdbook.pool import WorkerDied

BLOCK_BYTES = 64 << 20
BLOCK_RECORDS = 1 << 14
BATCH_BYTES = 1 << 20
BATCH_RECORDS = 256
PLAN = "plan.json"
Item = Record | Skip


@dataclass(frozen=True)
class Job:
    """Shards of one source, read in order; without any the source is a built-in one.

    Attributes:
        missing: what could not be found when the job was planned.
        limit: records to read at most.
    """

    number: int
    source: Source
    shards: tuple[Shard, ...] = ()
    missing: tuple[Skip, ...] = field(default=())
    limit: int | None = None

    @property
    def name(self) -> str:
        """The name of the job's folder."""
        return f"{self.number:06d}"

    def items(self, max_bytes: int) -> Iterator[Item]:
        """What the job reads."""
        records = 0
        read = builtin.read(self.source, max_bytes) if self.source.builtin else self._files(max_bytes)
        for item in read:
            yield item
            records += isinstance(item, Record)
            if records == self.limit:
                return

    def _files(self, max_bytes: int) -> Iterator[Item]:
        yield from self.missing
        for shard in self.shards:
            yield from read_shard(shard, max_bytes)


def plan_jobs(sources: list[Source]) -> list[Job]:
    """The jobs of a run: a function of the sources and the sizes of their files."""
    found = {source.name: find_places(source) for source in sources if not source.builtin}
    size = split_size(place.size for places, _ in found.values() for place in places)
    jobs: list[Job] = []
    for source in sources:
        shards, missing = ([], []) if source.builtin else make_shards(source, size, found[source.name])
        # A source that has a limit, or nothing to read, is one job.
        parts = [tuple(shards)] if source.limit is not None or not shards else [(shard,) for shard in shards]
        for index, part in enumerate(parts):
            jobs.append(Job(len(jobs), source, part, tuple(missing) if index == 0 else (), source.limit))
    return jobs


def write_plan(folder: Path, cfg: CorpusConfig, jobs: list[Job]) -> None:
    """Keep the jobs in the work folder, so that all who work on them agree."""
    rows = [
        {"source": job.source.name, "shards": [_facts(shard) for shard in job.shards],
         "missing": [asdict(skip) for skip in job.missing]}
        for job in jobs
    ]  # fmt: skip
    sources = {job.source.name: job.source for job in jobs}
    write_json(folder / PLAN, {"made_for": _made_for(cfg, list(sources.values())), "jobs": rows})


def read_plan(folder: Path, cfg: CorpusConfig, sources: list[Source]) -> list[Job] | None:
    """The jobs in a work folder; None if there are none, or they are for other settings, inputs or code."""
    if not (folder / PLAN).exists():
        return None
    plan = read_json(folder / PLAN, what="plan", todo="remove the folder to begin anew")
    if not isinstance(plan, dict) or plan.get("made_for") != _made_for(cfg, sources):
        return None
    by_name = {source.name: source for source in sources}
    jobs = []
    for number, row in enumerate(plan["jobs"]):
        source = by_name[row["source"]]
        shards = tuple(_shard(source, facts) for facts in row["shards"])
        jobs.append(Job(number, source, shards, tuple(Skip(**skip) for skip in row["missing"]), source.limit))
    return jobs


def _made_for(cfg: CorpusConfig, sources: list[Source]) -> str:
    """A hash of what a plan holds for: settings, files as far as they are on this machine, and code."""
    files: dict[str, list[int]] = {}
    listed = [file for path in list_paths(cfg) for file in _files_in(path)]
    for path in dict.fromkeys([*(file for source in sources for file in _local_files(source)), *listed]):
        files[str(path)] = [path.stat().st_size, path.stat().st_mtime_ns] if path.exists() else []
    built_in = sorted({str(builtin.cache_path(source.builtin)) for source in sources if source.builtin})
    version = pedigree.code_version()
    return sha256_json(
        [cfg.identity(), [source.name for source in sources], files, built_in, version["herdbook"], version.get("commit")]
    )


def _local_files(source: Source) -> list[Path]:
    local = [path for path in source.paths if not is_url(path)]
    places = find_places(source.model_copy(update={"path": local}))[0] if local else []
    return [Path(place.name) for place in places if not is_url(place.name)]


def list_paths(cfg: CorpusConfig) -> list[Path]:
    """The files and folders that rules are made of: lists, models, evaluation sets.

    Raises UserError for an evaluation set that is not there.
    """
    url = cfg.url
    names: list[str | None] = [*url.blocklists, url.strict_words, url.hard_words, url.soft_words] if url.enabled else []
    names += [cfg.c4.bad_words] if cfg.c4.enabled else []
    names += [str(path) for _, path in evaluation_files(cfg.dedup.contamination)]
    names += [str(seen_file(name)) for name in cfg.dedup.urls.against] if cfg.dedup.urls.enabled else []
    names += [cfg.classifier.model, cfg.perplexity.model]
    if cfg.classifier.model is not None:
        names.append(str(Path(cfg.classifier.model).with_name(CARD)))  # it may hold the threshold
    return [path for name in names if name is not None and (path := Path(name).expanduser()).exists()]


def _files_in(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _facts(shard: Shard) -> dict[str, Any]:
    return {field.name: getattr(shard, field.name) for field in fields(shard) if field.name != "source"}


def _shard(source: Source, facts: dict[str, Any]) -> Shard:
    lists = {key: tuple(value) for key, value in facts.items() if isinstance(value, list)}
    return Shard(**{**facts, **lists, "source": source})


class JobWorker:
    """Does jobs; one of these lives in each process.

    Args:
        cfg: with lists of domains made ready.
        folder: where jobs leave their blocks, a folder a job.
    """

    def __init__(self, cfg: CorpusConfig, folder: Path) -> None:
        self.cfg, self.folder = cfg, folder
        self._worker = Worker(cfg)

    def __call__(self, task: Job | Task) -> Job | Result:
        """Do a job; or judge a batch of records, for whoever is after the one that kills."""
        if isinstance(task, Task):
            return self._worker(task)
        work_on(task, self.cfg, self.folder, self._worker)
        return task


def work_on(job: Job, cfg: CorpusConfig, folder: Path, judge: Callable[[Task], Result], *, blocks: int | None = None) -> None:
    """Read a job's records, judge them in batches, and write the blocks that are not there yet.

    Args:
        judge: what comes of a batch.
        blocks: write at most so many.
    """
    place = folder / job.name
    if is_done(job, folder):
        return
    # Whoever else is at it, a process that outlived its run for one, is waited for.
    with lock(place / ".lock", wait=True):
        while not is_done(job, folder):
            if _go_on(job, cfg, place, judge, blocks):
                return
            # What is read now is not what was read then, so the blocks that are there do not fit.
            for path in place.iterdir():
                if path.name != ".lock":
                    path.unlink()


def _go_on(job: Job, cfg: CorpusConfig, place: Path, judge: Callable[[Task], Result], blocks: int | None) -> bool:
    """Write the blocks that are not there yet; False if those that are there were made of other records."""
    items = job.items(cfg.limits.max_record_bytes)
    for number in itertools.count():
        known = committed(place, number)
        if known is not None:
            digest = xxhash.xxh3_64()
            if sum(1 for _ in _noted(itertools.islice(items, known[0]), digest)) < known[0] or digest.hexdigest() != known[1]:
                return False
            continue
        first = next(items, None)
        if first is None:
            write_json(place / "done.json", {"blocks": number})
            return True
        _write_block(job, cfg, place, number, itertools.chain([first], items), judge)
        if blocks is not None and (blocks := blocks - 1) == 0:
            return True
    raise AssertionError("unreachable")


def _noted(items: Iterator[Item], digest: xxhash.xxh3_64) -> Iterator[Item]:
    """The items as they are; their names go into `digest`."""
    for item in items:
        name = f"{item.id}\0" if isinstance(item, Record) else f"{item.reason}\0{item.where}\0"
        digest.update(name.encode("utf-8", "replace"))
        yield item


def _write_block(
    job: Job, cfg: CorpusConfig, place: Path, number: int, items: Iterator[Item], judge: Callable[[Task], Result]
) -> None:
    writer = BlockWriter(place, number, cfg.dedup.minhash.bands, cfg.removed_sample, cfg.seed)
    count = size = 0
    digest = xxhash.xxh3_64()
    try:
        while size < BLOCK_BYTES and count < BLOCK_RECORDS and (batch := _batch(_noted(items, digest))):
            count += len(batch)
            size += sum(len(item.payload) for item in batch if isinstance(item, Record))
            writer.add(judge(Task(job.source, batch)))
        writer.commit(count, digest.hexdigest())
    except BaseException:
        writer.drop()
        raise


def _batch(items: Iterator[Item]) -> list[Item]:
    """The next few items: as many as a process should hold at a time."""
    batch: list[Item] = []
    size = 0
    for item in items:
        batch.append(item)
        size += len(item.payload) if isinstance(item, Record) else 0
        if size >= BATCH_BYTES or len(batch) >= BATCH_RECORDS:
            break
    return batch


def rescue(job: Job, ask: Callable[[Any], Any], cfg: CorpusConfig, folder: Path) -> Job:
    """After a process died on a job: the block it died on record by record, giving up those that kill; then the rest.

    Args:
        ask: hands a task to a fresh process; raises WorkerDied.
    """

    def judge(task: Task) -> Result:
        try:
            return ask(task)  # type: ignore[no-any-return]
        except WorkerDied:
            return _one_by_one(task, ask)

    while True:
        work_on(job, cfg, folder, judge, blocks=1)
        try:
            ask(job)
            return job
        except WorkerDied:
            continue


def _one_by_one(task: Task, ask: Callable[[Any], Any]) -> Result:
    total = Result(task.source.name, Funnel())
    for item in task.items:
        try:
            part = ask(Task(task.source, [item]))
        except WorkerDied:
            try:
                ask(Task(task.source, []))
            except WorkerDied:
                raise UserError("the processes that work on records die before they begin",
                                todo="look at the memory that is free, and at the models in use") from None  # fmt: skip
            part = Result(task.source.name, Funnel())
            if isinstance(item, Skip):
                raise
            said = "the process that worked on this record died"
            crash = Located("crashed", item.url or item.id, len(item.payload), said, item.file, item.offset)
            skip_record(crash, task.source, part)
        total.merge(part)
    return total


def is_done(job: Job, folder: Path) -> bool:
    """Whether all blocks of a job are there."""
    return (folder / job.name / "done.json").exists()


def blocks_of(jobs: list[Job], folder: Path, bands: int) -> Blocks:
    """The blocks of jobs that are done, in order."""
    found = []
    for job in jobs:
        count = read_json(folder / job.name / "done.json", what="job")["blocks"]
        found += [Block(folder / job.name, number, bands) for number in range(count)]
    return Blocks(found)
