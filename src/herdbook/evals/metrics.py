"""What scores are made of: a value for each question from log-likelihoods or texts, and one score from all values.

| metric | a question's value |
|---|---|
| `acc` | the likeliest continuation is the right one; of a completion: greedy decoding writes it |
| `acc_norm` | the same, each log-likelihood divided by the length of the bare choice in characters (lm-eval) |
| `acc_token` | divided by the number of its tokens (llm-foundry's gauntlet) |
| `acc_given` | less its log-likelihood behind a text without the question (GPT-3, arXiv:2005.14165, section 2.4; LLaMA) |
| `mc2` | probability of the true answers among all (TruthfulQA, arXiv:2109.07958) |
| `perplexity` | exp(−mean log-likelihood of the continuations) |
| `bits_per_byte`, `byte_perplexity`, `word_perplexity` | of whole texts, −sum of log-likelihoods over all bytes or words |

Metrics of texts that are written stand in `written`. The first choice wins where two are equal, as with `argmax`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from herdbook.evals.prompts import Question
from herdbook.evals.scoring import ratio_stderr

BITS = 1 / math.log(2)
HIGHER_IS_BETTER = {"perplexity": False, "bits_per_byte": False, "byte_perplexity": False, "word_perplexity": False}


@dataclass(frozen=True)
class Answer:
    """What a model says to a request: the log-likelihood of the continuation in nats, its tokens, and if greedy decoding
    would write it."""

    logprob: float
    tokens: int
    greedy: bool


@dataclass(frozen=True)
class Score:
    """A score, its standard error (None for fewer than two questions), and how many questions it is of."""

    value: float
    stderr: float | None
    count: int


Value = float | tuple[float, float]  # a ratio is given as numerator and denominator


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda place: (values[place], -place))


def _right(question: Question, values: Sequence[float]) -> float:
    best = _argmax(values)
    return float(question.gold == best if isinstance(question.gold, int) else question.gold[best])


def _acc(question: Question, said: Sequence[Answer], given: Sequence[Answer]) -> float:
    if not question.choices:
        return float(said[0].greedy)
    return _right(question, [one.logprob for one in said])


def _acc_norm(question: Question, said: Sequence[Answer], given: Sequence[Answer]) -> float:
    return _right(question, [one.logprob / max(1, len(text)) for one, text in zip(said, question.choices, strict=True)])


def _acc_token(question: Question, said: Sequence[Answer], given: Sequence[Answer]) -> float:
    return _right(question, [one.logprob / max(1, one.tokens) for one in said])


def _acc_given(question: Question, said: Sequence[Answer], given: Sequence[Answer]) -> float:
    return _right(question, [one.logprob - bare.logprob for one, bare in zip(said, given, strict=True)])


def _mc2(question: Question, said: Sequence[Answer], given: Sequence[Answer]) -> float:
    assert isinstance(question.gold, tuple)
    top = max(one.logprob for one in said)
    mass = [math.exp(one.logprob - top) for one in said]
    return sum(share for share, true in zip(mass, question.gold, strict=True) if true) / sum(mass)


def _nats(question: Question, said: Sequence[Answer], given: Sequence[Answer]) -> Value:
    return -said[0].logprob, 1.0


def _bytes(question: Question, said: Sequence[Answer], given: Sequence[Answer]) -> Value:
    return -said[0].logprob, float(len(question.requests[0][1].encode()))


def _words(question: Question, said: Sequence[Answer], given: Sequence[Answer]) -> Value:
    return -said[0].logprob, float(len(question.requests[0][1].split()))


VALUES: dict[str, Callable[[Question, Sequence[Answer], Sequence[Answer]], Value]] = {
    "acc": _acc, "acc_norm": _acc_norm, "acc_token": _acc_token, "acc_given": _acc_given, "mc2": _mc2, "perplexity": _nats,
    "bits_per_byte": _bytes, "byte_perplexity": _bytes, "word_perplexity": _words,
}  # fmt: skip


def aggregate(metric: str, values: Sequence[Value], seed: int = 0) -> Score:
    """One score of all values: their mean, or for ratios the ratio of the sums, put as the metric has it.

    The error of a mean is sample standard deviation / sqrt(n), as lm-eval has it; that of a ratio is bootstrapped over the
    questions, and carried through the exponential to first order.
    """
    pairs = [value for value in values if isinstance(value, tuple)]
    if not pairs:
        plain = [value for value in values if not isinstance(value, tuple)]
        stderr = statistics.stdev(plain) / math.sqrt(len(plain)) if len(plain) > 1 else None
        return Score(statistics.fmean(plain), stderr, len(plain))
    nats, sizes = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    ratio, spread = sum(nats) / max(sum(sizes), 1e-12), ratio_stderr(nats, sizes, seed)
    slope = BITS if metric == "bits_per_byte" else math.exp(min(ratio, 700))
    value = ratio * BITS if metric == "bits_per_byte" else slope
    return Score(value, None if spread is None else spread * slope, len(pairs))


def over_parts(scores: Sequence[Score], *, by_items: bool = False) -> Score:
    """The score of a task with parts: the mean of theirs, plain or by the number of items, with its error."""
    weights = [score.count if by_items else 1.0 for score in scores]
    value = sum(score.value * weight for score, weight in zip(scores, weights, strict=True)) / sum(weights)
    count = sum(score.count for score in scores)
    if any(score.stderr is None for score in scores):
        return Score(value, None, count)
    squares = sum(((score.stderr or 0) * weight) ** 2 for score, weight in zip(scores, weights, strict=True))
    return Score(value, math.sqrt(squares) / sum(weights), count)


def chance(questions: Sequence[Question], metric: str) -> float | None:
    """What guessing scores on these questions; None where that is not the number of choices' affair."""
    if not metric.startswith(("acc", "mc2")) or not all(question.choices for question in questions):
        return None
    if metric == "mc2":
        return statistics.fmean(sum(q.gold) / len(q.gold) for q in questions if isinstance(q.gold, tuple))
    return statistics.fmean(1 / len(question.choices) for question in questions)
