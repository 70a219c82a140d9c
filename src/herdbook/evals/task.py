"""A task as data: where its items come from, how one is put to a model, and what counts as right.

    rows of a file ──layout──▶ items ──prompt, shots──▶ (context, continuation) ──model──▶ log-likelihoods ──metrics──▶ score

A task file is YAML; the built-in ones lie in `tasks/`, one's own is named by its path. What stands in it are expressions and
templates (`expressions`): a layout says what fields the rows of one publisher have and what an item takes from them, so that
the same task reads the hub's columns, llm-foundry's, and one's own. A suite (`suite`) names tasks with their shots.

    kind: choice       which continuation is likeliest; `prompt` and `continuation` are written for each `choice`
    kind: completion   is the continuation what greedy decoding writes, and how likely is it
    kind: rolling      how likely is a whole text
    kind: generate     a text is written, up to one of `until`, and looked at
"""

from __future__ import annotations

import difflib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from herdbook.config import Config, Draft, build, parse_yaml, read_yaml
from herdbook.errors import UserError
from herdbook.evals.expressions import expression, template
from herdbook.units import Count

Kind = Literal["choice", "completion", "rolling", "generate"]
Draw = Literal["each", "first"]
METRICS: dict[str, tuple[str, ...]] = {
    "choice": ("acc", "acc_norm", "acc_token", "acc_given", "mc2"),
    "completion": ("acc", "perplexity"),
    "rolling": ("bits_per_byte", "byte_perplexity", "word_perplexity"),
    "generate": ("exact_match", "contains", "f1", "maj"),
}  # fmt: skip


class Layout(Config):
    """What rows of one publisher look like, and what an item takes from them.

    The names that expressions see are the row's own fields, and `folder` and `file`, the names of the folder and file that
    the row lies in, without endings.
    """

    needs: list[str] = Field(description="fields that tell such a row from those of other layouts", min_length=1)
    item: dict[str, str] = Field(description="the item's fields, each an expression over the row's", min_length=1)
    keep: str | None = Field(default=None, description="an expression; rows for which it is false are left out")

    @field_validator("item")
    @classmethod
    def _sound(cls, item: dict[str, str]) -> dict[str, str]:
        for source in item.values():
            expression(source)
        return item


class Shots(Config):
    """Examples before the question."""

    count: Count = Field(default=0, ge=0, le=1000, description="how many")
    split: str | None = Field(
        default=None, description="the split they come from; null: train if it is there, else the scored one without the item"
    )
    draw: Draw = Field(default="each", description="each: drawn anew for each item; first: the first ones, for all items alike")


class Task(Config):
    """See the module."""

    name: str = Field(default="", description="by the file's name")
    title: str = Field(description="as people call it")
    set: str | None = Field(default=None, description="the evaluation set by name; null: `files`")
    files: dict[str, list[Path]] = Field(
        default_factory=dict, description="of a set of one's own: its files by split, relative to the task's file"
    )
    split: str | None = Field(default=None, description="the split that is scored; null: the set's")
    kind: Kind = Field(description="choice, completion, rolling or generate")
    layouts: list[Layout] = Field(description="of the rows, the first that fits counts", min_length=1)
    part: str | None = Field(
        default=None, description="an expression over the item: its subject, scored apart; the task's score is their mean"
    )
    description: str = Field(default="", description="a template, before all examples")
    prompt: str = Field(default="", description="a template of an item: what the model is given")
    joiner: str = Field(default="\n\n", description="between description, examples and question")
    choices: str = Field(default="choices", description="an expression: the texts to choose from")
    continuation: str = Field(default=" {{ choice }}", description="a template: what follows the prompt")
    gold: str = Field(default="gold", description="an expression: the number of the right choice; for mc2 a list of 0 and 1")
    given: str | None = Field(
        default=None, description="acc_given: a template; the choice's log-likelihood after this text is taken off (LLaMA)"
    )
    answers: str = Field(default="answers", description="generate: an expression; the right texts")
    until: list[str] = Field(default_factory=list, description="generate: the text ends before one of these")
    max_tokens: Count = Field(default=256, ge=1, description="generate: tokens at most")
    extract: list[str] = Field(
        default_factory=list, description="generate: expressions over `text`; the first that finds something is the answer"
    )
    clean: list[str] = Field(
        default_factory=list,
        description="generate: expressions over `text`, applied to answer and right texts one after another",
    )
    repeats: Count = Field(default=1, ge=1, description="generate: texts written for an item")
    temperature: float = Field(default=0.0, ge=0, description="generate: 0 is greedy")
    top_p: float = Field(default=1.0, gt=0, le=1, description="generate: the likeliest tokens that make up this share")
    metrics: list[str] = Field(description="what is reported, the first as the task's score", min_length=1)
    shots: Shots = Field(default_factory=Shots, description="examples before the question")
    chance: float | None = Field(default=None, ge=0, lt=1, description="score of guessing; null: by the number of choices")
    weigh: Literal["parts", "items"] = Field(default="parts", description="of a task with parts: each part alike, or each item")
    version: int = Field(default=1, description="raised when scores change")
    notes: str = Field(default="", description="what differs from other ways to score this set, and its source")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        known = METRICS[self.kind]
        for metric in self.metrics:
            if metric not in known:
                raise ValueError(f"{metric} is no metric of kind {self.kind}: there are {', '.join(known)}")
        if (self.set is None) == (not self.files):
            raise ValueError("name either a set or files")
        if ("acc_given" in self.metrics) != (self.given is not None):
            raise ValueError("acc_given and `given` go together")
        for source in (self.choices, self.gold, self.answers, *self.extract, *self.clean):
            expression(source)
        for source in (self.prompt, self.continuation, self.description, self.given or ""):
            template(source)
        return self


@cache
def task_names() -> tuple[str, ...]:
    """The built-in tasks."""
    folder = resources.files("herdbook.evals").joinpath("tasks")
    return tuple(sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml")))


def load_task(name: str, overrides: dict[str, Any] | None = None) -> Task:
    """A built-in task by its name, or one's own by the path of its file.

    Args:
        overrides: fields to change, as a suite states them; a mapping changes single fields of a mapping.

    Raises UserError when there is none, and ConfigError naming file, line and key of what is wrong in it.
    """
    draft, where = _draft(name)
    values = dict(draft.values)
    for key, value in (overrides or {}).items():
        values[key] = {**(values.get(key) or {}), **value} if isinstance(value, dict) else value
    draft.values = {"name": where.stem, **values}
    task = build(Task, draft)
    here = where.parent
    return task.model_copy(update={"files": {split: [here / path for path in paths] for split, paths in task.files.items()}})


def _draft(name: str) -> tuple[Draft, Path]:
    if name in task_names():
        file = resources.files("herdbook.evals").joinpath(f"tasks/{name}.yaml")
        return parse_yaml(file.read_text(encoding="utf-8"), f"{name}.yaml"), Path(f"{name}.yaml")
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return read_yaml(path), path
    close = difflib.get_close_matches(name, task_names(), n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"there is no task {name!r}", todo=f"{hint}There are {', '.join(task_names())}; one's own is a .yaml file")
