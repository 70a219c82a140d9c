"""AWQ: a weight that meets large inputs is made larger before rounding, and what comes before it smaller by as much.

Rounding errs by a share of a group's largest weight, whatever the input. With inputs divided by s and columns multiplied by
s the product is the same, and the error of columns with s > 1 counts less. s = (root mean square of the input)^α for the α
between 0 and 1 that leaves the smallest error on the sample; 1 / s goes into the norm or matrix that makes the inputs, so the
model computes the same and no step is added (Lin et al. 2023, arXiv:2306.00978, sections 3.2 and 3.3).

That needs something before that scales its output: the norm in front of query, key, value and of the feed-forward part;
value, in front of the attention's output (by heads that queries share; not where values are clipped); `up`, in front of
`down` (with a gate, or ReLU, which lets positive factors through). A norm after its part feeds the stream too and cannot be
touched.

Shapes: N rows, K columns, H query heads, J key/value heads, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from herdbook.model.decoder import Block, Norm
from herdbook.model.quantized import Form
from herdbook.quantize.gptq import objective
from herdbook.quantize.grid import quantized

STEPS = 10  # values of α between 0 and 1
LEAST, MOST = 1e-4, 1e4


@dataclass(frozen=True)
class Fold:
    """Where the scale of some inputs can go.

    Attributes:
        source: what makes the inputs.
        readers: the linear layers that read them; nothing else does.
        shared: so many neighbouring heads of the inputs come from one of the source's, each `width` wide.
    """

    source: Norm | nn.Linear
    readers: tuple[nn.Linear, ...]
    shared: int = 1
    width: int = 1


def folds(block: Block) -> list[Fold]:
    """What can be scaled in a block, in the order in which it is computed."""
    attn, ff = block.attn, block.ff
    into_attn, into_ff = (attn.q, attn.k, attn.v), tuple(part for part in (ff.gate, ff.up) if part is not None)
    found = []
    if not block.post:
        found.append(Fold(block.attn_norm, into_attn if block.ff_norm is not None else (*into_attn, *into_ff)))
    if attn.clip is None:
        found.append(Fold(attn.v, (attn.o,), shared=attn.heads // attn.kv_heads, width=attn.head_dim))
    if not block.post and block.ff_norm is not None:
        found.append(Fold(block.ff_norm, into_ff))
    if ff.gate is not None or ff.activation == "relu":
        found.append(Fold(ff.up, (ff.down,)))
    return found


@torch.no_grad()
def fold(where: Fold, gram_KK: Tensor, form: Form) -> Tensor:
    """Scale the readers' columns by the best s and the source by 1 / s, in place; the scales (K,).

    Args:
        gram_KK: mean of x·xᵀ over the inputs.
    """
    size_K = _shared_size(gram_KK.diagonal(), where)
    weight_NK = torch.cat([reader.weight.float() for reader in where.readers])
    best, least = torch.ones_like(size_K), float("inf")
    for step in range(STEPS + 1):
        scale_K = _scale(size_K, step / STEPS)
        scaled_NK = weight_NK * scale_K
        scaled_KK = gram_KK / scale_K[:, None] / scale_K
        error = float(objective(scaled_NK, quantized(scaled_NK, form, search=False), scaled_KK).sum())
        if error < least:
            best, least = scale_K, error
    move(where, best)
    return best


@torch.no_grad()
def move(where: Fold, scale_K: Tensor) -> None:
    """Multiply the readers' columns by scales (K,), alike where heads are shared, and divide what the source gives by them."""
    for reader in where.readers:
        reader.weight.copy_(reader.weight.float() * scale_K)
    scale_JE = scale_K.view(-1, where.shared, where.width)[:, 0].reshape(-1)
    weight, bias = where.source.weight, where.source.bias
    weight.copy_(weight.float() / (scale_JE[:, None] if weight.dim() > 1 else scale_JE))
    if bias is not None:
        bias.copy_(bias.float() / scale_JE)


def _shared_size(squares_K: Tensor, where: Fold) -> Tensor:
    """Root mean squares of the inputs, (K,), alike where heads come from one."""
    squares_JSE = squares_K.float().view(-1, where.shared, where.width)
    return squares_JSE.mean(1, keepdim=True).expand_as(squares_JSE).reshape(-1).sqrt()


def _scale(size_K: Tensor, power: float) -> Tensor:
    scale_K = size_K.clamp(min=1e-8).pow(power)
    scale_K = scale_K / (scale_K.max() * scale_K.min()).sqrt()
    return scale_K.clamp(LEAST, MOST)
