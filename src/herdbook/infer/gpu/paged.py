"""Attention of one query a sequence over keys and values in blocks, and how they get there: Triton kernels.

    tables  ──▶ block ──▶ keys and values of a tile      a program: one sequence, one key head, one split of the keys
                              │                          all queries of the group share what it loads
                   q ──▶ scores ──▶ online softmax ──▶ part
                                                          │ of all splits
                                                          ▼
                                                  a second kernel joins them

Splits keep a GPU busy when there are few sequences (flash-decoding, Dao et al. 2023). How many there are is fixed with the
launch, which a CUDA graph needs; which keys each takes follows from the sequence's length, which lies in memory. The softmax is
online (Milakov and Gimelshein 2018, arXiv:1805.02867), in base 2.

`tl.dot` needs tiles of 16, so a group of fewer queries is padded to that: the product costs nothing beside the loads. Where the
interpreter runs, 16-bit brain floats are multiplied as float32, because its own product of them is wrong (Triton 3.9).

Shapes: B sequences, H query heads, K key/value heads, G = H / K queries of a group, E head width, P blocks of a table,
S splits, N blocks in memory.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from herdbook.infer.backend import BLOCK
from herdbook.infer.gpu import interpreted
from herdbook.infer.gpu.reference import Bias
from herdbook.infer.memory import Memory

MOST_SPLITS = 32
TILE_BYTES = 16_384  # of keys that a program holds at once; a few of them fit the shared memory of any GPU
LOG2_E = tl.constexpr(1.4426950408889634)
NEAREST = tl.constexpr(12582912.0)  # 1.5 · 2^23: added and taken off again, it rounds a float32 to the nearest even integer


@triton.jit
def _as_bfloat16(x):  # type: ignore[no-untyped-def]
    """Float32 rounded to 8 bits of mantissa, to nearest even, as torch does. The interpreter's own cast cuts off."""
    bits = x.to(tl.uint32, bitcast=True)
    bits = (bits + ((bits >> 16) & 1) + 0x7FFF) & 0xFFFF0000
    return bits.to(tl.float32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    q, keys, values, key_scales, value_scales, tables, positions, slopes, out, parts, stats,
    head_stride, table_stride, window, scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_TILE: tl.constexpr, WIDTH: tl.constexpr, WIDTH_TILE: tl.constexpr,
    TILE: tl.constexpr, PAGE: tl.constexpr, SPLITS: tl.constexpr, EIGHT_BITS: tl.constexpr, BIAS: tl.constexpr,
    WINDOWED: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """One sequence, key head and split; BIAS: 0 none, 1 ALiBi, 2 Falcon's variant of it."""
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    position = tl.load(positions + row)
    first = tl.maximum(position + 1 - window, 0) if WINDOWED else position * 0
    begin = first // TILE * TILE
    tiles = (position - begin) // TILE + 1
    share = (tiles + SPLITS - 1) // SPLITS * TILE
    low = begin + split * share
    high = tl.minimum(low + share, position + 1)

    g, e, n = tl.arange(0, GROUP_TILE), tl.arange(0, WIDTH_TILE), tl.arange(0, TILE)
    heads = (row * KV_HEADS + head) * GROUP + g
    inside = (g < GROUP)[:, None] & (e < WIDTH)[None, :]
    q_GE = tl.load(q + heads[:, None] * WIDTH + e[None, :], mask=inside, other=0.0)
    kind = q_GE.dtype
    if BIAS > 0:
        slope_G = tl.load(slopes + head * GROUP + g, mask=g < GROUP, other=0.0)
    start_of_head = head.to(tl.int64) * head_stride

    most_G = tl.full((GROUP_TILE,), float("-inf"), tl.float32)
    sum_G = tl.zeros((GROUP_TILE,), tl.float32)
    mix_GE = tl.zeros((GROUP_TILE, WIDTH_TILE), tl.float32)
    for start in range(low, high, TILE):
        key_N = start + n
        seen_N = (key_N >= first) & (key_N <= position)
        block_N = tl.load(tables + row * table_stride + key_N // PAGE, mask=seen_N, other=0).to(tl.int64)
        slot_N = start_of_head + block_N * PAGE + key_N % PAGE
        there = seen_N[:, None] & (e < WIDTH)[None, :]
        k_NE = tl.load(keys + slot_N[:, None] * WIDTH + e[None, :], mask=there, other=0)
        v_NE = tl.load(values + slot_N[:, None] * WIDTH + e[None, :], mask=there, other=0)
        if EIGHT_BITS:  # by way of float32: the interpreter makes no 16-bit brain floats of integers
            k_NE, v_NE = k_NE.to(tl.float32).to(kind), v_NE.to(tl.float32).to(kind)
        score_GN = tl.dot(q_GE.to(DOT), tl.trans(k_NE.to(DOT)), input_precision="ieee") * scale
        if EIGHT_BITS:
            score_GN *= tl.load(key_scales + slot_N, mask=seen_N, other=0.0)[None, :]
        if BIAS == 1:
            score_GN += slope_G[:, None] * (key_N - position).to(tl.float32)[None, :]
        if BIAS == 2:
            score_GN += _as_bfloat16(_as_bfloat16(slope_G)[:, None] * _as_bfloat16(key_N.to(tl.float32))[None, :]) * scale
        score_GN = tl.where(seen_N[None, :], score_GN * LOG2_E, float("-inf"))
        higher_G = tl.maximum(most_G, tl.max(score_GN, 1))
        weight_GN = tl.exp2(score_GN - higher_G[:, None])
        fade_G = tl.exp2(most_G - higher_G)
        sum_G = sum_G * fade_G + tl.sum(weight_GN, 1)
        most_G = higher_G
        if EIGHT_BITS:
            weight_GN *= tl.load(value_scales + slot_N, mask=seen_N, other=0.0)[None, :]
        mix_GE *= fade_G[:, None]
        mix_GE += tl.dot(weight_GN.to(kind).to(DOT), v_NE.to(DOT), input_precision="ieee")
    if SPLITS == 1:
        tl.store(out + heads[:, None] * WIDTH + e[None, :], (mix_GE / sum_G[:, None]).to(kind), mask=inside)
    else:
        part = heads.to(tl.int64) * SPLITS + split
        tl.store(parts + part[:, None] * WIDTH + e[None, :], mix_GE, mask=inside)
        tl.store(stats + part * 2, most_G, mask=g < GROUP)
        tl.store(stats + part * 2 + 1, sum_G, mask=g < GROUP)


@triton.jit  # type: ignore[untyped-decorator]
def _join(parts, stats, out, WIDTH: tl.constexpr, WIDTH_TILE: tl.constexpr, SPLITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """One query head: the parts of all splits weighed by what their maxima and sums say. An empty split has no weight."""
    head = tl.program_id(0).to(tl.int64)
    s, e = tl.arange(0, SPLITS), tl.arange(0, WIDTH_TILE)
    part = head * SPLITS + s
    most_S, sum_S = tl.load(stats + part * 2), tl.load(stats + part * 2 + 1)
    weight_S = tl.exp2(most_S - tl.max(most_S, 0))
    mix_SE = tl.load(parts + part[:, None] * WIDTH + e[None, :], mask=(e < WIDTH)[None, :], other=0.0)
    mix_E = tl.sum(mix_SE * weight_S[:, None], 0) / tl.sum(sum_S * weight_S, 0)
    tl.store(out + head * WIDTH + e, mix_E.to(out.dtype.element_ty), mask=e < WIDTH)


@triton.jit  # type: ignore[untyped-decorator]
def _keep(  # type: ignore[no-untyped-def]
    new_keys, new_values, keys, values, key_scales, value_scales, slots, head_stride, key_row, key_head, value_row, value_head,
    WIDTH: tl.constexpr, WIDTH_TILE: tl.constexpr, EIGHT_BITS: tl.constexpr,
):  # fmt: skip
    """One sequence's new key and value of one head."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    e = tl.arange(0, WIDTH_TILE)
    slot = head * head_stride + tl.load(slots + row)
    k_E = tl.load(new_keys + row * key_row + head * key_head + e, mask=e < WIDTH, other=0.0)
    v_E = tl.load(new_values + row * value_row + head * value_head + e, mask=e < WIDTH, other=0.0)
    if EIGHT_BITS:
        k_E, v_E = k_E.to(tl.float32), v_E.to(tl.float32)
        k_scale = tl.maximum(tl.div_rn(tl.max(tl.abs(k_E), 0), 127.0), 1e-30)
        v_scale = tl.maximum(tl.div_rn(tl.max(tl.abs(v_E), 0), 127.0), 1e-30)
        tl.store(key_scales + slot, k_scale)
        tl.store(value_scales + slot, v_scale)
        k_E = (tl.div_rn(k_E, k_scale) + NEAREST) - NEAREST
        v_E = (tl.div_rn(v_E, v_scale) + NEAREST) - NEAREST
    tl.store(keys + slot * WIDTH + e, k_E.to(keys.dtype.element_ty), mask=e < WIDTH)
    tl.store(values + slot * WIDTH + e, v_E.to(values.dtype.element_ty), mask=e < WIDTH)


def keep(memory: Memory, slots_B: Tensor, k_BKE: Tensor, v_BKE: Tensor) -> None:
    """As `Memory.keep` of one token a sequence, in one launch. The last dimension of both must lie dense."""
    B, K, E = k_BKE.shape
    assert k_BKE.stride(-1) == v_BKE.stride(-1) == 1
    _keep[(B, K)](
        k_BKE, v_BKE, memory.keys, memory.values, *_scales(memory, slots_B), slots_B,
        memory.slots, k_BKE.stride(0), k_BKE.stride(1), v_BKE.stride(0), v_BKE.stride(1),
        WIDTH=E, WIDTH_TILE=triton.next_power_of_2(E), EIGHT_BITS=memory.eight_bits, num_warps=1,
    )  # fmt: skip


def splits_for(batch: int, heads: int, width: int, processors: int) -> int:
    """Into how many parts the keys of a sequence are cut, so that there are two programs for each of the GPU's processors.

    Args:
        batch, heads: sequences and key/value heads, which make programs already.
        width: blocks of the table; there are no more splits than tiles of 64 keys could fill.
        processors: streaming multiprocessors.
    """
    wanted = math.ceil(2 * processors / (batch * heads))
    return 1 << (max(1, min(wanted, MOST_SPLITS, width * BLOCK // 64)) - 1).bit_length()


def attend(
    q_BHE: Tensor, memory: Memory, tables_BP: Tensor, positions_B: Tensor, *,
    bias: Bias | None = None, window: int | None = None, splits: int = 1,
) -> Tensor:  # fmt: skip
    """As `reference.attend`; `splits` is how many programs share a sequence's keys, a power of two."""
    (B, H, E), K, q_BHE = q_BHE.shape, memory.heads, q_BHE.contiguous()
    out_BHE = torch.empty_like(q_BHE)
    parts = q_BHE.new_empty(B * H * splits * E if splits > 1 else 1, dtype=torch.float32)
    stats = q_BHE.new_empty(B * H * splits * 2 if splits > 1 else 1, dtype=torch.float32)
    group, width = max(16, triton.next_power_of_2(H // K)), max(16, triton.next_power_of_2(E))
    as_float = q_BHE.dtype == torch.float32 or (q_BHE.dtype == torch.bfloat16 and interpreted())
    _attend[(B, K, splits)](
        q_BHE, memory.keys, memory.values, *_scales(memory, q_BHE), tables_BP, positions_B,
        q_BHE if bias is None else bias.slopes_H, out_BHE, parts, stats,
        memory.slots, tables_BP.stride(0), window or 0, 1 / math.sqrt(E),
        KV_HEADS=K, GROUP=H // K, GROUP_TILE=group, WIDTH=E, WIDTH_TILE=width,
        TILE=max(16, min(128, TILE_BYTES // (width * q_BHE.element_size()))), PAGE=BLOCK, SPLITS=splits,
        EIGHT_BITS=memory.eight_bits, BIAS=0 if bias is None else 2 if bias.falcon else 1, WINDOWED=window is not None,
        DOT=tl.float32 if as_float else tl.float16 if q_BHE.dtype == torch.float16 else tl.bfloat16,
        num_warps=4 if group <= 32 else 8, num_stages=3,
    )  # fmt: skip
    if splits > 1:
        _join[(B * H,)](parts, stats, out_BHE, WIDTH=E, WIDTH_TILE=width, SPLITS=splits)
    return out_BHE


def _scales(memory: Memory, other: Tensor) -> list[Tensor]:
    """Both scales, or what stands for them where the kernel wants an address and does not read there."""
    return [other if scales is None else scales for _, scales in memory.parts]
