"""A task on a model: questions become ids, answers are kept on disk as they come, and scores are made of them.

A text is cut into ids as lm-eval does it: context and continuation together, and what is longer than the context alone is the
continuation; spaces at a context's end belong to the continuation. A model may then see tokens that cross the border nowhere.

Answers go into a log of the task, a line a question, behind a first line that names task, settings, files and model. A run that
was cut off goes on behind the last whole line of a log with the same first line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from herdbook.console import Terminal
from herdbook.evals import written
from herdbook.evals.items import Items
from herdbook.evals.metrics import VALUES, Answer, Score, Value, aggregate, chance, over_parts
from herdbook.evals.prompts import Protocol, Question, questions
from herdbook.evals.scoring import Request, Subject
from herdbook.evals.task import Task
from herdbook.files import sha256_json

CHUNK_TOKENS = 32_768  # of questions that are scored at once, and then kept
CHUNK_TEXTS = 64  # that are written at once


@dataclass
class Outcome:
    """What a task gave.

    Attributes:
        task: with its settings.
        parts: by part (one of the name "" for a task without), the scores by metric.
        scores: of the whole task by metric.
        chance: score of guessing by metric, where that is known.
        rows: one a question, for the log that people read.
        files: sha256 of what was read, by path.
        available: questions there are, with or without a limit.
    """

    task: Task
    parts: dict[str, dict[str, Score]] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    available: int = 0


def measure_task(
    task: Task, items: Items, protocol: Protocol, subject: Subject, terminal: Terminal, *, limit: int | None, log: Path,
    seed: int = 0,
) -> Outcome:  # fmt: skip
    """Put a task's questions to a model. Raises UserError for items that do not fit."""
    asked = list(questions(task, items, protocol, limit))
    head = {
        "task": task.model_dump(mode="json", exclude={"title", "notes"}), "protocol": asdict(protocol),
        "limit": limit, "files": sorted(items.files.values()), "model": subject.identity, "seed": seed,
    }  # fmt: skip
    kept = _Log(log, sha256_json(head))
    if task.kind == "generate":
        found = _write_all(task, asked, subject, kept, terminal, protocol, seed)
        values = written.values(task, asked, found)
    else:
        found = _score_all(asked, subject, kept, terminal, f"{task.title}: {len(asked):,} questions", protocol)
        values = [_values(task, question, said) for question, said in zip(asked, found, strict=True)]
    outcome = Outcome(task, files=items.files, available=sum(map(len, items.scored.values())))
    outcome.rows = [_row(task, subject, *one) for one in zip(asked, found, values, strict=True)]
    _summarise(outcome, asked, values, seed)
    return outcome


# ---- scores ----


def _values(task: Task, question: Question, said: Sequence[Any]) -> dict[str, Value]:
    answers = [Answer(float(logprob), int(tokens), bool(greedy)) for logprob, tokens, greedy in said]
    own, given = answers[: len(question.requests)], answers[len(question.requests) :]
    return {metric: VALUES[metric](question, own, given) for metric in task.metrics}


def _summarise(outcome: Outcome, asked: Sequence[Question], values: Sequence[Mapping[str, Value]], seed: int) -> None:
    by_part: dict[str, list[int]] = {}
    for place, question in enumerate(asked):
        by_part.setdefault(question.item.part, []).append(place)
    for part, places in by_part.items():
        outcome.parts[part] = {
            metric: aggregate(metric, [values[place][metric] for place in places], seed) for metric in outcome.task.metrics
        }
    for metric in outcome.task.metrics:
        each = [scores[metric] for scores in outcome.parts.values()]
        outcome.scores[metric] = each[0] if len(each) == 1 else over_parts(each, by_items=outcome.task.weigh == "items")
        guessed = outcome.task.chance if outcome.task.chance is not None else chance(asked, metric)
        if guessed is not None:
            outcome.chance[metric] = guessed


def _row(task: Task, subject: Subject, question: Question, said: Sequence[Any], values: Mapping[str, Value]) -> dict[str, Any]:
    context, continuation = question.requests[0]
    row: dict[str, Any] = {
        "model": subject.name, "task": task.name, "part": question.item.part, "id": question.item.id, "prompt": context,
        "values": {metric: value if not isinstance(value, tuple) else list(value) for metric, value in values.items()},
    }  # fmt: skip
    if task.kind == "generate":
        return row | {"texts": list(said), "answers": list(question.answers)}
    if task.kind == "choice":
        gold = list(question.gold) if isinstance(question.gold, tuple) else question.gold
        return row | {"choices": list(question.choices), "gold": gold, "logprobs": [one[0] for one in said]}
    return row | {"continuation": continuation, "logprobs": [said[0][0]], "greedy": bool(said[0][2])}


# ---- asking ----


def encode_pair(subject: Subject, context: str, continuation: str, *, bos: bool) -> Request:
    """Ids of a context and of what follows it; an empty context is what begins a text."""
    spare = len(context) - len(context.rstrip())
    if spare:
        context, continuation = context[:-spare], context[-spare:] + continuation
    before = list(subject.separator) if bos or not context else []
    if not context:
        return before, subject.tokenizer.encode(continuation)
    own = subject.tokenizer.encode(context)
    return [*before, *own], subject.tokenizer.encode(context + continuation)[len(own) :]


def _score_all(
    asked: Sequence[Question], subject: Subject, kept: _Log, terminal: Terminal, title: str, protocol: Protocol
) -> list[list[Any]]:
    """(log-likelihood, tokens, greedy) of each request of each question, those behind `given` last."""
    done = kept.read(len(asked))
    bos = protocol.bos == "model"
    with terminal.progress(f"{subject.name}: {title}", len(asked)) as progress, kept.open() as keep:
        progress.advance(len(done), "questions")
        for chunk in _chunks(asked[len(done) :], subject, bos=bos):
            flat = [pair for pairs in chunk for pair in pairs]
            said = iter(zip(subject.scorer.loglikelihoods(flat), flat, strict=True))
            for pairs in chunk:
                answers = [next(said) for _ in pairs]
                done.append([[float(one[0]), len(pair[1]), bool(one[1])] for one, pair in answers])
                keep(done[-1])
            progress.advance(len(chunk), "questions")
    return done


def _chunks(asked: Sequence[Question], subject: Subject, *, bos: bool) -> Iterator[list[list[Request]]]:
    """The requests of questions, as many together as `CHUNK_TOKENS` allows: what a question's requests share counts once."""
    chunk: list[list[Request]] = []
    room = CHUNK_TOKENS
    for question in asked:
        pairs = [encode_pair(subject, *request, bos=bos) for request in (*question.requests, *question.given)]
        size = max(len(pair[0]) for pair in pairs) + sum(len(pair[1]) for pair in pairs)
        if chunk and size > room:
            yield chunk
            chunk, room = [], CHUNK_TOKENS
        chunk.append(pairs)
        room -= size
    if chunk:
        yield chunk


def _write_all(
    task: Task, asked: Sequence[Question], subject: Subject, kept: _Log, terminal: Terminal, protocol: Protocol, seed: int
) -> list[list[str]]:
    """The texts that the model writes to each question, `repeats` of each."""
    done = kept.read(len(asked))
    title = f"{subject.name}: {task.title}: {len(asked):,} texts"
    with terminal.progress(title, len(asked)) as progress, kept.open() as keep:
        progress.advance(len(done), "texts")
        while len(done) < len(asked):
            some = asked[len(done) : len(done) + max(1, CHUNK_TEXTS // task.repeats)]
            start = list(subject.separator) if protocol.bos == "model" else []
            prompts = [[*start, *subject.tokenizer.encode(one.requests[0][0])] for one in some]
            for texts in written.write(task, prompts, subject, seed + len(done)):
                done.append(texts)
                keep(texts)
            progress.advance(len(some), "texts")
    return done


class _Log:
    """Answers by line, behind a line that says to what."""

    def __init__(self, path: Path, head: str) -> None:
        self._path, self._head = path, head
        self._end = 0  # of what is there and right

    def read(self, most: int) -> list[list[Any]]:
        """What is there of this very task, in order; a torn last line is dropped."""
        found: list[list[Any]] = []
        if not self._path.exists():
            return found
        with self._path.open("rb") as stream:
            if stream.readline().strip() != self._head.encode():
                return found
            self._end = stream.tell()
            for line in stream:
                try:
                    found.append(json.loads(line))
                except ValueError:
                    break
                if not line.endswith(b"\n") or len(found) > most:
                    found.pop()
                    break
                self._end += len(line)
        return found

    @contextmanager
    def open(self) -> Iterator[Callable[[list[Any]], None]]:
        """What keeps a line; each is on its way to the disk when it returns."""
        fresh = not self._end
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("wb" if fresh else "r+b") as stream:
            if fresh:
                stream.write(self._head.encode() + b"\n")
            else:
                stream.truncate(self._end)
                stream.seek(self._end)

            def keep(value: list[Any]) -> None:
                stream.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
                stream.flush()

            yield keep
