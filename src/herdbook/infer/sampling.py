"""Drawing the next token: what the settings make of the model's logits, and one draw from it.

A draw is one uniform number from the sequence's generator, looked up in the cumulative distribution of that sequence's row:
nothing of it depends on other rows. A vocabulary of 128,000 is hardly ever sorted: `top_k` takes what reaches the k-th value,
`min_p` what reaches a value, and `top_p` and `typical_p` sort the first thousand, and more only when those do not suffice.

Sources: top-k (Fan et al. 2018, arXiv:1805.04833), top-p (Holtzman et al. 2020, arXiv:1904.09751), typical (Meister et al.
2023, arXiv:2202.00666), min-p (Nguyen et al. 2024, arXiv:2407.01082), repetition penalty (Keskar et al. 2019, arXiv:1909.05858,
section 4.1), presence and frequency penalties as OpenAI's API has them.

Shapes: V vocabulary, C candidates, all of one row.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from herdbook.infer.config import Sampling

__all__ = ["Distribution", "History", "Sampling", "adjusted", "distribution", "draw", "log_probabilities"]

FloatArray = NDArray[np.floating]
IntArray = NDArray[np.int64]
FIRST = 1024  # candidates that are tried before all are sorted


@dataclass(frozen=True)
class Distribution:
    """What may be drawn.

    Attributes:
        ids: (C,), rising: a draw then hardly moves when rounding moves a probability, as it would if near ones changed places.
        probabilities: (C,) in float64; they sum to 1.
    """

    ids: IntArray
    probabilities: FloatArray

    def pick(self, number: float) -> int:
        """The id at a number in [0, 1)."""
        place = int(np.searchsorted(self.probabilities.cumsum(), number, side="right"))
        # Rounding can leave the sum just below 1, and a number above it would fall off the end.
        return int(self.ids[min(place, len(self.ids) - 1)])

    def of(self, token: int) -> float:
        """The probability of an id."""
        found = np.flatnonzero(self.ids == token)
        return float(self.probabilities[found[0]]) if len(found) else 0.0


@dataclass
class History:
    """Tokens of a sequence as the penalties count them.

    Attributes:
        seen: ids of prompt and text.
        text: how often the text has each id.
    """

    seen: set[int] = field(default_factory=set)
    text: Counter[int] = field(default_factory=Counter)

    def copy(self) -> History:
        """For a sequence that branches."""
        return History(set(self.seen), Counter(self.text))

    def add(self, token: int) -> None:
        """Count one more token of the text."""
        self.seen.add(token)
        self.text[token] += 1


def adjusted(
    logits_V: FloatArray,
    sampling: Sampling,
    history: History,
    *,
    allowed_V: NDArray[np.bool_] | None = None,
    known: int | None = None,
) -> FloatArray:
    """Logits after penalties, bias and constraint; the row itself where nothing changes it.

    Args:
        allowed_V: what the constraint allows.
        known: size of the tokenizer's vocabulary: rows of the embedding beyond it are padding and mean nothing.
    """
    bias = {token: value for token, value in sampling.logit_bias.items() if token < len(logits_V)}
    penal = sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty
    cut = known is not None and known < len(logits_V)
    if not (bias or penal or cut or allowed_V is not None):
        return logits_V
    logits_V = logits_V.copy()
    if sampling.repetition_penalty != 1 and history.seen:
        ids = np.fromiter(history.seen, dtype=np.int64)
        values = logits_V[ids]
        logits_V[ids] = np.where(values > 0, values / sampling.repetition_penalty, values * sampling.repetition_penalty)
    if (sampling.presence_penalty or sampling.frequency_penalty) and history.text:
        ids = np.fromiter(history.text.keys(), dtype=np.int64)
        counts = np.fromiter(history.text.values(), dtype=np.float32)
        logits_V[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    for token, value in bias.items():
        logits_V[token] += value
    if cut:
        logits_V[known:] = -np.inf
    if allowed_V is not None:
        logits_V[: len(allowed_V)][~allowed_V[: len(logits_V)]] = -np.inf
    return logits_V


def distribution(logits_V: FloatArray, sampling: Sampling) -> Distribution:
    """What is drawn from, of logits that are `adjusted` already."""
    if sampling.temperature == 0:
        return Distribution(np.array([logits_V.argmax()]), np.ones(1))
    top = float(logits_V.max())
    # Below the largest logit everything is negative, so a tiny temperature gives -inf and never inf - inf.
    ids, values = _likeliest(logits_V, sampling.top_k)
    with np.errstate(over="ignore"):
        weights = np.exp((values.astype(np.float64) - top) / sampling.temperature)
    if sampling.typical_p < 1:
        ids, weights = _typical(ids, weights, sampling.typical_p)
    if sampling.top_p < 1:
        ids, weights = _nucleus(ids, weights, sampling.top_p)
    if sampling.min_p > 0:
        keep = weights >= weights.max() * sampling.min_p
        ids, weights = ids[keep], weights[keep]
    keep = weights > 0
    return Distribution(ids[keep], weights[keep] / weights[keep].sum())


def _likeliest(values_V: FloatArray, count: int) -> tuple[IntArray, FloatArray]:
    """The `count` largest values and their ids, by rising id; of equal ones the lowest ids; 0: all."""
    if not 0 < count < len(values_V):
        return np.arange(len(values_V)), values_V
    least = np.partition(values_V, len(values_V) - count)[len(values_V) - count]
    above, level = np.flatnonzero(values_V > least), np.flatnonzero(values_V == least)
    ids = np.sort(np.concatenate((above, level[: count - len(above)])))
    return ids, values_V[ids]


def _nucleus(ids: IntArray, weights: FloatArray, share: float) -> tuple[IntArray, FloatArray]:
    """The largest weights that together reach a share of all, the one that crosses it included."""
    return _leading(ids, weights, -weights, share)


def _typical(ids: IntArray, weights: FloatArray, share: float) -> tuple[IntArray, FloatArray]:
    """The weights whose surprise is nearest to the entropy, up to a share of all."""
    keep = weights > 0
    ids, weights = ids[keep], weights[keep]
    surprise = -np.log(weights / weights.sum())
    entropy = float((weights / weights.sum() * surprise).sum())
    return _leading(ids, weights, np.abs(surprise - entropy), share)


def _leading(ids: IntArray, weights: FloatArray, rank: FloatArray, share: float) -> tuple[IntArray, FloatArray]:
    """By rising rank, ties by place, as many as together reach `share` of all weights."""
    wanted = share * weights.sum()
    for first in (FIRST, 16 * FIRST, len(ids)):
        if first < len(ids):
            near = np.flatnonzero(rank <= np.partition(rank, first)[first])
        else:
            near = np.arange(len(ids))
        order = near[np.argsort(rank[near], kind="stable")]
        sums = weights[order].cumsum()
        if len(near) == len(ids) or sums[-1] >= wanted:
            break
    kept = np.sort(order[: int(np.searchsorted(sums, wanted, side="left")) + 1])
    return ids[kept], weights[kept]


def draw(choices: Distribution, generator: torch.Generator) -> int:
    """One id, for one number from the generator."""
    return choices.pick(uniform(generator))


def uniform(generator: torch.Generator) -> float:
    """A number in [0, 1)."""
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def log_probabilities(logits_V: FloatArray, token: int, top: int) -> tuple[float, Mapping[int, float]]:
    """The model's own log-probability of a token, and of the `top` likeliest, likeliest first."""
    largest = float(logits_V.max())
    total = largest + math.log(float(np.exp(logits_V.astype(np.float64) - largest).sum()))
    if not top:
        return float(logits_V[token]) - total, {}
    ids, values = _likeliest(logits_V, min(top, len(logits_V)))
    order = np.argsort(-values, kind="stable")[:top]
    return float(logits_V[token]) - total, {int(ids[place]): float(values[place]) - total for place in order}
