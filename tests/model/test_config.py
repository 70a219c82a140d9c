"""The shape of a decoder and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from herdbook.errors import UserError
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder

shapes = st.fixed_dictionaries(
    {
        "d_model": st.sampled_from([32, 48, 64]),
        "n_layers": st.integers(1, 3),
        "n_heads": st.sampled_from([2, 4]),
        "n_kv_heads": st.sampled_from([None, 1, 2]),
        "head_dim": st.sampled_from([None, 8, 24]),
        "d_ff": st.sampled_from([None, 40]),
        "embed_dim": st.sampled_from([None, 24]),
        "positions": st.sampled_from(["rope", "learned", "alibi"]),
        "norm": st.sampled_from(["rmsnorm", "layernorm", "layernorm_low_precision"]),
        "block": st.sampled_from(["sequential", "parallel_one_norm", "parallel_two_norms"]),
        "norm_place": st.sampled_from(["pre", "post"]),
        "embed_norm": st.booleans(),
        "qk_norm": st.booleans(),
        "activation": st.sampled_from(["swiglu", "gelu", "gelu_tanh", "relu"]),
        "bias": st.booleans(),
        "attn_bias": st.sampled_from([None, True, False]),
        "ff_bias": st.sampled_from([None, True, False]),
        "window": st.sampled_from([None, 1, 8, 99]),
        "tied": st.booleans(),
        "head_bias": st.booleans(),
    }
).filter(lambda row: (row["norm_place"] == "pre" or row["block"] == "sequential") and not (row["tied"] and row["head_bias"]))


@settings(deadline=None)
@given(shapes)
def test_counted_parameters_are_those_of_the_module(shape: dict[str, object]) -> None:
    cfg = ModelConfig.model_validate({"vocab_size": 70, "context": 16, **shape})
    with torch.device("meta"):
        model = Decoder(cfg)
    assert cfg.parameters() == sum(weight.numel() for weight in model.parameters())
    tables = [model.embed, model.position_embed, model.unembed]
    assert cfg.parameters_non_embedding() == cfg.parameters() - sum(t.weight.numel() for t in tables if t is not None)


@settings(deadline=None)
@given(shapes)
def test_resolved_writes_everything_out_and_changes_no_count(shape: dict[str, object]) -> None:
    cfg = ModelConfig.model_validate({"vocab_size": 64, **shape})
    done = cfg.resolved()
    assert None not in (done.n_kv_heads, done.head_dim, done.d_ff, done.vocab_size, done.embed_dim, done.attn_bias)
    assert done.resolved() == done == ModelConfig.model_validate(done.model_dump(mode="json"))
    assert done.parameters() == cfg.parameters()


@settings(deadline=None)
@given(st.integers(1, 300_000))
def test_vocabulary_is_padded_to_a_multiple_of_64(size: int) -> None:
    padded = ModelConfig().resolved(size).vocabulary
    assert padded % 64 == 0
    assert size <= padded < size + 64


def test_configured_vocabulary_is_kept_but_must_hold_the_tokenizer() -> None:
    assert ModelConfig(vocab_size=101).resolved(100).vocab_size == 101
    with pytest.raises(UserError, match="smaller than the tokenizer's 200"):
        ModelConfig(vocab_size=101).resolved(200)
    with pytest.raises(UserError, match="not known yet"):
        ModelConfig().parameters()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"d_model": 100, "n_heads": 3}, "not a multiple of n_heads"),
        ({"n_heads": 4, "d_model": 64, "n_kv_heads": 3}, "not a multiple of n_kv_heads"),
        ({"n_heads": 2, "d_model": 64, "n_kv_heads": 4}, "not a multiple of n_kv_heads"),
        ({"d_model": 9, "n_heads": 3}, "must be even"),
        ({"position_offset": 2}, "position_offset is for positions: learned"),
        ({"alibi_max": 16}, "alibi_max is for positions: alibi"),
        ({"positions": "alibi", "rope_theta": 1e6}, "rope_theta is for positions: rope"),
        ({"rope_factor": 2.0}, "set both or neither"),
        ({"rope_scaling": "ntk"}, "set both or neither"),
        ({"rope_fraction": 0.02}, "must be even"),
        ({"block": "parallel_one_norm", "norm_place": "post"}, "needs block: sequential"),
        ({"head_bias": True}, "a head of its own"),
        ({"norm_bias": True}, "rmsnorm has no bias"),
        ({"n_layers": 0}, "greater than 0"),
        ({"window": 0}, "greater than 0"),
        ({"vocab_size": 0}, "not positive"),
        ({"dropout": 1.0}, "less than 1"),
        ({"layers": 3}, "Extra inputs"),
    ],
)
def test_impossible_shapes_are_refused(shape: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate(shape)


def test_human_numbers() -> None:
    assert ModelConfig.model_validate({"context": "2Ki", "vocab_size": "32K"}).context == 2048


def test_swiglu_width_follows_llama() -> None:
    widths = {4096: 11008, 5120: 13824, 6656: 17920, 8192: 22016}
    assert {d: ModelConfig(d_model=d, n_heads=d // 128).ff_width for d in widths} == widths
    assert ModelConfig(d_model=192).ff_width == 512
    assert ModelConfig(d_model=192, activation="gelu").ff_width == 768


def test_flops_by_hand() -> None:
    cfg = ModelConfig(vocab_size=10, d_model=4, n_layers=1, n_heads=1, d_ff=8, context=6)
    matrices = 4 * 4 * 4 + 3 * 4 * 8 + 3 * 4 + 10 * 4  # attention, feed-forward, norms, head
    assert cfg.flops_per_token(training=False) == 2 * matrices + 2 * 1 * 4 * 6
    assert cfg.flops_per_token(12) == 3 * (2 * matrices + 2 * 1 * 4 * 12)


@given(length=st.integers(1, 40), window=st.integers(1, 50))
def test_flops_count_the_keys_that_a_window_shows(length: int, window: int) -> None:
    """T/2 stands for the (T + 1)/2 keys of a query, so half a key a query is left out of the count; here it is put back."""
    plain, narrow = (ModelConfig(vocab_size=10, d_model=4, n_layers=3, n_heads=2, window=size) for size in (None, window))
    seen = sum(min(place + 1, window) for place in range(length)) / length
    kept = min(length, window)
    counted = narrow.flops_per_token(length, training=False) - plain.flops_per_token(1, training=False)
    assert counted == pytest.approx(2 * 3 * 4 * (2 * seen - kept / length - 1))


def test_cache_bytes_shrink_with_the_key_heads() -> None:
    full = ModelConfig(vocab_size=64, d_model=64, n_heads=8, n_layers=3)
    assert full.kv_bytes_per_token() == 2 * 3 * 64 * 2
    assert full.model_copy(update={"n_kv_heads": 2}).kv_bytes_per_token(4) == full.kv_bytes_per_token(4) / 4


def test_config_needs_no_torch() -> None:
    code = "import sys, herdbook.model.config, herdbook.infer.config, herdbook.facts.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
