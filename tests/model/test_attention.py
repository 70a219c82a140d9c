"""The kernels against the plain reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.model.attention import Sight, attention, attention_reference


@settings(deadline=None)
@given(
    batch=st.integers(1, 3), kv_heads=st.integers(1, 3), group=st.integers(1, 4), queries=st.integers(1, 9),
    earlier=st.integers(0, 7), width=st.sampled_from([2, 5, 16]), masked=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_kernels_equal_the_reference(
    batch: int, kv_heads: int, group: int, queries: int, earlier: int, width: int, masked: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    keys = queries + earlier if masked else queries
    q = torch.randn(batch, kv_heads * group, queries, width, generator=generator)
    k, v = torch.randn(2, batch, kv_heads, keys, width, generator=generator)
    sight = Sight()
    if masked:
        mask = torch.rand(batch, 1, queries, keys, generator=generator) < 0.5
        mask[..., 0] = True  # a query that sees nothing has no answer
        sight = Sight(mask, causal=False)
    torch.testing.assert_close(attention(q, k, v, sight), attention_reference(q, k, v, sight), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("heads", [4, 2, 1])
def test_one_query_without_mask_sees_every_key(heads: int) -> None:
    q, k, v = torch.randn(2, 4, 1, 8), torch.randn(2, heads, 9, 8), torch.randn(2, heads, 9, 8)
    sight = Sight(causal=False)
    torch.testing.assert_close(attention(q, k, v, sight), attention_reference(q, k, v, sight))
    torch.testing.assert_close(attention(q, k, v, sight), attention(q, k, v, Sight(torch.ones(2, 1, 1, 9, dtype=torch.bool))))
