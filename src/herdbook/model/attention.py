"""Attention: one function that picks a kernel, and a plain reference beside it.

    query heads   q0 q1 q2 q3 q4 q5      MHA: a key/value head for each      (K = H)
                   \\ | /    \\ | /        GQA: one for each group of queries  (1 < K < H)
    key heads       k0       k1          MQA: one for all                    (K = 1)

Who may see whom is a `Sight`, made once a forward and used by all layers: `causal` (query i sees keys up to i, the fast path
of every kernel) or a boolean mask. Kernels are torch's SDPA. Two things measured on CPU with torch 2.13 decide the path: its
`enable_gqa` costs 6-14 times too much at a single query, where folding the heads of a group into the query length gives the
same numbers (one query needs no order among queries); and `is_causal` beats a mask by 1.7 times at 2,048 tokens.

Shapes: B batch, T queries, S keys, H query heads, K key/value heads, E head width.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


class Sight(NamedTuple):
    """Which keys each query sees.

    Attributes:
        mask: boolean, (B or 1, 1, T, S), True where the query sees the key; None where there is no restriction but `causal`.
        causal: query i sees keys 0..i; only with T == S and without a mask.
    """

    mask: Tensor | None = None
    causal: bool = True


class KeyValueCache(Protocol):
    """What the decoder asks of a cache of earlier keys and values; the engine owns the memory (see `infer/cache.py`)."""

    def positions(self, time: int) -> Tensor:
        """Positions (B, T) of the `time` tokens that come next, each row counted on from its own length."""

    def sight(self, time: int) -> Sight:
        """What the next `time` queries see of the keys that `extend` returns."""

    def extend(self, layer: int, k_BKTE: Tensor, v_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the new keys and values of a layer; all of that layer so far, (B, K, S, E) each."""


def attention(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, sight: Sight, *, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention, (B, H, T, E), by the kernel that serves best."""
    B, H, T, E = q_BHTE.shape
    K = k_BKSE.shape[1]
    if T == 1 and H != K:
        q_BKGE = q_BHTE.reshape(B, K, H // K, E)
        out_BKGE = F.scaled_dot_product_attention(q_BKGE, k_BKSE, v_BKSE, attn_mask=sight.mask, dropout_p=dropout)
        return out_BKGE.reshape(B, H, 1, E)
    # One query at the end of its sequence sees every key, so there the causal flag has nothing to add.
    return F.scaled_dot_product_attention(
        q_BHTE, k_BKSE, v_BKSE, attn_mask=sight.mask, dropout_p=dropout,
        is_causal=sight.causal and sight.mask is None and T > 1, enable_gqa=H != K,
    )  # fmt: skip


def attention_reference(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, sight: Sight) -> Tensor:
    """The same in plain steps and float32; what `attention` is tested against."""
    group = q_BHTE.shape[1] // k_BKSE.shape[1]
    k_BHSE, v_BHSE = (x.float().repeat_interleave(group, dim=1) for x in (k_BKSE, v_BKSE))
    scores_BHTS = q_BHTE.float() @ k_BHSE.mT / math.sqrt(q_BHTE.shape[-1])
    T, S = scores_BHTS.shape[-2:]
    seen = sight.mask
    if seen is None:
        ones_TS = torch.ones(T, S, dtype=torch.bool, device=q_BHTE.device)
        seen = ones_TS.tril(S - T) if sight.causal else ones_TS
    weights_BHTS = scores_BHTS.masked_fill(~seen, float("-inf")).softmax(-1)
    return (weights_BHTS @ v_BHSE).to(q_BHTE.dtype)
