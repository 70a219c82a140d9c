"""Evaluation sets on a model: the tasks of a suite and those named one by one, in lm-eval's results layout.

A suite's score stands as a result of its own under the suite's name, with its tasks as `group_subtasks`; so does a task with
parts (MMLU's subjects). A task whose files are not there is left out, and said.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.evals.config import EvalConfig
from herdbook.evals.items import Items, load_items
from herdbook.evals.measure import Outcome, measure_task
from herdbook.evals.metrics import HIGHER_IS_BETTER, Score
from herdbook.evals.prompts import Protocol
from herdbook.evals.scoring import Subject
from herdbook.evals.suite import Suite, load_suite
from herdbook.evals.task import Task, load_task
from herdbook.facts.evaluation_sets import evaluation_sets

OUTPUT_TYPES = {  # in lm-eval's words
    "choice": "multiple_choice",
    "completion": "loglikelihood",
    "rolling": "loglikelihood_rolling",
    "generate": "generate_until",
}
SHARES = ("acc", "acc_norm", "acc_token", "acc_given", "mc2", "exact_match", "contains", "f1", "maj")


@dataclass
class Sets:
    """What there is to measure, read once for all models.

    Attributes:
        tasks: with their items and how they are asked.
        suite: whose tasks are the first of these; None: only tasks named one by one.
        skipped: why a task is left out, by name.
    """

    tasks: list[tuple[Task, Items, Protocol]] = field(default_factory=list)
    suite: Suite | None = None
    skipped: dict[str, str] = field(default_factory=dict)


def load_sets(cfg: EvalConfig, names: Sequence[str]) -> Sets:
    """The tasks of `cfg.suite` and those of `names`, with their items.

    Raises UserError for a name that is not known, for broken files, and when a task that was named by itself has no files;
    of a suite such a task is left out, unless all are.
    """
    sets = Sets(suite=load_suite(cfg.suite) if cfg.suite else None)
    folder = None if cfg.folder is None else cfg.folder.expanduser()
    wanted: list[tuple[Task, Protocol]] = []
    if sets.suite is not None:
        wanted += [(entry.load(), sets.suite.settings()) for entry in sets.suite.entries]
    ours = len(wanted)
    wanted += [(load_task(name), Protocol()) for name in names]
    for place, (task, protocol) in enumerate(wanted):
        if cfg.shots is not None:
            task = task.model_copy(update={"shots": task.shots.model_copy(update={"count": cfg.shots})})
        try:
            items = load_items(task, folder, with_spare=task.shots.count > 0)
        except UserError as error:
            if place >= ours or folder is None:
                raise
            sets.skipped[task.name] = str(error).partition("\n")[0]
            continue
        sets.tasks.append((task, items, protocol))
    if wanted and not sets.tasks:
        raise UserError("no set of this suite is there", where=folder, todo="name the folder of your evaluation sets")
    return sets


def measure_sets(
    cfg: EvalConfig, sets: Sets, subject: Subject, found: dict[str, Any], logs: Path, terminal: Terminal
) -> list[dict[str, Any]]:
    """Put all tasks to a model, note their scores in `found`; one row a question."""
    rows: list[dict[str, Any]] = []
    outcomes: list[Outcome] = []
    for task, items, protocol in sets.tasks:
        outcome = measure_task(
            task, items, protocol, subject, terminal, limit=cfg.limit, log=logs / f"{task.name}.jsonl", seed=cfg.seed,
        )  # fmt: skip
        outcomes.append(outcome)
        _note_task(found, outcome)
        rows += outcome.rows
    if sets.suite is not None:
        _note_suite(found, sets.suite, {one.task.name: one for one in outcomes})
    return rows


def _note_task(found: dict[str, Any], outcome: Outcome) -> None:
    task = outcome.task
    _note(found, task.name, task.title, outcome.scores, outcome)
    if len(outcome.parts) > 1:
        names = {part: f"{task.name}_{part}" for part in outcome.parts}
        found["group_subtasks"][task.name] = list(names.values())
        for part, name in names.items():
            _note(found, name, f" - {part.replace('_', ' ')}", outcome.parts[part], outcome)


def _note(found: dict[str, Any], name: str, alias: str, scores: Mapping[str, Score], outcome: Outcome) -> None:
    task, figures = outcome.task, dict[str, Any](alias=alias)
    for metric, score in scores.items():
        figures[f"{metric},none"] = score.value
        figures[f"{metric}_stderr,none"] = "N/A" if score.stderr is None else score.stderr
    found["results"][name] = figures
    known = evaluation_sets().get(task.set or "")
    metadata = {
        "version": task.version, "title": task.title, "files": outcome.files, "notes": task.notes,
        "license": None if known is None else known.license,
    } | ({"chance": outcome.chance[task.metrics[0]]} if task.metrics[0] in outcome.chance else {})  # fmt: skip
    found["configs"][name] = {
        "task": name, "output_type": OUTPUT_TYPES[task.kind], "num_fewshot": task.shots.count, "metadata": metadata,
        "fewshot_draw": task.shots.draw, "description": task.description, "doc_to_text": task.prompt,
    }  # fmt: skip
    found["versions"][name], found["n-shot"][name] = task.version, task.shots.count
    found["higher_is_better"][name] = {metric: HIGHER_IS_BETTER.get(metric, True) for metric in task.metrics}
    count = next(iter(scores.values())).count
    found["n-samples"][name] = {"original": outcome.available, "effective": count}


# ---- a suite's score ----


def suite_score(suite: Suite, outcomes: Mapping[str, Outcome]) -> tuple[Score, dict[str, Score]] | None:
    """The suite's score and its categories'; None where tasks of it are missing or have no share as their score.

    The error carries on from the tasks' errors, which are independent.
    """
    if suite.score == "none":
        return None
    groups = suite.categories or {"": suite.tasks}
    means: dict[str, Score] = {}
    for name, entries in groups.items():
        scores = []
        for entry in entries:
            outcome = outcomes.get(entry.load().name)
            if outcome is None or outcome.task.metrics[0] not in SHARES:
                return None
            scores.append(_above(outcome) if suite.score == "above_chance" else outcome.scores[outcome.task.metrics[0]])
        means[name] = _mean(scores)
    return _mean(list(means.values())), means


def _above(outcome: Outcome) -> Score:
    """A score as (score − chance) / (1 − chance): 0 for guessing, 1 for all."""
    metric = outcome.task.metrics[0]
    score, guessed = outcome.scores[metric], outcome.chance.get(metric, 0.0)
    stderr = None if score.stderr is None else score.stderr / (1 - guessed)
    return Score((score.value - guessed) / (1 - guessed), stderr, score.count)


def _mean(scores: Sequence[Score]) -> Score:
    errors = [score.stderr for score in scores if score.stderr is not None]
    stderr = math.sqrt(sum(error**2 for error in errors)) / len(scores) if len(errors) == len(scores) else None
    return Score(sum(score.value for score in scores) / len(scores), stderr, sum(score.count for score in scores))


def _note_suite(found: dict[str, Any], suite: Suite, outcomes: Mapping[str, Outcome]) -> None:
    found["group_subtasks"][suite.name] = list(outcomes)
    known = suite_score(suite, outcomes)
    lines: Iterator[tuple[str, str, Score]] = iter(())
    if known is not None:
        whole, means = known
        parts = [(f"{suite.name}_{name}", f" - {name.replace('_', ' ')}", score) for name, score in means.items() if name]
        lines = iter([(suite.name, suite.title, whole), *parts])
    for name, alias, score in lines:
        stderr = "N/A" if score.stderr is None else score.stderr
        found["results"][name] = {"alias": alias, "score,none": score.value, "score_stderr,none": stderr}
        metadata = {"version": 1, "title": suite.title, "source": suite.source, "notes": suite.notes, "score": suite.score}
        found["configs"][name] = {"task": name, "output_type": "group", "num_fewshot": None, "metadata": metadata}
        found["versions"][name], found["n-shot"][name] = 1, None
        found["higher_is_better"][name] = {"score": True}
        found["n-samples"][name] = {"original": score.count, "effective": score.count}
