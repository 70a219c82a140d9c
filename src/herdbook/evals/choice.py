"""Multiple choice made from a corpus' own held-out documents: which of four answers does the model find likeliest?

- `docstring_choice`: the first sentence of which docstring belongs to this function? A base model sees the signature as it
  stands in the documents; a model with a chat template is asked "What does `name` do?".
- `continuation_choice`: which second sentence follows this first sentence of an article?

All four answers come from held-out documents that look alike (same package or language, nearest length), so no answer was
trained on more than another. Left out are answers that also are the answer of a training document, and distractors that
nearly repeat the right one. Most functions are named for what they do (`read_file`: "Read a file."), so a model can find
their sentence by copying; those questions are counted apart from the others (`docstring_choice_named`, `_unnamed`), and
distractors that repeat the name too are taken where there are any. Everything is drawn by hashes of the seed and the
documents' ids. An answer's score is its log-likelihood; `acc_norm` divides it by the answer's
length in characters, as the Open LLM Leaderboard does, since longer answers are less likely. Chance is 1/4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from herdbook.console import Terminal
from herdbook.documents import read_documents
from herdbook.evals.scoring import Request, Subject, accuracy, draw_key, score

VERSION = 1
CHOICES = 4
QUESTIONS = 250  # of a quiz where no limit is set
_NEAREST = 12  # distractors are drawn from so many candidates, the nearest in length
_POOL = 4000  # candidates looked at; a larger corpus is sampled down to these
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[`]?[A-ZÀ-Ý0-9])")
_NAME = re.compile(r"[A-Za-z_][\w.]*")
_WORD = re.compile(r"[^\W\d_]+")
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|cf|vs|approx|St|Dr|Mr|Mrs|c|b|d|[A-Z])\.)$")


@dataclass(frozen=True)
class Pair:
    """What a document offers: a question in both forms, and its answer.

    Attributes:
        group: what distractors should share with it (a package, a language).
        name: what the question is about, if it has a name.
    """

    id: str
    group: str
    name: str
    prompt: str
    chat: str
    answer: str


@dataclass(frozen=True)
class Question:
    """A question with its choices, the right one at `gold`; `named` if the right one repeats a word of the question's name."""

    pair: Pair
    choices: tuple[str, ...]
    gold: int
    named: bool


@dataclass
class Quiz:
    """The questions of a task, how many there could be, and what was left out for which reason."""

    task: str
    source: str
    questions: list[Question] = field(default_factory=list)
    available: int = 0
    left_out: dict[str, int] = field(default_factory=dict)


def docstring_pair(row: dict[str, Any]) -> Pair | None:
    """Signature → first sentence of the docstring, or None for modules and topics and where there is no plain sentence."""
    signature, _, body = row["text"].partition("\n\n")
    name = signature.removeprefix("class ").partition("(")[0].strip()
    answer = next(sentences(body.partition("\n\n")[0]), "")
    if not _NAME.fullmatch(name) or not _plain(answer):
        return None
    return Pair(row["id"], name.partition(".")[0], name, f"{signature}\n\n", f"What does `{name}` do?", answer)


def prose_pair(row: dict[str, Any]) -> Pair | None:
    """First sentence → second sentence of an article, or None where there are not two of fair length."""
    found = [*islice(sentences(row["text"].partition("\n\n")[0]), 2)]
    if len(found) < 2 or not all(map(_plain, found)):
        return None
    return Pair(row["id"], row["language"] or "", "", f"{found[0]} ", f"Continue this text: {found[0]}", found[1])


PAIRS: dict[str, Callable[[dict[str, Any]], Pair | None]] = {
    "docstring_choice": docstring_pair,
    "continuation_choice": prose_pair,
}


def sentences(text: str) -> Iterator[str]:
    """The sentences of a paragraph, spaces folded; an abbreviation ends none."""
    folded = " ".join(text.split())
    begin = 0
    for match in _SENTENCE_END.finditer(folded):
        if not _ABBREVIATION.search(folded[begin : match.start()]):
            yield folded[begin : match.end()].strip()
            begin = match.end()
    if folded[begin:]:
        yield folded[begin:]


def _plain(sentence: str) -> bool:
    """Whether a sentence is prose of fair length, not code, markup or a table."""
    words = _WORD.findall(sentence)
    letters = sum(map(len, words))
    markup = any(mark in sentence for mark in (">>>", "::", "|", "..  ", "<", "{"))
    return 20 <= len(sentence) <= 240 and len(words) >= 4 and letters >= 0.65 * len(sentence) and not markup


def fold(text: str) -> str:
    """A sentence without case and punctuation, to compare it by."""
    return " ".join(_WORD.findall(text.lower()))


def gives_away(name: str, answer: str) -> bool:
    """Whether the last part of a dotted name shares a word (by its first five letters) with an answer."""
    last = name.rpartition(".")[2]
    parts = {part.lower() for part in _PART.findall(last) if len(part) >= 4} | {re.sub(r"\W", "", last.lower())}
    words = fold(answer).split()
    return any(word.startswith(part[:5]) for part in parts if len(part) >= 3 for word in words)


def build_quiz(task: str, corpus: Path, source: str, *, limit: int | None, seed: int) -> Quiz:
    """The questions of a task from the held-out documents of `source`; the same for the same corpus, limit and seed."""
    quiz = Quiz(task, source)
    make = PAIRS[task]
    found = [pair for row in _rows(corpus, "heldout", source) if (pair := make(row)) is not None]
    quiz.available = len(found)
    found.sort(key=lambda pair: draw_key(seed, task, pair.id))
    pool = _without_repeats(found[: _POOL if limit is None else max(_POOL, 4 * limit)], quiz)
    pool = _without_trained(pool, (make(row) for row in _rows(corpus, "train", source)) if pool else (), quiz)
    for pair in pool:
        if limit is not None and len(quiz.questions) >= limit:
            break
        named = bool(pair.name) and gives_away(pair.name, pair.answer)
        distractors = _distractors(pair, named, pool, seed)
        if len(distractors) < CHOICES - 1:
            _leave_out(quiz, "too few distractors")
            continue
        order = sorted([pair.answer, *distractors], key=lambda choice: draw_key(seed, pair.id, choice))
        quiz.questions.append(Question(pair, tuple(order), order.index(pair.answer), named))
    return quiz


def _rows(corpus: Path, split: Any, source: str) -> Iterable[dict[str, Any]]:
    columns = ["id", "text", "source", "language"]
    return (row for row in read_documents(corpus, split, columns=columns) if row["source"] == source)


def _leave_out(quiz: Quiz, reason: str, count: int = 1) -> None:
    if count:
        quiz.left_out[reason] = quiz.left_out.get(reason, 0) + count


def _without_repeats(pairs: Sequence[Pair], quiz: Quiz) -> list[Pair]:
    """One pair an answer: overloads and aliases share their first sentence."""
    by_answer: dict[str, Pair] = {}
    for pair in pairs:
        by_answer.setdefault(fold(pair.answer), pair)
    _leave_out(quiz, "the same answer as another", len(pairs) - len(by_answer))
    return list(by_answer.values())


def _without_trained(pairs: list[Pair], trained: Iterable[Pair | None], quiz: Quiz) -> list[Pair]:
    """Only pairs whose answer is not the answer of a training document too."""
    answers = {fold(pair.answer) for pair in pairs}
    seen = {folded for pair in trained if pair is not None and (folded := fold(pair.answer)) in answers}
    kept = [pair for pair in pairs if fold(pair.answer) not in seen]
    _leave_out(quiz, "the answer is in the training text", len(pairs) - len(kept))
    return kept


def _distractors(pair: Pair, named: bool, pool: Sequence[Pair], seed: int) -> list[str]:
    """Three answers of other documents: of the same group where it has enough, near in length, unlike one another.

    What the right answer does with the question's name, repeat it or not, the others do too as far as they can. How many of
    them are longer than the right answer is drawn, so that preferring long or short sentences wins nothing.
    """

    def rank(other: Pair) -> tuple[bool, bool, float, str]:
        length = abs(math.log(len(other.answer) / len(pair.answer)))
        unlike = bool(pair.name) and gives_away(pair.name, other.answer) != named
        return unlike, other.group != pair.group, length, other.id

    nearest = sorted((other for other in pool if other.id != pair.id), key=rank)[:_NEAREST]
    drawn = sorted(nearest, key=lambda other: (rank(other)[0], draw_key(seed, pair.id, other.id)))
    longer = draw_key(seed, pair.id, "longer")[0] % CHOICES
    room = {True: longer, False: CHOICES - 1 - longer}
    chosen: list[str] = []
    for unlike, strict in ((False, True), (False, False), (True, True), (True, False)):
        for other in (other for other in drawn if rank(other)[0] == unlike and other.answer not in chosen):
            side = (len(other.answer), other.id) > (len(pair.answer), pair.id)
            free = len(chosen) < CHOICES - 1 and (room[side] > 0 or not strict)
            if free and not any(_alike(other.answer, known) for known in (pair.answer, *chosen)):
                chosen.append(other.answer)
                room[side] -= 1
    return chosen


def _alike(one: str, other: str) -> bool:
    """Whether two sentences share more than 60 % of their words."""
    left, right = set(fold(one).split()), set(fold(other).split())
    return len(left & right) > 0.6 * len(left | right)


def multiple_choice(subject: Subject, quiz: Quiz, terminal: Terminal, render: Callable[[str], str]) -> list[dict[str, Any]]:
    """Let a model choose.

    Args:
        render: the text of a chat up to where the answer begins, from the question; used if `subject.chat`.

    Returns:
        one row a question; `summary` gives their scores.
    """
    requests: list[Request] = []
    for question in quiz.questions:
        prompt = render(question.pair.chat) if subject.chat else question.pair.prompt
        requests += [_request(subject, prompt, choice) for choice in question.choices]
    answers = score(subject, requests, terminal, quiz.task.replace("_", " "))
    return [
        _judge(subject, quiz.task, question, answers[start : start + CHOICES])
        for start, question in zip(range(0, len(answers), CHOICES), quiz.questions, strict=True)
    ]


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """`acc`, `acc_stderr`, `acc_norm` and `acc_norm_stderr` of some questions; the errors are absent for a single one."""
    figures: dict[str, float] = {}
    for metric in ("acc", "acc_norm"):
        found = accuracy([row[metric] for row in rows])
        figures |= {metric: found["value"], **({f"{metric}_stderr": found["stderr"]} if "stderr" in found else {})}
    return figures


def _request(subject: Subject, prompt: str, choice: str) -> Request:
    """Context and continuation, cut where the tokens of the whole text leave those of the prompt.

    Spaces at the end of the prompt belong to the continuation, as tokens begin with spaces and do not end with them.
    """
    encode = subject.tokenizer.encode
    whole, head = encode(prompt + choice), encode(prompt.rstrip())
    cut = next((index for index, (one, two) in enumerate(zip(whole, head, strict=False)) if one != two), len(head))
    context = [] if subject.chat else subject.separator
    tokens = [*context, *whole]
    cut += len(context)
    overflow = max(0, len(tokens) - subject.context)
    first = max(cut, overflow + 1, 1)
    return tokens[overflow:first], tokens[first:]


def _judge(subject: Subject, task: str, question: Question, answers: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """The row of one question; of equally likely choices the first counts as chosen."""
    scores = [answer[0] for answer in answers]
    normed = [value / len(choice) for value, choice in zip(scores, question.choices, strict=True)]
    return {
        "model": subject.name,
        "task": task,
        "doc_id": question.pair.id,
        "question": question.pair.chat if subject.chat else question.pair.prompt.rstrip(),
        "choices": list(question.choices),
        "target": question.gold,
        "named": question.named,
        "resps": [round(value, 4) for value in scores],
        "acc": scores.index(max(scores)) == question.gold,
        "acc_norm": normed.index(max(normed)) == question.gold,
    }
