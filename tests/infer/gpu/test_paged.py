"""The kernels over blocks against plain torch: any shape, length, type and table."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from herdbook.infer.backend import BLOCK
from herdbook.infer.gpu import reference
from herdbook.infer.gpu.reference import Bias
from herdbook.infer.memory import Memory
from herdbook.model.attention import Sight, alibi_slopes, attention_reference, with_alibi, with_window

from .conftest import DEVICE

paged = pytest.importorskip("herdbook.infer.gpu.paged", reason="Triton is there for Linux only")
ROUNDING = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def filled(heads: int, blocks: int, width: int, dtype: torch.dtype, seed: int, *, eight_bits: bool = False) -> Memory:
    """Random keys and values, with NaN and the like nowhere."""
    draw = torch.Generator().manual_seed(seed)
    shape = (heads, blocks, BLOCK * width)
    if not eight_bits:
        return Memory(dtype, *(torch.randn(shape, generator=draw).to(DEVICE, dtype) for _ in range(2)))
    numbers = (torch.randint(-127, 128, shape, generator=draw, dtype=torch.int8).to(DEVICE) for _ in range(2))
    scales = (torch.rand((heads, blocks, BLOCK), generator=draw).to(DEVICE) / 50 for _ in range(2))
    return Memory(dtype, *numbers, *scales)


def tables(lengths: list[int], blocks: int, seed: int) -> Tensor:
    """Blocks of sequences of these lengths in no order, int32; what is behind a sequence's last is no block at all."""
    free = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed)).tolist()
    needed = [-(-length // BLOCK) for length in lengths]
    rows = [[free.pop() for _ in range(need)] + [2**30] * (max(needed) - need) for need in needed]
    return torch.tensor(rows, dtype=torch.int32, device=DEVICE)


@settings(max_examples=30)
@given(
    heads=st.integers(1, 2), group=st.integers(1, 5), width=st.sampled_from([4, 10, 16, 64, 80, 128]),
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=2), splits=st.sampled_from([1, 2, 4]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), eight_bits=st.booleans(),
    window=st.one_of(st.none(), st.integers(1, 170)), alibi=st.sampled_from([None, False, True]), seed=st.integers(0, 9),
)  # fmt: skip
def test_reading_blocks_equals_plain_attention(
    heads: int, group: int, width: int, lengths: list[int], splits: int, dtype: torch.dtype, eight_bits: bool,
    window: int | None, alibi: bool | None, seed: int,
) -> None:  # fmt: skip
    blocks = sum(-(-length // BLOCK) for length in lengths) + 1
    memory = filled(heads, blocks, width, dtype, seed, eight_bits=eight_bits)
    table_BP = tables(lengths, blocks, seed)
    draw = torch.Generator().manual_seed(seed)
    q_BHE = torch.randn(len(lengths), heads * group, width, generator=draw).to(DEVICE, dtype)
    positions_B = torch.tensor(lengths, dtype=torch.int32, device=DEVICE) - 1
    bias = None if alibi is None else Bias(alibi_slopes(heads * group).to(DEVICE), alibi)
    got = paged.attend(q_BHE, memory, table_BP, positions_B, bias=bias, window=window, splits=splits)
    want = reference.attend(q_BHE, memory, table_BP.clamp(max=blocks - 1), positions_B, bias=bias, window=window)
    assert got.dtype == dtype and got.shape == want.shape
    torch.testing.assert_close(got, want, atol=ROUNDING[dtype], rtol=ROUNDING[dtype])


@pytest.mark.parametrize("alibi", [None, False, True])
@pytest.mark.parametrize("window", [None, 1, 7, 40])
def test_the_reference_is_the_models_own_attention(window: int | None, alibi: bool | None) -> None:
    memory, length, H, K, E = filled(2, 4, 8, torch.float32, 3), 50, 6, 2, 8
    table_BP, q_BHE = torch.tensor([[2, 0, 3, 1]], dtype=torch.int32), torch.randn(1, H, E)
    k_BKSE, v_BKSE = (
        store.cpu().view(K, 4, BLOCK, E)[:, table_BP[0].long()].reshape(1, K, -1, E)[:, :, :length]
        for store in (memory.keys, memory.values)
    )
    query_BT, key_BS, sight = torch.tensor([[length - 1]]), torch.arange(length)[None], Sight(causal=False)
    if window is not None:
        sight = with_window(sight, window, query_BT, key_BS)
    slopes_H = alibi_slopes(H)
    if alibi is not None:
        sight = with_alibi(sight, slopes_H, query_BT, key_BS, head_width=E, dtype=torch.float32, falcon=alibi)
    want = attention_reference(q_BHE[:, :, None], k_BKSE, v_BKSE, sight)[:, :, 0]
    plain = Memory(torch.float32, memory.keys.cpu(), memory.values.cpu())
    bias = None if alibi is None else Bias(slopes_H, alibi)
    got = reference.attend(q_BHE, plain, table_BP, torch.tensor([length - 1]), bias=bias, window=window)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_the_past_of_a_window_and_what_lies_behind_the_last_key_are_not_read() -> None:
    memory, table_BP = filled(1, 6, 16, torch.float32, 0), torch.arange(6, dtype=torch.int32, device=DEVICE)[None]
    q_BHE, position_B = torch.randn(1, 2, 16).to(DEVICE), torch.tensor([70], device=DEVICE)
    calm = paged.attend(q_BHE, memory, table_BP, position_B, window=40, splits=2)
    for store in (memory.keys, memory.values):
        slots = store.view(6 * BLOCK, 16)
        slots[:31] = math.nan
        slots[71:] = math.nan
    torch.testing.assert_close(paged.attend(q_BHE, memory, table_BP, position_B, window=40, splits=2), calm)


def test_large_scores_do_not_overflow_and_splits_without_keys_have_no_say() -> None:
    memory = filled(2, 2, 16, torch.float32, 1)
    table_BP, position_B = torch.tensor([[1, 0]], dtype=torch.int32, device=DEVICE), torch.tensor([3], device=DEVICE)
    q_BHE = torch.randn(1, 4, 16).to(DEVICE) * 1e4
    want = reference.attend(q_BHE, memory, table_BP, position_B)
    for splits in (1, 4, 32):
        torch.testing.assert_close(paged.attend(q_BHE, memory, table_BP, position_B, splits=splits), want)


@pytest.mark.parametrize("eight_bits", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("heads", "width"), [(1, 4), (3, 10), (2, 64)])
def test_keys_and_values_lie_where_the_reference_puts_them(
    heads: int, width: int, dtype: torch.dtype, eight_bits: bool
) -> None:
    draw = torch.Generator().manual_seed(width)
    new = torch.randn(2, 4, heads, 2 * width, generator=draw).to(DEVICE, dtype)[..., :width]  # rows that lie apart
    new[0, 1] = 0
    slots_B = torch.tensor([33, 5, 0, 62], device=DEVICE)
    ours, plain = (filled(heads, 4, width, dtype, 7, eight_bits=eight_bits) for _ in range(2))
    paged.keep(ours, slots_B, new[0], new[1])
    plain.keep(slots_B, new[0], new[1])
    for got, want in zip(sum(ours.parts, ()), sum(plain.parts, ()), strict=True):
        if got is not None:
            torch.testing.assert_close(got, want, atol=0, rtol=0)


def test_splits_fill_the_processors_and_not_more() -> None:
    assert paged.splits_for(1, 8, 4096, 132) == 32
    assert paged.splits_for(64, 8, 4096, 132) == 1
    assert paged.splits_for(1, 8, 8, 132) == 2  # 128 keys are two tiles
    assert paged.splits_for(4, 8, 4096, 132) == 16
