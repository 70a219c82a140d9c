"""Items become questions: examples are drawn and written before them, and each choice becomes a request.

The order of items and the draw of examples follow lm-eval's commit b281b0921 (June 2023), which the first Open LLM Leaderboard
ran: for each part `random.Random(seed)` shuffles the items, and the same stream then draws the examples of one item after
another. Where examples come from the scored split one more is drawn, and the item itself is left out.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from herdbook.errors import UserError
from herdbook.evals.expressions import expression, template
from herdbook.evals.items import Item, Items
from herdbook.evals.task import Task


@dataclass(frozen=True)
class Protocol:
    """How a suite puts its questions.

    Attributes:
        seed: of order and examples.
        shuffle: whether items are shuffled, which decides which ones a limit leaves.
        bos: `model`: what stands before documents in training stands before prompts; `none`: nothing does.
    """

    seed: int = 42
    shuffle: bool = True
    bos: str = "model"


@dataclass(frozen=True)
class Question:
    """What a model is asked about one item.

    Attributes:
        item: what it is about.
        requests: context and continuation of each choice (choice), of the one answer (completion), of a whole text behind
            nothing (rolling), or the prompt and "" (generate).
        given: the same continuations behind the text that `acc_given` compares with; empty without.
        choices: the bare texts to choose from.
        gold: the right choice's number; a list of 0 and 1 where several are right.
        answers: of texts to write: the right ones.
        examples: ids of the items before it.
    """

    item: Item
    requests: tuple[tuple[str, str], ...]
    given: tuple[tuple[str, str], ...] = ()
    choices: tuple[str, ...] = ()
    gold: int | tuple[int, ...] = 0
    answers: tuple[str, ...] = ()
    examples: tuple[str, ...] = field(default=(), compare=False)


def questions(task: Task, items: Items, protocol: Protocol, limit: int | None = None) -> Iterator[Question]:
    """The questions of a task, part by part, of each part at most `limit`. Raises UserError for an item that does not fit."""
    written: dict[int, str] = {}  # examples are written once, though drawn often
    for part, scored in items.scored.items():
        stream, order = random.Random(protocol.seed), list(scored)
        if protocol.shuffle:
            stream.shuffle(order)
        pool = (items.spare or items.scored)[part] if task.shots.count else []
        for item in order[:limit]:
            shots = _draw(task, pool, item, stream, apart=items.spare is not None)
            for shot in shots:
                if id(shot) not in written:
                    written[id(shot)] = _example(task, shot)
            before = "".join(written[id(shot)] + task.joiner for shot in shots)
            yield _question(task, item, before, tuple(shot.id for shot in shots))


def _draw(task: Task, pool: Sequence[Item], item: Item, stream: random.Random, *, apart: bool) -> list[Item]:
    count = task.shots.count
    if not count:
        return []
    wanted = count if apart else count + 1
    if len(pool) < wanted:
        where = f" of {item.part}" if item.part else ""
        raise UserError(
            f"{task.title}: {count} examples are wanted, and{where} there are {len(pool) - (not apart)}",
            todo="ask for fewer shots, or put a larger train split there",
        )  # fmt: skip
    if task.shots.draw == "first":
        return [shot for shot in pool[:wanted] if shot is not item][:count]
    return [shot for shot in stream.sample(pool, wanted) if shot is not item][:count]


def _choices(task: Task, fields: Mapping[str, Any]) -> tuple[str, ...]:
    found = expression(task.choices)(fields)
    if not isinstance(found, list | tuple) or not found or not all(isinstance(choice, str) for choice in found):
        raise UserError(f"{task.title}: `{task.choices}` is no list of texts")
    return tuple(found)


def _gold(task: Task, fields: Mapping[str, Any], choices: int) -> int | tuple[int, ...]:
    found = expression(task.gold)(fields)
    if "mc2" in task.metrics:
        if not isinstance(found, list | tuple) or len(found) != choices or not any(found) or all(found):
            raise UserError(f"{task.title}: `{task.gold}` does not say of {choices} choices which are right")
        return tuple(int(bool(one)) for one in found)
    if not isinstance(found, int) or not 0 <= found < choices:
        raise UserError(f"{task.title}: `{task.gold}` is {found!r}, and there are {choices} choices")
    return int(found)


def _example(task: Task, item: Item) -> str:
    """An item with its right answer."""
    fields = dict(item.fields)
    if task.kind == "choice":
        choices = _choices(task, fields)
        gold = _gold(task, fields, len(choices))
        fields["choice"] = choices[gold if isinstance(gold, int) else gold.index(1)]
    return template(task.prompt)(fields) + template(task.continuation)(fields)


def _question(task: Task, item: Item, before: str, examples: tuple[str, ...]) -> Question:
    fields = dict(item.fields)
    description = template(task.description)(fields)
    before = (description + task.joiner if description else "") + before
    if task.kind == "generate":
        answers = expression(task.answers)(fields)
        answers = (answers,) if isinstance(answers, str) else tuple(map(str, answers))
        prompt = before + template(task.prompt)(fields)
        return Question(item, ((prompt, ""),), answers=answers, examples=examples)
    if task.kind != "choice":
        request = (before + template(task.prompt)(fields), template(task.continuation)(fields))
        return Question(item, (request,), examples=examples)
    choices = _choices(task, fields)
    seen = [fields | {"choice": choice} for choice in choices]
    follow = [template(task.continuation)(names) for names in seen]
    requests = tuple((before + template(task.prompt)(names), text) for names, text in zip(seen, follow, strict=True))
    given = () if task.given is None else tuple((template(task.given)(fields), text) for text in follow)
    return Question(item, requests, given, choices, _gold(task, fields, len(choices)), examples=examples)
