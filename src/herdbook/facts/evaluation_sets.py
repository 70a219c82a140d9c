"""Evaluation sets by name, and their files in a folder of one's own.

Files are found by what people already have: the hub's layout (`ai2_arc/ARC-Easy/test-00000-of-00001.parquet`, a folder named
as the set or its dataset), llm-foundry's (`world_knowledge/arc_easy.jsonl`), or a plain `gsm8k/test.jsonl`. Nothing is fetched.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import yaml

from herdbook.errors import UserError

MOST_FILES = 100_000  # that are looked at in a folder of evaluation sets
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_SPLITS = {"valid": "validation", "val": "validation"}
_SPLIT = re.compile(r"(?:^|[_-])(train|validation|valid|val|dev|test)(?:[_-]|$)")


@dataclass(frozen=True)
class EvaluationSet:
    """A published evaluation set.

    Attributes:
        split: the one that is scored.
        license: as its authors state it; `unclear` if they do not.
        hub: the dataset's name there, None if it is not there; `config` its configuration.
        also: other names of its files and folders.
    """

    name: str
    title: str
    split: str
    license: str
    hub: str | None = None
    config: str | None = None
    also: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """What files and folders of it may be called, plainly written."""
        dataset = self.hub.split("/")[1] if self.hub else None
        whole = dataset if self.config in (None, "main", "all", "full") else self.config
        return frozenset(plain(name) for name in (self.name, *self.also, whole) if name)


def plain(name: str) -> str:
    """A name in lower case, with underscores."""
    return name.lower().replace("-", "_").replace(".", "_")


@cache
def evaluation_sets() -> dict[str, EvaluationSet]:
    """All sets that are known by name."""
    text = resources.files("herdbook.facts").joinpath("evaluation_sets.yaml").read_text("utf-8")
    return {
        name: EvaluationSet(name, **{**about, "also": tuple(about.get("also", ()))})
        for name, about in yaml.safe_load(text).items()
    }


def files_of(wanted: EvaluationSet, folder: Path) -> dict[str, list[Path]]:
    """The files of a set below a folder, by split, in order of their paths; a file that names no split is the one scored.

    Raises UserError if there is no such folder, or there are none in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of evaluation sets")
    found: dict[str, list[Path]] = {}
    for path in sorted(_files(folder)):
        stem = plain(path.name.split(".")[0])
        # Folders below a named one are parts of it, such as MMLU's subjects.
        inside = any(plain(part) in wanted.names for part in path.relative_to(folder).parts[:-1])
        split = _SPLIT.search(stem)
        bare = stem[: split.start()] + stem[split.end() :].lstrip("_") if split else stem
        if inside or stem in wanted.names or bare in wanted.names:
            name = split[1] if split else wanted.split
            found.setdefault(_SPLITS.get(name, name), []).append(path)
    if "dev" in found and "validation" not in found:  # another word for it, but where both are there (MMLU)
        found["validation"] = found.pop("dev")
    if not found:
        names = ", ".join(sorted(wanted.names))
        raise UserError(
            f"{folder}: no files of the evaluation set {wanted.name}; wanted is a file or a folder called {names}, "
            f"with {', '.join(SUFFIXES)}" + (f" (the hub has it as {wanted.hub})" if wanted.hub else "")
        )
    return found


def _files(folder: Path) -> Iterator[Path]:
    seen = 0
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        seen += len(names)
        if seen > MOST_FILES:
            raise UserError(f"{folder}: more than {MOST_FILES} files; name the folder of the evaluation sets itself")
        yield from (Path(place, name) for name in names if name.endswith(SUFFIXES))
