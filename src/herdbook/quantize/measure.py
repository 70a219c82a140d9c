"""What fewer bits cost: perplexity beside bits a weight.

All models are measured on the same rows of tokens, so their difference is known better than either figure: its standard error
is that of the rows' differences.

Shapes: B rows, T tokens, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from herdbook.console import Terminal
from herdbook.model.decoder import Decoder
from herdbook.model.quantized import stored_bytes
from herdbook.quantize.config import QuantizeConfig
from herdbook.quantize.run import quantize_model

ROWS_AT_ONCE = 4
PLAIN = "bf16"


@dataclass(frozen=True)
class Measured:
    """A model on the text.

    Attributes:
        form: how it is quantised, in words.
        bits: of a weight on average, all weights counted, norms too.
        bytes: of the weights on disk.
        perplexity: exp of the mean loss a token.
        stderr: standard error of the perplexity, over rows.
        cost: perplexity over that of the model in bf16, less one; None for that itself.
        cost_stderr: standard error of `cost`.
    """

    form: str
    bits: float
    bytes: int
    perplexity: float
    stderr: float
    cost: float | None = None
    cost_stderr: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The numbers as plain JSON."""
        return asdict(self)


@torch.inference_mode()
def row_losses(model: Decoder, rows_BT: Tensor) -> Tensor:
    """The mean loss (nats a token) of each row, (B,) in float64; a row's first token is read and not predicted."""
    losses = []
    for part_BT in torch.split(rows_BT.to(next(model.parameters()).device), ROWS_AT_ONCE):
        x_BTD = model.hidden(part_BT[:, :-1])
        for x_TD, targets_T in zip(x_BTD, part_BT[:, 1:], strict=True):
            losses.append(F.cross_entropy(model.head(x_TD), targets_T).double().cpu())
    return torch.stack(losses)


def measured(model: Decoder, form: str, losses_B: Tensor, plain_B: Tensor | None = None) -> Measured:
    """The figures of a model from the losses of its rows, beside those of the model in bf16."""
    perplexity = math.exp(float(losses_B.mean()))
    figures = {"bits": 8 * stored_bytes(model) / model.cfg.parameters(), "bytes": stored_bytes(model)}
    here = Measured(form, **figures, perplexity=perplexity, stderr=perplexity * _stderr(losses_B))  # type: ignore[arg-type]
    if plain_B is None:
        return here
    ratio = math.exp(float((losses_B - plain_B).mean()))
    return Measured(**{**asdict(here), "cost": ratio - 1, "cost_stderr": ratio * _stderr(losses_B - plain_B)})


def _stderr(values_B: Tensor) -> float:
    return float(values_B.std() / math.sqrt(len(values_B))) if len(values_B) > 1 else math.nan


def table(
    load: Callable[[], Decoder], forms: Sequence[QuantizeConfig], rows_BT: Tensor, sample_BT: Tensor | None, terminal: Terminal
) -> Iterator[Measured]:
    """The model as it is in bf16, and in each form, one model in memory at a time.

    Args:
        load: gives the dense model, anew each time.
        rows_BT: ids to measure on.
        sample_BT: other ids, for methods that look at text.
    """
    model = in_bf16(load())
    plain_B = row_losses(model, rows_BT)
    yield measured(model, PLAIN, plain_B)
    for form in forms:
        model = load()
        model.compute_dtype = torch.bfloat16
        model = quantize_model(model, form, terminal, None if form.method == "rtn" else sample_BT)
        yield measured(model, form.in_words(), row_losses(model, rows_BT), plain_B)


def in_bf16(model: Decoder) -> Decoder:
    """A dense model with matrices and computation in bfloat16."""
    model.compute_dtype = torch.bfloat16
    return model.to(torch.bfloat16)
