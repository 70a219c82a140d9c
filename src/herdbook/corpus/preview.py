"""What curating would do, worked out without doing it: `herdbook curate --dry-run`.

Files are listed and their sizes asked for (of addresses too), as the plan of a real run does; nothing is read and nothing is
written, no lock taken and no built-in text harvested.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from herdbook import pedigree
from herdbook.config import Config
from herdbook.corpus import builtin
from herdbook.corpus.config import CorpusConfig, Source
from herdbook.corpus.curate import WORK, input_paths, refuse_licenses, require_sources
from herdbook.corpus.extract import check_engine
from herdbook.corpus.funnel import STEPS
from herdbook.corpus.jobs import PLAN, Job, is_done, list_paths, plan_jobs, read_plan
from herdbook.corpus.reasons import REASONS
from herdbook.corpus.verdicts import changed_settings

# The sections and keys of the config that a step depends on; an empty name stands for the top.
_SETTINGS: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "read": (("limits", ("max_record_bytes",)),),
    "first_look": (("", ("first_look", "languages")),),
    "extract": (("extract", ()), ("limits", ("max_text_bytes",))),
    "license": (("", ("commercial",)),),
    "language": (("", ("languages", "min_score")),),
    "exact": (),
    "minhash": (("dedup.minhash", ()), ("dedup", ("keep",))),
    "urls": (("dedup.urls", ()),),
    "substring": (("dedup.substring", ()),),
    "contamination": (("dedup.contamination", ()),),
}


def preview(cfg: CorpusConfig, out: Path, workers: int | None = None) -> dict[str, Any]:
    """The plan of a run into the folder `out`, as JSON.

    `state` is what would happen: `done` (nothing), `resume` (with `jobs_done` of `jobs` kept), `run`, or `run again` (what is
    there moves aside, all is made anew; `changed` has the settings that differ as [then, now], and `why` says it in words).
    `sources` has the files, bytes and jobs of each source; `stages` the steps with their settings.

    Raises UserError as `curate` does before it reads: for paths that lead nowhere, licences and engines that do not fit.
    """
    refuse_licenses(cfg)
    check_engine(cfg.extract)
    require_sources(cfg)
    ready = [source for source in cfg.sources if source.builtin != "prose" or builtin.prose_files()]
    planned = read_plan(out / WORK, cfg, ready)
    jobs = plan_jobs(ready) if planned is None else planned
    rows = [_source_row(source, [job for job in jobs if job.source.name == source.name]) for source in cfg.sources]
    return {
        "run": str(out),
        **_state(cfg, out, jobs, planned is not None),
        "jobs": len(jobs),
        "files": sum(row["files"] for row in rows),
        "bytes": sum(row["bytes"] for row in rows),
        "sources": rows,
        "lists": [str(path) for path in list_paths(cfg)],
        "stages": stages(cfg),
        "heldout": cfg.heldout,
        "seed": cfg.seed,
        "executor": cfg.executor,
        "workers": workers or pedigree.cores(),
        "disk_free_bytes": shutil.disk_usage(_existing(out)).free,
    }


def stages(cfg: CorpusConfig) -> list[dict[str, Any]]:
    """The steps that documents go through, in order: `step`, `title`, and its `settings` by dotted key."""
    return [{"step": name, "title": STEPS[name], "settings": dict(_settings(cfg, name))}
            for name in (*cfg.steps, *cfg.dedup.steps)]  # fmt: skip


def _settings(cfg: CorpusConfig, step: str) -> Iterator[tuple[str, Any]]:
    for section, keys in _SETTINGS.get(step, ((step, ()),)):
        here: Any = cfg
        for part in filter(None, section.split(".")):
            here = getattr(here, part)
        assert isinstance(here, Config)
        for key, value in here.model_dump(mode="json").items():
            if key in keys or (not keys and key != "enabled"):
                yield (f"{section}.{key}" if section else key), value


def _source_row(source: Source, jobs: list[Job]) -> dict[str, Any]:
    shards = [shard for job in jobs for shard in job.shards]
    row = {
        "name": source.name,
        "from": source.builtin or source.paths,
        "format": source.format,
        "license": builtin.license_of(source),
        "files": len({place for shard in shards for place in shard.places}),
        "bytes": sum(shard.size for shard in shards),
        "jobs": len(jobs),
        "limit": source.limit,
        "filtered": source.filtered,
        "notes": [f"{skip.where}: {REASONS[skip.reason].words if skip.reason in REASONS else skip.reason}"
                  for job in jobs for skip in job.missing],
    }  # fmt: skip
    return row | (_builtin_facts(source, source.builtin) if source.builtin else {})


def _builtin_facts(source: Source, kind: str) -> dict[str, Any]:
    files = [path for _, path in builtin.prose_files()] if kind == "prose" else [builtin.cache_path(kind)]
    there = [path for path in files if path.is_file()]
    note = ["left out: its text is not installed (pip install 'herdbook[prose]')"] if kind == "prose" else ["harvested first"]
    sizes = [path.stat().st_size for path in there]
    return {"files": len(there), "bytes": sum(sizes), "notes": [] if there else note}


def _state(cfg: CorpusConfig, out: Path, jobs: list[Job], planned: bool) -> dict[str, Any]:
    """What would become of what lies in the folder."""
    facts: dict[str, Any] = {"state": "run", "jobs_done": 0, "changed": {}, "why": "nothing is there yet"}
    if pedigree.is_current(out, cfg.identity(), [(path, "source") for path in input_paths(cfg)]):
        return facts | {"state": "done", "jobs_done": len(jobs), "why": "it is whole, and settings and inputs are the same"}
    if pedigree.exists(out):
        then, now = pedigree.read(out)["config"], cfg.identity()
        changed = changed_settings(then, now)
        if not changed and then != now:  # of sources it compares where they lead to alone
            changed = {"sources": [then.get("sources"), now["sources"]]}
        why = "settings changed" if changed else "inputs changed, or files of it are gone"
        return facts | {"state": "run again", "changed": changed, "why": f"{why}: what is there moves to replaced/"}
    if planned:
        done = sum(is_done(job, out / WORK) for job in jobs)
        return facts | {"state": "resume", "jobs_done": done, "why": f"{done:,} of {len(jobs):,} jobs are done and kept"}
    if (out / WORK / PLAN).exists():
        return facts | {"state": "run again", "why": "what was begun there is of other settings, inputs or code, and not used"}
    return facts


def _existing(path: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
