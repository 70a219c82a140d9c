"""The items of a task: rows of local files, put into the task's own words by the first layout that fits.

Nothing is fetched; the hash of every file that was read is kept, so that results say what they were measured on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herdbook.errors import UserError
from herdbook.evals.expressions import expression
from herdbook.evals.task import Layout, Task
from herdbook.facts.evaluation_rows import read_rows
from herdbook.facts.evaluation_sets import EvaluationSet, evaluation_sets, files_of
from herdbook.files import sha256_file

_SPARE = ("train", "validation", "test")  # where examples may come from, the best first


@dataclass(frozen=True, eq=False)
class Item:
    """One question of a set.

    Attributes:
        id: the row's own `id`, or `file:number`.
        part: the subject it belongs to, empty where a task has none.
        fields: what templates see.
    """

    id: str
    part: str
    fields: Mapping[str, Any]


@dataclass
class Items:
    """What a task is made of.

    Attributes:
        scored: the items to score, by part, in the order of the files.
        spare: the items that examples are drawn from, by part; None where they are the scored ones.
        files: sha256 by path of what was read.
    """

    scored: dict[str, list[Item]] = field(default_factory=dict)
    spare: dict[str, list[Item]] | None = None
    files: dict[str, str] = field(default_factory=dict)


def load_items(task: Task, folder: Path | None, *, with_spare: bool) -> Items:
    """The items of a task from a folder of evaluation sets, or from the task's own files.

    Args:
        folder: where the sets lie; a task with files of its own needs none.
        with_spare: read what examples come from too.

    Raises UserError when files are missing or broken, when no layout fits a row, and for a task with examples whose parts
    have none.
    """
    by_split, scored = _files(task, folder)
    if scored not in by_split:
        raise UserError(
            f"of {task.title} there is {', '.join(by_split)}, and what is scored is {scored}",
            where=folder, todo=f"put its {scored} split there",
        )  # fmt: skip
    items = Items()
    items.scored = _read(task, by_split[scored], items.files)
    spare = _spare(task, by_split, scored)
    if with_spare and spare != scored:
        items.spare = _read(task, by_split[spare], items.files)
        bare = [part for part in items.scored if part not in items.spare]
        if bare:
            raise UserError(f"{task.title}: the {spare} split has no examples for {', '.join(bare[:3])}", where=folder)
    return items


def _files(task: Task, folder: Path | None) -> tuple[dict[str, list[Path]], str]:
    if task.files:
        split = task.split or ("test" if "test" in task.files else next(iter(task.files)))
        return task.files, split
    known = evaluation_set(task)
    if folder is None:
        raise UserError(
            f"{task.title} needs the files of its set", where="eval.folder",
            todo="name the folder of your evaluation sets" + (f" (the hub has this one as {known.hub})" if known.hub else ""),
        )  # fmt: skip
    return files_of(known, folder), task.split or known.split


def evaluation_set(task: Task) -> EvaluationSet:
    """The set of a task without files of its own. Raises UserError when it is not known."""
    known = evaluation_sets().get(task.set or "")
    if known is None:
        todo = f"there are {', '.join(evaluation_sets())}; a set of your own is named under `files`"
        raise UserError(f"there is no evaluation set {task.set!r}", where=task.name, todo=todo)
    return known


def _spare(task: Task, by_split: Mapping[str, object], scored: str) -> str:
    """The split that examples come from."""
    wanted = task.shots.split
    if wanted == "dev" and wanted not in by_split:
        wanted = "validation"  # as files are called where the set has one of the two
    if wanted is not None:
        if wanted not in by_split:
            raise UserError(f"{task.title} takes its examples from {wanted}, and there is {', '.join(by_split)} only")
        return wanted
    return next((split for split in _SPARE if split in by_split and split != scored), scored)


def _read(task: Task, paths: list[Path], hashes: dict[str, str]) -> dict[str, list[Item]]:
    parts: dict[str, list[Item]] = {}
    for path in paths:
        hashes[str(path)] = sha256_file(path)
        for item in _items(task, path):
            parts.setdefault(item.part, []).append(item)
    if not parts:
        raise UserError(f"{task.title}: no item in {', '.join(map(str, paths))}")
    return parts


def _items(task: Task, path: Path) -> Iterator[Item]:
    names = {"folder": path.parent.name, "file": path.name.split(".")[0]}
    for number, row in read_rows(path):
        layout = _layout(task, row, path, number)
        try:
            seen = {**names, **row}
            if layout.keep is not None and not expression(layout.keep)(seen):
                continue
            fields = {name: expression(source)(seen) for name, source in layout.item.items()}
            part = "" if task.part is None else str(expression(task.part)(names | fields))
        except UserError as error:
            raise UserError(f"{task.title}: {error}", where=f"{path}:{number}") from error
        yield Item(str(row.get("id", f"{names['file']}:{number}")), part, fields)


def _layout(task: Task, row: Mapping[str, Any], path: Path, number: int) -> Layout:
    for layout in task.layouts:
        if all(name in row for name in layout.needs):
            return layout
    known = " or ".join(f"({', '.join(layout.needs)})" for layout in task.layouts)
    raise UserError(
        f"{task.title}: this row has the fields {', '.join(row)}, and {known} are known", where=f"{path}:{number}",
        todo="write a task file with a layout for it",
    )  # fmt: skip
