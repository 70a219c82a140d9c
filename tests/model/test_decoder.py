"""The decoder: packing, positions, precision, start of the weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder, document_positions, rotary_angles, rotate

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

    def score(at: int, other: int) -> float:
        turned = [rotate(x, rotary_angles(torch.tensor([[place]]), 16, 1e4)) for x, place in ((q, at), (k, other))]
        return float((turned[0] * turned[1]).sum())

    assert score(left, right) == pytest.approx(score(left + shift, right + shift), abs=2e-2)


def test_rotary_keeps_float32_angles_for_bfloat16_heads() -> None:
    cos, _ = rotary_angles(torch.tensor([[100_001]]), 8, 1e4)
    assert cos.dtype == torch.float32
    assert (
        rotate(torch.randn(1, 1, 1, 8, dtype=torch.bfloat16), rotary_angles(torch.tensor([[5]]), 8, 1e4)).dtype
        == torch.bfloat16
    )


def test_start_of_the_weights() -> None:
    cfg = ModelConfig(vocab_size=512, d_model=256, n_heads=4, n_layers=8, bias=True, norm="layernorm", init_std=0.02)
    one, two = Decoder(cfg), Decoder(cfg)
    for model in (one, two):
        model.init_weights(torch.Generator().manual_seed(3))
    weights = dict(one.named_parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in two.named_parameters())
    for name, weight in weights.items():
        if name.endswith("bias"):
            assert not weight.any()
        elif weight.dim() == 1:
            assert (weight == 1).all()
        else:
            scale = 1 / 4 if name.endswith(("attn.o.weight", "ff.down.weight")) else 1.0
            assert float(weight.detach().std()) == pytest.approx(0.02 * scale, rel=0.03)


def test_dropout_acts_in_training_only() -> None:
    model, tokens = make_decoder("mha", dropout=0.3), ids(1, 8)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_cache_and_documents_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        MODELS["mha"].hidden(ids(1, 4), documents_BT=torch.zeros(1, 4, dtype=torch.long), cache=object())  # type: ignore[arg-type]


def test_one_graph_without_breaks() -> None:
    model, tokens = make_decoder("gqa"), ids(2, 16)
    documents = torch.arange(16).div(5, rounding_mode="floor").expand(2, 16)
    explained = torch._dynamo.explain(model)(tokens, documents_BT=documents)
    assert explained.graph_break_count == 0
