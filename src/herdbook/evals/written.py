"""Texts that a model writes: drawing them, taking the answer out, and holding it against what is right.

| metric | a question's value |
|---|---|
| `exact_match` | the answer is one of the right ones |
| `contains` | a right answer stands somewhere in the text |
| `f1` | overlap of words with the right answer that fits best (SQuAD, arXiv:1606.05250, section 6.1) |
| `maj` | the answer that most of the repeated texts give is right (arXiv:2203.11171) |

An answer is what the first of `extract` finds, else nothing, else, without `extract`, the whole text; `clean` is applied to it
and to the right answers alike.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence

from herdbook.evals.expressions import expression
from herdbook.evals.metrics import Value
from herdbook.evals.prompts import Question
from herdbook.evals.scoring import Subject
from herdbook.evals.task import Task


def write(task: Task, prompts: Sequence[Sequence[int]], subject: Subject, seed: int) -> Iterator[list[str]]:
    """The texts to each prompt, `repeats` of each."""
    from herdbook.infer.config import Sampling

    assert subject.writer is not None
    settings = [
        Sampling(
            max_tokens=task.max_tokens, temperature=task.temperature, top_p=task.top_p, stop=tuple(task.until), n=task.repeats,
            seed=seed + place, truncate_prompt=True,
        )
        for place in range(len(prompts))
    ]  # fmt: skip
    for completion in subject.writer.generate(prompts, settings):
        yield [completion.text, *(other.text for other in completion.others)]


def answer(task: Task, text: str) -> str | None:
    """What a text answers, cleaned; None where nothing is found."""
    found = text if not task.extract else next(filter(None, (expression(one)({"text": text}) for one in task.extract)), None)
    return None if found is None else clean(task, str(found))


def clean(task: Task, text: str) -> str:
    """A text in the form in which answers are compared."""
    for one in task.clean:
        text = str(expression(one)({"text": text}))
    return text


def values(task: Task, asked: Sequence[Question], texts: Sequence[Sequence[str]]) -> list[dict[str, Value]]:
    """The value of each metric for each question."""
    found: list[dict[str, Value]] = []
    for question, said in zip(asked, texts, strict=True):
        right = [clean(task, text) for text in question.answers]
        answers = [answer(task, text) for text in said]
        found.append({metric: _value(metric, answers, right, said) for metric in task.metrics})
    return found


def _value(metric: str, answers: Sequence[str | None], right: Sequence[str], said: Sequence[str]) -> float:
    if metric == "maj":
        votes = Counter(one for one in answers if one is not None)
        return float(bool(votes) and votes.most_common(1)[0][0] in right)
    if metric == "contains":
        return statistics.fmean(float(any(one in text for one in right)) for text in said)
    if metric == "f1":
        return statistics.fmean(max((_f1(one or "", true) for true in right), default=0.0) for one in answers)
    return statistics.fmean(float(one in right) for one in answers)


def _f1(said: str, right: str) -> float:
    mine, theirs = said.split(), right.split()
    shared = sum((Counter(mine) & Counter(theirs)).values())
    return float(mine == theirs) if not mine or not theirs else 2 * shared / (len(mine) + len(theirs))
