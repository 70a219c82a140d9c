"""Attention: one function that picks a kernel, and a plain reference beside it.

    query heads   q0 q1 q2 q3 q4 q5      MHA: a key/value head for each      (K = H)
                   \\ | /    \\ | /        GQA: one for each group of queries  (1 < K < H)
    key heads       k0       k1          MQA: one for all                    (K = 1)

Who may see whom, and at what distance, is a `Sight`, made once a forward and used by all layers: `causal` (query i sees keys
up to i, the fast path of every kernel) or a boolean mask (packed documents, a sliding window), and ALiBi's slopes where
positions are told by a bias. Kernels are torch's SDPA. What was measured on CPU with torch 2.13 decides the path
(`benchmarks/attention.py` has the point on ALiBi):

- Its `enable_gqa` costs 6-14 times too much at a single query, where folding the heads of a group into the query length gives
  the same numbers (one query needs no order among queries).
- `is_causal` beats a mask or a bias by 1.4-1.7 times from 1,024 tokens on, forward and backward.
- FlexAttention has no backward on CPU, and beyond eight variants falls back to a path 5-25 times slower: not used.
- Training on short sequences in 16 bits, the fused kernel takes 2.5 times as long at 256 and 512 tokens, and 1.7 times at
  1,024, as plain products over blocks of queries, each with the keys up to its end: `CausalBlocks`.
- So ALiBi in 16 bits goes into the dot product: a bias that is slope times position is one more column of the query (the
  slope) and of the key (the position), and the causal kernel runs with no bias in memory at all. That is 1.3-1.5 times as
  fast from 1,024 tokens on, and the only way to 65,536 tokens. In float32 the bias is added while it is of reasonable
  size, because there the sum of large products would cost the last digits.
- A sliding window's mask takes 1.4-2 times as long as plain order. Where the window is a small part of the sequence, blocks of
  queries that read only what it shows take, from 4,096 tokens on, less than half of that, forward and backward.

Shapes: B batch, T queries, S keys, H query heads, K key/value heads, E head width, C extra columns.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

SHORT = 512  # below this many keys a bias is as fast as columns, and exact
LARGE = 2**28  # values of a bias that no forward should hold
BLOCK, BLOCKS_UP_TO = 128, 1024  # queries of a block, and the longest sequences that are trained on in blocks
WINDOW_BLOCK = 512  # least queries of a block that reads only the keys its window shows


class Sight(NamedTuple):
    """Which keys each query sees, and what is added to their scores.

    Attributes:
        mask: boolean, (B or 1, 1, T, S), True where the query sees the key; None where there is no restriction but `causal`.
        causal: query i sees keys 0..i at most; only with T == S. A mask or a bias beside it leaves out the later keys too, so
            that the flag only says that nobody has to look there.
        window: query i sees keys from i - window + 1 on at most; only with `causal`, and a mask or a bias beside it leaves out
            the earlier keys too, so that it only says that nobody has to look there.
        bias: (B or 1, H, T, S), added to the scaled scores; minus infinity where the mask or the order hides the key.
        columns: of the query (H, C) and of the key (B or 1, S, C), set behind theirs, so that their product joins the score.
    """

    mask: Tensor | None = None
    causal: bool = True
    window: int | None = None
    bias: Tensor | None = None
    columns: tuple[Tensor, Tensor] | None = None


class KeyValueCache(Protocol):
    """What the decoder asks of a cache of earlier keys and values; the engine owns the memory (`infer/torch_backend.py`)."""

    def positions(self, time: int) -> Tensor:
        """Positions (B, T) of the `time` tokens that come next, each row counted on from its own length."""

    def key_positions(self, time: int) -> Tensor:
        """Positions (B or 1, S) of the keys that `attend` reads when `time` tokens come next."""

    def sight(self, time: int) -> Sight | None:
        """What the next `time` queries see of the keys that `attend` reads; None: it knows that by itself, ALiBi and all."""

    def attend(self, layer: int, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, sight: Sight) -> Tensor:
        """Keep the new keys and values of a layer; attention over all of that layer so far, (B, H, T, E)."""


def with_window(sight: Sight, window: int, query_BT: Tensor, key_BS: Tensor) -> Sight:
    """`sight` through a sliding window: of the keys it shows, each query sees its own and the `window` - 1 before that.

    As Mistral 7B does it (arXiv:2310.06825, section 2), and transformers' `sliding_window`. Nothing changes, and costs nothing,
    where there are no more keys than that.

    Args:
        sight: who sees whom.
        window: how many keys a query sees at most, itself among them.
        query_BT: positions of the queries; key_BS: of the keys (either may have one row for all).
    """
    T, S = query_BT.shape[1], key_BS.shape[1]
    if window >= S:
        return sight
    if sight.causal:  # by place: positions may restart with each document, and stand still in padding
        sight = sight._replace(window=window)
        within = torch.ones(T, T, dtype=torch.bool, device=query_BT.device).tril().triu(1 - window)[None, None]
    else:
        within = (key_BS[:, None] > query_BT[:, :, None] - window)[:, None]
    return sight._replace(mask=within if sight.mask is None else sight.mask & within)


def alibi_slopes(heads: int, most: float = 8.0) -> Tensor:
    """ALiBi's slope of each head, (H,) in float32: 2^(-most·i/H) for i = 1..H (Press et al. 2022, arXiv:2108.12409, section 3).

    Where H is no power of two the slopes of the next power are used, every second one first, as the paper's own code, BLOOM
    and MPT do.
    """
    power = 2 ** math.ceil(math.log2(heads))
    slopes = torch.exp2(-most / power * torch.arange(1, power + 1, dtype=torch.float64)).float()
    return slopes if power == heads else torch.cat((slopes[1::2], slopes[::2]))[:heads]


def with_alibi(
    sight: Sight,
    slopes_H: Tensor,
    query_BT: Tensor,
    key_BS: Tensor,
    *,
    head_width: int,
    dtype: torch.dtype,
    falcon: bool = False,
) -> Sight:
    """`sight` with ALiBi: slope times the distance from query back to key is taken off each score.

    Args:
        sight: who sees whom.
        slopes_H: of each head, float32.
        query_BT: positions of the queries; key_BS: of the keys (either may have one row for all).
        head_width: E.
        dtype: type that attention computes in.
        falcon: Falcon's variant: slope and product rounded to bfloat16, counted from the beginning instead of back from the
            query, and divided by the root of the head width like the scores.
    """
    T, S = query_BT.shape[1], key_BS.shape[1]
    many = max(len(query_BT), len(key_BS)) * len(slopes_H) * T * S
    narrow = dtype.itemsize == 2 and S >= SHORT and not (torch.is_grad_enabled() and _in_blocks(T, S, dtype, key_BS.device))
    if not falcon and T > 1 and (narrow or many > LARGE):
        return sight._replace(columns=_alibi_columns(slopes_H * math.sqrt(head_width), key_BS, dtype))
    if falcon:
        rounded_BHS = (slopes_H.bfloat16()[:, None] * key_BS[:, None].bfloat16()).float()
        bias_BHTS = (rounded_BHS / math.sqrt(head_width))[:, :, None].expand(-1, -1, T, -1)
    else:
        bias_BHTS = slopes_H[:, None, None] * (key_BS[:, None, None] - query_BT[:, None, :, None])
    seen = sight.mask
    if seen is None and sight.causal:
        seen = torch.ones(T, S, dtype=torch.bool, device=bias_BHTS.device).tril(S - T)
    if seen is not None:
        bias_BHTS = bias_BHTS.masked_fill(~seen, float("-inf"))
    # The CPU's kernel takes a float32 bias beside 16-bit queries; the GPU's wants one type.
    return sight._replace(mask=None, bias=bias_BHTS.to(dtype) if bias_BHTS.is_cuda else bias_BHTS)


def _alibi_columns(slopes_H: Tensor, key_BS: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Slope times key position as a product of columns; the query's own position drops out of the softmax.

    A position is a·65536 + b·256 + c, and each part is below 256, so that eight bits hold it; a is there only when there are
    so many keys. The weights of a and b are shared between key and query, so that float16 does not overflow.
    """
    high_H = slopes_H.to(dtype)
    low_H = (slopes_H - high_H.float()).to(dtype)
    parts = [(key_BS % 256, 1, 1), (key_BS // 256 % 256, 16, 16)]
    parts += [(key_BS // 65536, 256, 256)] if key_BS.shape[1] > 65536 else []
    query = [slope * outside for slope in (high_H, low_H) for _, _, outside in parts]
    key = [(part * inside).to(dtype) for _ in (high_H, low_H) for part, inside, _ in parts]
    return torch.stack(query, -1), torch.stack(key, -1)


def attention(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, sight: Sight, *, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention, (B, H, T, E), by the kernel that serves best."""
    B, H, T, E = q_BHTE.shape
    K = k_BKSE.shape[1]
    mask = sight.mask if sight.bias is None else sight.bias
    if T == 1 and H != K:
        if mask is not None and mask.shape[1] == H:
            mask = mask.reshape(mask.shape[0], K, H // K, mask.shape[-1])
        q_BKGE = q_BHTE.reshape(B, K, H // K, E)
        out_BKGE = F.scaled_dot_product_attention(q_BKGE, k_BKSE, v_BKSE, attn_mask=mask, dropout_p=dropout)
        return out_BKGE.reshape(B, H, 1, E)
    blocks = sight.causal and sight.columns is None and not dropout and q_BHTE.requires_grad
    if blocks and _in_blocks(T, k_BKSE.shape[2], q_BHTE.dtype, q_BHTE.device):
        k_BHSE, v_BHSE = (x.repeat_interleave(H // K, dim=1) if H != K else x.contiguous() for x in (k_BKSE, v_BKSE))
        mixed_BHTE: Tensor = CausalBlocks.apply(q_BHTE.contiguous(), k_BHSE, v_BHSE, mask, 1 / math.sqrt(E))  # type: ignore[no-untyped-call]
        return mixed_BHTE
    if sight.columns is not None:
        query_HC, key_BSC = sight.columns
        q_BHTE = torch.cat((q_BHTE, query_HC[None, :, None].expand(B, H, T, -1)), -1)
        k_BKSE = torch.cat((k_BKSE, key_BSC[:, None].expand(B, K, -1, -1)), -1)
        v_BKSE = F.pad(v_BKSE, (0, query_HC.shape[-1]))  # the fused kernels want one width
    fused = partial(F.scaled_dot_product_attention, dropout_p=dropout, scale=1 / math.sqrt(E), enable_gqa=H != K)
    if mask is not None and sight.window is not None and (block := max(2 * sight.window, WINDOW_BLOCK)) <= T // 4:
        parts = []
        for start in range(0, T, block):
            queries, keys = slice(start, start + block), slice(max(0, start - sight.window + 1), start + block)
            part = q_BHTE[:, :, queries], k_BKSE[:, :, keys], v_BKSE[:, :, keys]
            parts.append(fused(*part, attn_mask=mask[:, :, queries, keys]))
        return torch.cat(parts, 2)[..., :E]
    # One query at the end of its sequence sees every key, so there the causal flag has nothing to add.
    out_BHTE = fused(q_BHTE, k_BKSE, v_BKSE, attn_mask=mask, is_causal=sight.causal and mask is None and T > 1)
    return out_BHTE[..., :E]


def _in_blocks(T: int, S: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether training is done by `CausalBlocks`: short sequences in bfloat16 on a CPU, cut into equal blocks."""
    return 2 * BLOCK <= T <= BLOCKS_UP_TO and T == S and T % _block(T) == 0 and (device.type, dtype) == ("cpu", torch.bfloat16)


def _block(T: int) -> int:
    return max(BLOCK, T // 4)


class CausalBlocks(torch.autograd.Function):
    """Causal attention as products over blocks of queries, each with the keys up to its end, so that only the blocks on the
    diagonal compute scores in vain.

    The softmax is divided through after the product with the values, as in FlashAttention (arXiv:2205.14135, section 3.1), and
    so is its gradient. The exponentials are kept for the backward in the type of the queries: about 5/8 of T values a query.
    The products of queries and keys are rounded to that type, which a kernel that never writes them does not do: with random
    inputs outputs are off by 0.4 % of their size instead of 0.2 %, gradients by as much as there. A bias is added after that.
    """

    @staticmethod
    def forward(ctx: Any, q_BHTE: Tensor, k_BHTE: Tensor, v_BHTE: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """As scaled dot-product attention. `mask`: boolean, or added to the scores; None is causal, and so must others be."""
        T, parts, kept = q_BHTE.shape[2], [], []
        for start in range(0, T, _block(T)):
            end = start + _block(T)
            scores = (q_BHTE[:, :, start:end] @ k_BHTE[:, :, :end].mT).float() * scale
            if mask is None:
                seen = torch.ones(end - start, end, dtype=torch.bool, device=scores.device).tril(start)
            else:
                seen = mask[:, :, start:end, :end]
            scores = scores.masked_fill(~seen, float("-inf")) if seen.dtype == torch.bool else scores + seen
            raised = (scores - scores.amax(-1, keepdim=True)).exp()
            share = 1 / raised.sum(-1, keepdim=True)
            raised = raised.to(q_BHTE.dtype)
            parts.append(((raised @ v_BHTE[:, :, :end]).float() * share).to(q_BHTE.dtype))
            kept += [raised, share]
        out_BHTE = torch.cat(parts, 2)
        ctx.save_for_backward(q_BHTE, k_BHTE, v_BHTE, out_BHTE, *kept)
        ctx.scale = scale
        return out_BHTE

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Gradients of queries, keys and values."""
        q_BHTE, k_BHTE, v_BHTE, out_BHTE, *kept = ctx.saved_tensors
        (grad_BHTE,), T, dtype = grads, q_BHTE.shape[2], q_BHTE.dtype
        # Of each query: the mean, by the softmax, of the gradients of its weights.
        mean_BHT1 = (grad_BHTE.float() * out_BHTE.float()).sum(-1, keepdim=True)
        dq, dk_BHTE, dv_BHTE = [], torch.zeros_like(k_BHTE, dtype=torch.float32), torch.zeros_like(v_BHTE, dtype=torch.float32)
        for start, raised, share in zip(range(0, T, _block(T)), kept[::2], kept[1::2], strict=True):
            end = start + _block(T)
            grad, q = grad_BHTE[:, :, start:end], q_BHTE[:, :, start:end]
            weights = (grad @ v_BHTE[:, :, :end].mT).float()
            scores = (raised.float() * (weights - mean_BHT1[:, :, start:end]) * (share * ctx.scale)).to(dtype)
            dq.append(scores @ k_BHTE[:, :, :end])
            later = (0, 0, 0, T - end)
            dk_BHTE = dk_BHTE + F.pad((scores.mT @ q).float(), later)
            dv_BHTE = dv_BHTE + F.pad((raised.mT @ (grad.float() * share).to(dtype)).float(), later)
        return torch.cat(dq, 2), dk_BHTE.to(dtype), dv_BHTE.to(dtype), None, None


def attention_reference(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, sight: Sight) -> Tensor:
    """The same in plain steps and float32; what `attention` is tested against."""
    group = q_BHTE.shape[1] // k_BKSE.shape[1]
    k_BHSE, v_BHSE = (x.float().repeat_interleave(group, dim=1) for x in (k_BKSE, v_BKSE))
    scores_BHTS = q_BHTE.float() @ k_BHSE.mT
    if sight.columns is not None:
        query_HC, key_BSC = (x.float() for x in sight.columns)
        scores_BHTS = scores_BHTS + (query_HC @ key_BSC.mT)[:, :, None]
    scores_BHTS = scores_BHTS / math.sqrt(q_BHTE.shape[-1])
    T, S = scores_BHTS.shape[-2:]
    if sight.bias is not None:
        return ((scores_BHTS + sight.bias.float()).softmax(-1) @ v_BHSE).to(q_BHTE.dtype)
    seen = sight.mask
    if seen is None:
        ones_TS = torch.ones(T, S, dtype=torch.bool, device=q_BHTE.device)
        seen = ones_TS.tril(S - T) if sight.causal else ones_TS
    weights_BHTS = scores_BHTS.masked_fill(~seen, float("-inf")).softmax(-1)
    return (weights_BHTS @ v_BHSE).to(q_BHTE.dtype)
