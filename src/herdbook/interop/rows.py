"""The orders in which checkpoints keep the rows of query, key and value.

Fused: several of our tensors in one of theirs, one after the other, or group by group (`stack`, `unstack`).

Turned in pairs: RoPE turns pairs of values of a head (arXiv:2104.09864), and which two make a pair is a matter of order. Meta's
LLaMA files, llama2.c, GPT-J and GGUF's llama layout pair neighbours, (0, 1), (2, 3), …; Hugging Face's LLaMA pairs the halves
of a head, (0, E/2), (1, E/2 + 1), …. Moving the rows of q and k within each head turns one into the other, and as both are
moved alike their dot products, so the logits, stay the same. Value and output are not touched.

    halves        a0 a1 a2 a3 b0 b1 b2 b3
    interleaved   a0 b0 a1 b1 a2 b2 a3 b3

Shapes: H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from herdbook.model.config import ModelConfig


def stack(parts: Sequence[Tensor], groups: int = 1) -> Tensor:
    """Tensors (n, …) as one: for each of `groups`, its share of every tensor, one after the other.

    With one group that is plain stacking, [all q, all k, all v]; with as many as key heads, [its queries, its key, its value]
    for each key head.
    """
    return torch.cat([part.view(groups, -1, *part.shape[1:]) for part in parts], dim=1).flatten(0, 1)


@torch.no_grad()
def unstack(whole: Tensor, parts: Sequence[Tensor], groups: int = 1) -> None:
    """Copy what `stack` put together back into `parts`, without another copy in between."""
    rest = whole.shape[1:]
    inside = torch.split(whole.view(groups, -1, *rest), [part.shape[0] // groups for part in parts], dim=1)
    for part, stored in zip(parts, inside, strict=True):
        part.view(groups, -1, *rest).copy_(stored)


def to_interleaved(rows: Tensor, heads: int) -> Tensor:
    """(H·E, …) with pairs in the halves of each head to (H·E, …) with pairs side by side: a weight or a bias of q or k.

    Raises ValueError when the rows do not make `heads` heads of even width.
    """
    return rows.reshape(heads, 2, _pairs(rows, heads), -1).transpose(1, 2).reshape(rows.shape)


def to_halves(rows: Tensor, heads: int) -> Tensor:
    """The way back: (H·E, …) with pairs side by side to (H·E, …) with pairs in the halves of each head.

    Raises ValueError when the rows do not make `heads` heads of even width.
    """
    return rows.reshape(heads, _pairs(rows, heads), 2, -1).transpose(1, 2).reshape(rows.shape)


def turned_heads(name: str, cfg: ModelConfig) -> int | None:
    """How many heads the rows of a decoder's parameter make, where RoPE turns them: those of q and k. None: it does not."""
    part = name.rpartition(".")[0]
    if part.endswith("attn.q"):
        return cfg.n_heads
    return cfg.kv_heads if part.endswith("attn.k") else None


def _pairs(rows: Tensor, heads: int) -> int:
    if heads < 1 or rows.shape[0] % (2 * heads):
        raise ValueError(f"{rows.shape[0]} rows do not make {heads} heads of even width")
    return rows.shape[0] // (2 * heads)
