"""The kernels against the plain reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.model.attention import (
    BLOCK,
    BLOCKS_UP_TO,
    SHORT,
    CausalBlocks,
    Sight,
    alibi_slopes,
    attention,
    attention_reference,
    with_alibi,
    with_window,
)


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


@pytest.mark.parametrize("heads", [1, 2, 6, 8, 12, 40, 71, 112])
@pytest.mark.parametrize("most", [8.0, 16.0])
def test_slopes_follow_the_paper(heads: int, most: float) -> None:
    power = 2 ** (heads.bit_length() - 1)
    slopes = [2 ** (-most * (i + 1) / power) for i in range(power)]
    # The paper's code: of the next power of two every second slope, the first one included, fills up.
    slopes += [2 ** (-most * (2 * i + 1) / (2 * power)) for i in range(heads - power)]
    assert alibi_slopes(heads, most).tolist() == pytest.approx(slopes, rel=1e-6)


@settings(deadline=None, max_examples=40)
@given(
    kv_heads=st.integers(1, 3), group=st.integers(1, 3), queries=st.integers(1, 7), earlier=st.integers(0, 5),
    falcon=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_bias_equals_the_reference(kv_heads: int, group: int, queries: int, earlier: int, falcon: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    heads, keys = kv_heads * group, queries + earlier
    q = torch.randn(2, heads, queries, 8, generator=generator)
    k, v = torch.randn(2, 2, kv_heads, keys, 8, generator=generator)
    places = torch.arange(keys)[None]
    sight = with_alibi(
        Sight(causal=queries > 1 or earlier == 0), alibi_slopes(heads), places[:, earlier:], places,
        head_width=8, dtype=torch.float32, falcon=falcon,
    )  # fmt: skip
    torch.testing.assert_close(attention(q, k, v, sight), attention_reference(q, k, v, sight), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
def test_columns_give_what_a_bias_gives(heads: tuple[int, int], packed: bool) -> None:
    """From SHORT keys on, 16-bit ALiBi goes into the dot product; it must be as near to float32's bias as a 16-bit bias is."""
    queries, keys, time = *heads, SHORT + 61  # which no block divides
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, queries, time, 16, generator=generator)
    k, v = torch.randn(2, 1, keys, time, 16, generator=generator)
    places, sight = torch.arange(time)[None], Sight()
    if packed:
        documents = (places > 200).long()
        mask = (documents[:, :, None] == documents[:, None]) & torch.ones(time, time, dtype=torch.bool).tril()
        places, sight = torch.where(places > 200, places - 201, places), Sight(mask[:, None], causal=False)
    slopes, rough = alibi_slopes(queries), [x.bfloat16() for x in (q, k, v)]
    exact = with_alibi(sight, slopes, places, places, head_width=16, dtype=torch.float32)
    columns = with_alibi(sight, slopes, places, places, head_width=16, dtype=torch.bfloat16)
    assert exact.columns is None
    assert columns.bias is None
    assert columns.columns is not None
    wanted = attention_reference(*(x.float() for x in rough), exact)
    torch.testing.assert_close(attention(*rough, columns).float(), wanted, atol=0.02, rtol=0.02)
    torch.testing.assert_close(attention_reference(*(x.float() for x in rough), columns), wanted, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_columns_hold_beyond_65536_positions(dtype: torch.dtype) -> None:
    """StoryWriter reads that far; a position then needs a third part, and float16 must not overflow."""
    generator, keys = torch.Generator().manual_seed(0), 70_000
    slopes = alibi_slopes(2, 16.0)
    places = torch.arange(keys)[None]
    q = torch.randn(1, 2, 3, 8, generator=generator).to(dtype)
    k, v = torch.randn(2, 1, 2, keys, 8, generator=generator).to(dtype)
    seen = (places <= places[:, -3:, None])[:, None].reshape(1, 1, 3, keys)
    sights = [
        with_alibi(Sight(seen, causal=False), slopes, places[:, -3:], places, head_width=8, dtype=kind)
        for kind in (torch.float32, dtype)
    ]
    assert sights[1].columns is not None
    wanted = attention_reference(q.float(), k.float(), v.float(), sights[0])
    torch.testing.assert_close(attention(q, k, v, sights[1]).float(), wanted, atol=0.02, rtol=0.02)


def test_the_bias_is_slope_times_distance() -> None:
    slopes, places = torch.tensor([0.5, 0.25]), torch.tensor([[0, 1, 2, 0, 1]])
    sight = with_alibi(Sight(), slopes, places, places, head_width=4, dtype=torch.float32)
    assert sight.bias is not None
    assert sight.bias[0, 0, 2].tolist() == [-1.0, -0.5, 0.0, -torch.inf, -torch.inf]
    assert sight.bias[0, 1, 4, 3:].tolist() == [-0.25, 0.0]


def test_falcon_rounds_as_it_was_trained() -> None:
    """Scores plus a bfloat16 bias, both over the root of the width; written out with plain numbers."""
    slopes, places = alibi_slopes(3), torch.arange(301)[None]
    sight = with_alibi(Sight(), slopes, places, places, head_width=16, dtype=torch.float32, falcon=True)
    assert sight.bias is not None
    wanted = torch.tensor(float(slopes[1].bfloat16()) * 300).bfloat16().float() / 4
    assert sight.bias[0, 1, 300, 300] == wanted
    assert sight.bias[0, 1, 299, 300] == -torch.inf


def shown(T: int, S: int, window: int, documents: list[int] | None = None) -> torch.Tensor:
    """What each of the last T of S queries sees, key by key, (1, 1, T, S)."""
    documents = documents or [0] * S
    seen = [
        [key <= query and query - key < window and documents[key] == documents[query] for key in range(S)]
        for query in range(S - T, S)
    ]
    return torch.tensor(seen)[None, None]


@settings(deadline=None, max_examples=60)
@given(
    kv_heads=st.integers(1, 2), group=st.integers(1, 3), queries=st.integers(1, 40), earlier=st.integers(0, 30),
    window=st.integers(1, 45), kind=st.sampled_from(["plain", "documents", "alibi", "falcon"]),
    cached=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_window_equals_the_band_written_out(
    kv_heads: int, group: int, queries: int, earlier: int, window: int, kind: str, cached: bool, seed: int
) -> None:
    """Whatever is narrowed: order, documents, or what a cache shows; by any kernel, in blocks of 8 queries where they fit."""
    generator = torch.Generator().manual_seed(seed)
    keys, heads = queries + earlier if cached else queries, kv_heads * group
    q = torch.randn(2, heads, queries, 8, generator=generator)
    k, v = torch.randn(2, 2, kv_heads, keys, 8, generator=generator)
    places, sight, documents = torch.arange(keys)[None], Sight(), None
    if cached:  # a lone last query sees all that there is, and needs no mask
        sight = Sight(causal=False) if queries == 1 else Sight(shown(queries, keys, keys), causal=False)
    elif kind == "documents":
        documents = [place * 3 // keys for place in range(keys)]
        sight = Sight(shown(queries, keys, keys, documents))
    got, band = with_window(sight, window, places[:, keys - queries :], places), shown(queries, keys, window, documents)
    want = Sight(band, causal=False)
    if kind in ("alibi", "falcon"):
        got, want = (
            with_alibi(one, alibi_slopes(heads), places[:, keys - queries :], places, head_width=8, dtype=torch.float32,
                       falcon=kind == "falcon") for one in (got, want)
        )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("herdbook.model.attention.WINDOW_BLOCK", 8)
        out = attention(q, k, v, got)
    torch.testing.assert_close(out, attention_reference(q, k, v, want), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(attention_reference(q, k, v, got), attention_reference(q, k, v, want), atol=1e-6, rtol=1e-5)


def test_a_window_that_shows_everything_costs_nothing() -> None:
    places, sight = torch.arange(7)[None], Sight()
    assert with_window(sight, 7, places, places) is sight
    assert with_window(sight, 6, places, places).mask is not None
    lone = Sight(causal=False)
    assert with_window(lone, 7, places[:, -1:], places) is lone


@pytest.mark.parametrize("kind", ["plain", "documents", "alibi"])
@pytest.mark.parametrize(("heads", "dtype"), [((4, 2), torch.float32), ((2, 2), torch.bfloat16)])
def test_long_sequences_read_only_what_a_window_shows(
    heads: tuple[int, int], dtype: torch.dtype, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In blocks of queries, each with the keys that one of them sees: outputs and gradients against the band written out."""
    time, window, seen = 1200, 90, []
    monkeypatch.setattr("herdbook.model.attention.WINDOW_BLOCK", 256)
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "torch.nn.functional.scaled_dot_product_attention",
        lambda *given, **more: (seen.append(given), kernel(*given, **more))[1],
    )
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, heads[0], time, 16, generator=generator).to(dtype)
    k, v = torch.randn(2, 1, heads[1], time, 16, generator=generator).to(dtype)
    places, rows = torch.arange(time)[None], torch.arange(time)
    sight, documents = Sight(), rows * 3 // time if kind == "documents" else torch.zeros(time)
    order = (rows[:, None] >= rows) & (documents[:, None] == documents)
    if kind == "documents":
        sight = Sight(order[None, None])
    band = Sight((order & (rows[:, None] - rows < window))[None, None], causal=False)
    narrow = with_window(sight, window, places, places)
    if kind == "alibi":
        slopes = alibi_slopes(heads[0])
        narrow = with_alibi(narrow, slopes, places, places, head_width=16, dtype=dtype)
        band = with_alibi(band, slopes, places, places, head_width=16, dtype=torch.float32)
        assert (narrow.columns is None) == (dtype == torch.float32)
    got, want = trained(q, k, v, narrow), trained(q, k, v, band, exact=True)
    for name, one, true in zip(("out", "dq", "dk", "dv"), got, want, strict=True):
        assert (one - true).norm() / true.norm() < (1e-5 if dtype == torch.float32 else 0.01), name
    assert [given[0].shape[2] for given in seen] == [256, 256, 256, 256, 176]
    assert [given[1].shape[2] for given in seen] == [256, *[256 + window - 1] * 3, 176 + window - 1]


def trained(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sight: Sight, *, exact: bool = False) -> list[torch.Tensor]:
    """What attention gives, and the gradients of queries, keys and values."""
    inputs = [(x.float() if exact else x).detach().clone().requires_grad_() for x in (q, k, v)]
    out = (attention_reference if exact else attention)(*inputs, sight)
    out.backward(torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out.dtype))
    return [out.detach().float(), *(x.grad.float() for x in inputs if x.grad is not None)]


@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("time", [2 * BLOCK, 4 * BLOCK, BLOCKS_UP_TO])
@pytest.mark.parametrize("kind", ["causal", "documents", "alibi", "alibi documents", "alibi window"])
def test_blocks_are_as_near_to_the_reference_as_the_fused_kernel(
    heads: tuple[int, int], time: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training in 16 bits: outputs and gradients against float32, beside what SDPA is off by."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, heads[0], time, 16, generator=generator).bfloat16()
    k, v = torch.randn(2, 2, heads[1], time, 16, generator=generator).bfloat16()
    sight, places = Sight(), torch.arange(time)[None]
    if "documents" in kind:
        same = (places[:, None] * 3 // time) == (places[..., None] * 3 // time)
        sight = Sight((same & torch.ones(time, time, dtype=torch.bool).tril())[:, None])
    if "window" in kind:
        sight = with_window(sight, 100, places, places)
    exact = rough = sight
    if "alibi" in kind:
        slopes = alibi_slopes(heads[0])
        exact, rough = (
            with_alibi(sight, slopes, places, places, head_width=16, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
        )
    wanted = trained(q, k, v, exact, exact=True)
    calls = []
    apply = CausalBlocks.apply
    monkeypatch.setattr(CausalBlocks, "apply", lambda *given: (calls.append(1), apply(*given))[1])
    blocks = trained(q, k, v, rough)
    assert calls
    monkeypatch.setattr("herdbook.model.attention.BLOCKS_UP_TO", 0)
    fused = trained(q, k, v, rough)
    assert len(calls) == 1
    for name, one, other, true in zip(("out", "dq", "dk", "dv"), blocks, fused, wanted, strict=True):
        error, usual = ((x - true).norm() / true.norm() for x in (one, other))
        assert error < max(2.5 * usual, 0.006), name


@pytest.mark.parametrize(
    ("change", "time"),
    [
        ("no gradient", 256),
        ("float32", 256),
        ("dropout", 256),
        ("odd", 300),
        ("short", 128),
        ("long", 2048),
        ("mask alone", 256),
    ],
)
def test_blocks_are_only_for_what_they_were_measured_for(change: str, time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CausalBlocks, "apply", lambda *_: pytest.fail("by blocks"))
    dtype = torch.float32 if change == "float32" else torch.bfloat16
    q, k, v = torch.randn(3, 1, 1, time, 8).to(dtype)
    sight = Sight(torch.ones(1, 1, time, time, dtype=torch.bool), causal=False) if change == "mask alone" else Sight()
    q.requires_grad_(change != "no gradient")
    attention(q, k, v, sight, dropout=0.1 if change == "dropout" else 0.0)
