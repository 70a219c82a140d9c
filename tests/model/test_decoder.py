"""The decoder: packing, positions, precision, start of the weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.model.attention import Sight, alibi_slopes, with_alibi
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import document_positions, rotary_angles, rotate

from .conftest import CONTEXT, KINDS, VOCABULARY, make_decoder

MODELS = {kind: make_decoder(kind) for kind in KINDS}


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(sorted(KINDS)), lengths=st.lists(st.integers(1, 15), min_size=1, max_size=5), seed=st.integers(0, 99)
)
def test_packed_documents_give_the_logits_they_give_alone(kind: str, lengths: list[int], seed: int) -> None:
    lengths = lengths[: max(1, next((n for n in range(len(lengths)) if sum(lengths[: n + 1]) > CONTEXT), len(lengths)))]
    model, tokens = MODELS[kind], ids(1, sum(lengths), seed=seed)
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    packed = model(tokens, documents_BT=documents)
    alone = torch.cat([model(part) for part in tokens.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_sees_a_later_one(kind: str) -> None:
    tokens = ids(2, 20)
    changed = tokens.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % VOCABULARY
    before, after = MODELS[kind](tokens), MODELS[kind](changed)
    torch.testing.assert_close(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_compute_follows_float32_masters(kind: str) -> None:
    model, tokens = make_decoder(kind, init_std=0.02), ids(2, 20)
    exact = model(tokens)
    model.compute_dtype = torch.bfloat16
    rough = model(tokens)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max() + 0.01
    rough.square().mean().backward()
    assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in model.parameters())


def test_positions_restart_with_each_document() -> None:
    documents = torch.tensor([[0, 0, 1, 1, 1, 2], [7, 7, 7, 7, 3, 3]])
    assert document_positions(documents).tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 0, 1]]


def test_learned_positions_begin_after_the_offset() -> None:
    model = make_decoder("offset")
    assert model.position_embed is not None
    assert model.position_embed.num_embeddings == CONTEXT + 2
    with torch.no_grad():
        model.position_embed.weight[:2] = math.inf  # rows before the offset are never read
    assert model(ids(1, CONTEXT)).isfinite().all()


def test_more_tokens_than_learned_positions_is_said_plainly() -> None:
    with pytest.raises(ValueError, match=f"learned positions for only {CONTEXT}"):
        MODELS["learned"](ids(1, CONTEXT + 1))


@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(0, 50))
@settings(deadline=None, max_examples=20)
def test_rotary_scores_depend_on_the_distance_only(left: int, right: int, shift: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=generator)
    cfg = ModelConfig(d_model=16, n_heads=1)

    def score(at: int, other: int) -> float:
        turned = [rotate(x, rotary_angles(torch.tensor([[place]]), cfg)) for x, place in ((q, at), (k, other))]
        return float((turned[0] * turned[1]).sum())

    assert score(left, right) == pytest.approx(score(left + shift, right + shift), abs=2e-2)


def test_rotary_keeps_float32_angles_for_bfloat16_heads() -> None:
    cfg = ModelConfig(d_model=8, n_heads=1)
    cos, _ = rotary_angles(torch.tensor([[100_001]]), cfg)
    assert cos.dtype == torch.float32
    turned = rotate(torch.randn(1, 1, 1, 8, dtype=torch.bfloat16), rotary_angles(torch.tensor([[5]]), cfg))
    assert turned.dtype == torch.bfloat16


def test_interleaved_and_half_split_pairs_are_one_rotation() -> None:
    cfg, x = ModelConfig(d_model=16, n_heads=1), torch.randn(1, 2, 5, 16)
    rotary = rotary_angles(torch.arange(5)[None], cfg)
    halves = torch.cat((x[..., ::2], x[..., 1::2]), -1)
    turned = rotate(halves, rotary)
    neighbours = torch.stack((turned[..., :8], turned[..., 8:]), -1).flatten(-2)
    torch.testing.assert_close(rotate(x, rotary, interleaved=True), neighbours)


def test_a_part_of_the_head_is_left_alone() -> None:
    cfg, x = ModelConfig(d_model=16, n_heads=1, rope_fraction=0.25), torch.randn(1, 1, 3, 16)
    turned = rotate(x, rotary_angles(torch.tensor([[0, 7, 9]]), cfg))
    assert torch.equal(turned[..., 4:], x[..., 4:])
    assert torch.equal(turned[:, :, 0], x[:, :, 0])
    assert not torch.isclose(turned[:, :, 1:, :4], x[:, :, 1:, :4]).any()


def test_rope_scaling_by_hand() -> None:
    plain, places = ModelConfig(d_model=16, n_heads=1), torch.tensor([[3, 40]])
    linear = plain.model_copy(update={"rope_scaling": "linear", "rope_factor": 4.0})
    assert torch.allclose(rotary_angles(places * 4, linear)[0], rotary_angles(places, plain)[0])
    # NTK: the fastest pair turns as before, the slowest as slowly as if positions were shrunk by the factor.
    ntk = plain.model_copy(update={"rope_scaling": "ntk", "rope_factor": 4.0})
    fast, slow = rotary_angles(places, ntk)[1][..., 0], rotary_angles(places * 4, ntk)[1][..., -1]
    torch.testing.assert_close(fast, rotary_angles(places, plain)[1][..., 0])
    torch.testing.assert_close(slow, rotary_angles(places, plain)[1][..., -1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["bloom", "storywriter", "alibi-gqa"])
def test_alibi_reads_past_the_context_it_was_made_for(kind: str) -> None:
    assert MODELS[kind](ids(1, 2 * CONTEXT)).isfinite().all()


@settings(deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(["gqa", "learned", "bloom", "falcon-rw"]), window=st.integers(1, 30), length=st.integers(1, CONTEXT),
    packed=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_window_is_the_band_written_out(kind: str, window: int, length: int, packed: bool, seed: int) -> None:
    """Logits and gradients of training, against the same weights with a mask made query by query."""
    model, plain = make_decoder(kind, window=window), make_decoder(kind)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), plain.parameters(), strict=True))
    owner = [place * 3 // length if packed else 0 for place in range(length)]
    seen = torch.tensor([
        [query - window < key <= query and owner[key] == owner[query] for key in range(length)] for query in range(length)
    ])  # fmt: skip
    slopes, places = alibi_slopes(4), torch.tensor([place - owner.index(owner[place]) for place in range(length)])[None]
    sight, falcon = Sight(seen[None, None], causal=False), kind == "falcon-rw"
    if plain.cfg.positions == "alibi":
        sight = with_alibi(sight, slopes, places, places, head_width=12, dtype=torch.float32, falcon=falcon)
    tokens, documents = ids(1, length, seed=seed), torch.tensor([owner]) if packed else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "_sight", lambda *_: sight)
        losses = [one(tokens, documents_BT=documents).log_softmax(-1).square().mean() for one in (model, plain)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for got, want in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, atol=1e-4, rtol=1e-3)


def test_a_window_reaches_as_far_back_as_its_layers_together() -> None:
    """Each of two layers looks 4 tokens back, so a changed token is felt 8 tokens on, and no farther."""
    tokens = ids(1, 20)
    changed = tokens.clone()
    changed[:, 3] = (changed[:, 3] + 1) % VOCABULARY
    apart = (MODELS["window-5"](tokens) - MODELS["window-5"](changed)).abs().amax(-1)[0] > 1e-4
    assert apart.tolist() == [3 <= place <= 3 + 2 * 4 for place in range(20)]


def test_low_precision_layernorm_differs_in_16_bits_only() -> None:
    exact, low = (make_decoder("bloom", norm=norm) for norm in ("layernorm", "layernorm_low_precision"))
    tokens = ids(1, 12)
    with torch.no_grad():
        for model in (exact, low):
            for name, weight in model.named_parameters():
                if "norm" in name:  # ones and zeros would be the same in 16 bits
                    weight.normal_(1.0, 0.2, generator=torch.Generator().manual_seed(len(name)))
    assert torch.equal(exact(tokens), low(tokens))
    exact.compute_dtype = low.compute_dtype = torch.bfloat16
    assert not torch.equal(exact(tokens), low(tokens))
    torch.testing.assert_close(exact(tokens), low(tokens), atol=0.5, rtol=0.1)


def test_a_post_norm_block_by_hand() -> None:
    model, tokens = MODELS["opt-350m"], ids(1, 9)
    block, x = model.blocks[0], torch.randn(1, 9, 48)
    middle = block.attn_norm(x + block.attn(x, None, Sight(), None))
    torch.testing.assert_close(block(x, None, Sight()), block.ff_norm(middle + block.ff(middle)))
    assert model.norm is None
    assert model.embed.weight.shape == (VOCABULARY, 20)
    assert model(tokens).shape == (1, 9, VOCABULARY)


def test_parallel_blocks_by_hand() -> None:
    x = torch.randn(1, 5, 48)
    for kind, other in (("palm", "attn_norm"), ("neox", "ff_norm")):
        block = MODELS[kind].blocks[0]
        rotary = rotary_angles(torch.arange(5)[None], MODELS[kind].cfg)
        attn = block.attn(block.attn_norm(x), rotary, Sight(), None)
        torch.testing.assert_close(block(x, rotary, Sight()), x + attn + block.ff(getattr(block, other)(x)))


def test_clipping_bounds_queries_keys_and_values() -> None:
    block, far = MODELS["storywriter"].blocks[0], 100 * torch.randn(1, 5, 48)
    assert block.attn._heads(block.attn.v(far), 6).abs().max() == 1.5


def test_dropout_acts_in_training_only() -> None:
    model, tokens = make_decoder("mha", dropout=0.3), ids(1, 8)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_cache_and_documents_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        MODELS["mha"].hidden(ids(1, 4), documents_BT=torch.zeros(1, 4, dtype=torch.long), cache=object())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["gqa", "bloom", "falcon-rw", "gpt-j", "window-5", "alibi-window"])
def test_one_graph_without_breaks(kind: str) -> None:
    model, tokens = make_decoder(kind), ids(2, 16)
    documents = torch.arange(16).div(5, rounding_mode="floor").expand(2, 16)
    explained = torch._dynamo.explain(model)(tokens, documents_BT=documents)
    assert explained.graph_break_count == 0
