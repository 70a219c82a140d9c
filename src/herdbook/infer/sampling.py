"""Drawing the next tokens of a batch, each row with settings and a random generator of its own.

A row's draw is one uniform number from its generator, looked up in its cumulative distribution: nothing of it depends on the
other rows or on where in the batch the row stands.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from herdbook.infer.config import Sampling

__all__ = ["Sampling", "distribution", "draw"]


def distribution(logits_RV: Tensor, settings: Sequence[Sampling]) -> tuple[Tensor, Tensor]:
    """The probabilities to draw from and the ids they belong to, both (R, V), likeliest first; what is cut has 0.

    Ties are in order of id. Rows with temperature 0 keep only their first id.
    """
    device = logits_RV.device

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=device)[:, None]

    sorted_RV, ids_RV = logits_RV.double().sort(dim=-1, descending=True, stable=True)
    temperature_R1 = column([row.temperature or 1.0 for row in settings])
    # Below the largest logit everything is negative, so a tiny temperature gives -inf and never inf - inf.
    probabilities_RV = ((sorted_RV - sorted_RV[:, :1]) / temperature_R1).softmax(-1)
    places_V = torch.arange(logits_RV.shape[-1], device=device)
    keep_RV = places_V < column([1 if row.temperature == 0 else row.top_k or logits_RV.shape[-1] for row in settings])
    kept_RV = probabilities_RV * keep_RV
    kept_RV = kept_RV / kept_RV.sum(-1, keepdim=True)
    before_RV = kept_RV.cumsum(-1) - kept_RV
    keep_RV = (before_RV < column([row.top_p for row in settings])) & (
        kept_RV >= kept_RV[:, :1] * column([row.min_p for row in settings])
    )
    kept_RV = kept_RV * keep_RV
    return kept_RV / kept_RV.sum(-1, keepdim=True), ids_RV


def draw(logits_RV: Tensor, settings: Sequence[Sampling], generators: Sequence[torch.Generator]) -> Tensor:
    """One id a row, (R,). Each row that is not greedy takes one number from its generator."""
    if all(row.temperature == 0 for row in settings):
        return logits_RV.argmax(-1)
    probabilities_RV, ids_RV = distribution(logits_RV, settings)
    numbers = [
        0.0 if row.temperature == 0 else torch.rand((), generator=generator, dtype=torch.float64).item()
        for row, generator in zip(settings, generators, strict=True)
    ]
    uniform_R1 = torch.tensor(numbers, dtype=torch.float64, device=logits_RV.device)[:, None]
    places_R1 = torch.searchsorted(probabilities_RV.cumsum(-1), uniform_R1, right=True)
    # Rounding can leave the sum just below 1, and a number above it would fall off the end.
    last_R1 = (probabilities_RV > 0).sum(-1, keepdim=True) - 1
    return ids_RV.gather(-1, places_R1.minimum(last_R1))[:, 0]
