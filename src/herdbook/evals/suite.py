"""Suites as data: which tasks, with how many examples, by which metric, and how their scores become one.

`suites.yaml` holds the published ones; a suite of one's own is such an entry in a file. Scores of one suite compare with each
other, and with published ones only as far as its `notes` say.
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from herdbook.config import Config, Draft, build, parse_yaml, read_yaml
from herdbook.errors import UserError
from herdbook.evals.prompts import Protocol
from herdbook.evals.task import Shots, Task, load_task
from herdbook.units import Count


class Entry(Config):
    """A task in a suite."""

    task: str = Field(description="a built-in task, or the path of one's own")
    name: str | None = Field(default=None, description="what results call it; null: the task's name")
    metric: str | None = Field(default=None, description="what counts; null: the task's first")
    shots: Shots | Count | None = Field(default=None, description="examples; null: the task's own")
    set: dict[str, Any] = Field(default_factory=dict, description="other fields of the task to change")

    def load(self) -> Task:
        """The task as the suite wants it."""
        changes: dict[str, Any] = dict(self.set)
        if isinstance(self.shots, Shots):
            changes["shots"] = self.shots.model_dump(exclude_unset=True)
        elif self.shots is not None:
            changes["shots"] = {"count": self.shots}
        if self.name is not None:
            changes["name"] = self.name
        task = load_task(self.task, changes)
        if self.metric is not None:
            ordered = [self.metric, *(metric for metric in task.metrics if metric != self.metric)]
            task = Task.model_validate({**task.model_dump(), "metrics": ordered})
        return task


class ProtocolConfig(Config):
    """See `prompts.Protocol`."""

    seed: int = Field(default=42, description="of the order of items and the draw of examples")
    shuffle: bool = Field(default=True, description="shuffle the items, which decides which ones a limit leaves")
    bos: Literal["model", "none"] = Field(
        default="model", description="what stands before a prompt: as in training, or nothing"
    )


class Suite(Config):
    """See the module."""

    name: str = Field(default="", description="its key")
    title: str = Field(description="as people call it")
    source: str = Field(default="", description="where its settings are from")
    protocol: ProtocolConfig = Field(default_factory=ProtocolConfig, description="how questions are put")
    tasks: list[Entry] = Field(default_factory=list, description="what is measured; or `categories`")
    categories: dict[str, list[Entry]] = Field(
        default_factory=dict, description="tasks by category: the suite's score is the mean of the categories'"
    )
    score: Literal["mean", "above_chance", "none"] = Field(
        default="mean", description="of the tasks' scores; above_chance: each as (score − chance) / (1 − chance)"
    )
    notes: str = Field(default="", description="what to know before comparing")
    published: str | None = Field(
        default=None, description="a table of published results to set beside, as in `facts/results.yaml`"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.tasks) == bool(self.categories):
            raise ValueError("a suite has tasks, or categories of them")
        return self

    @property
    def entries(self) -> list[Entry]:
        """All tasks, in order."""
        return self.tasks or [entry for entries in self.categories.values() for entry in entries]

    def settings(self) -> Protocol:
        """The protocol for `prompts.questions`."""
        return Protocol(self.protocol.seed, self.protocol.shuffle, self.protocol.bos)


@cache
def _built_in() -> Draft:
    text = resources.files("herdbook.evals").joinpath("suites.yaml").read_text(encoding="utf-8")
    return parse_yaml(text, "suites.yaml")


def suite_names() -> tuple[str, ...]:
    """The built-in suites."""
    return tuple(_built_in().values)


def load_suite(name: str) -> Suite:
    """A built-in suite by its name, or one's own by the path of its file.

    Raises UserError when there is none, and ConfigError for what is wrong in it.
    """
    if name in suite_names():
        draft = _built_in()
        inner = {path[1:]: where for path, where in draft.marks.items() if path[:1] == (name,)}
        return build(Suite, Draft({"name": name, **draft.values[name]}, inner, source="suites.yaml"))
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml"):
        draft = read_yaml(path)
        draft.values = {"name": path.stem, **draft.values}
        return build(Suite, draft)
    close = difflib.get_close_matches(name, suite_names(), n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(
        f"there is no suite {name!r}", todo=f"{hint}There are {', '.join(suite_names())}; one's own is a .yaml file"
    )
