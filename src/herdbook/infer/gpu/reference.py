"""Plain torch for what `paged.attend` does in Triton. What `paged.keep` does is `Memory.keep`.

Shapes: B sequences, H query heads, K key/value heads, G = H / K queries of a group, E head width, P blocks of a table, S slots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from herdbook.infer.backend import BLOCK
from herdbook.infer.memory import Memory


@dataclass(frozen=True)
class Bias:
    """ALiBi: the slope of each query head, (H,) float32, and whether it is Falcon's variant (see `attention.with_alibi`)."""

    slopes_H: Tensor
    falcon: bool


def attend(
    q_BHE: Tensor, memory: Memory, tables_BP: Tensor, positions_B: Tensor, *,
    bias: Bias | None = None, window: int | None = None,
) -> Tensor:  # fmt: skip
    """Attention of the last token of each sequence, (B, H, E), over keys and values in its blocks, its own among them.

    Args:
        q_BHE: the queries, in the type to compute in.
        memory: the layer's keys and values.
        tables_BP: the blocks of each sequence in order; what lies behind its last has no say.
        positions_B: of the queries, from 0: the query at 16 sees 17 keys, the first one of its second block the last.
        bias: ALiBi's, if positions are told by it.
        window: how many keys a query sees at most, itself among them; None: all.
    """
    (B, H, E), K = q_BHE.shape, memory.heads
    k_BKSE, v_BKSE = (part.float() for part in memory.read(tables_BP))
    scores_BKSG = k_BKSE @ q_BHE.float().view(B, K, H // K, E).mT
    scores_BHS = scores_BKSG.mT.reshape(B, H, -1) / math.sqrt(E)
    key_S = torch.arange(tables_BP.shape[1] * BLOCK, device=q_BHE.device)
    if bias is not None and bias.falcon:
        rounded_HS = (bias.slopes_H.bfloat16()[:, None] * key_S.bfloat16()).float()
        scores_BHS = scores_BHS + rounded_HS / math.sqrt(E)
    elif bias is not None:
        scores_BHS = scores_BHS + bias.slopes_H[:, None] * (key_S - positions_B[:, None])[:, None]
    seen_BS = key_S <= positions_B[:, None]
    if window is not None:
        seen_BS &= key_S > positions_B[:, None] - window
    weights_BHS = scores_BHS.masked_fill(~seen_BS[:, None], float("-inf")).softmax(-1)
    mixed_BKGE = weights_BHS.view(B, K, H // K, -1) @ v_BKSE
    return mixed_BKGE.reshape(B, H, E).to(q_BHE.dtype)
