"""`config.json` of every family, both ways: what is read, what is written, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.errors import UserError
from herdbook.interop.families import FAMILIES, Family, family_named, family_of
from herdbook.interop.hf import config_json, read_config
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder

from .theirs import FALCON, GPTJ, LEARNED, MPT, NEOX, OURS, RW, our_config, write_config

# ---- configs both ways ----


@st.composite
def shapes(draw: st.DrawFn, family: Family) -> ModelConfig:
    """A config that a family expresses, with odd sizes and every field it has a key for."""

    def choose(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    heads, width = choose(1, 2, 3, 6), 2 * draw(st.integers(1, 6))
    divisors = [n for n in (1, 2, 3, 6) if heads % n == 0]
    shape: dict[str, Any] = {
        "vocab_size": draw(st.integers(1, 300)), "d_model": heads * width, "n_heads": heads,
        "n_layers": draw(st.integers(1, 5)), "context": draw(st.integers(1, 9000)), "tied": choose(True, False),
        "init_std": draw(st.floats(1e-4, 1.0)), "norm_eps": draw(st.floats(1e-9, 1e-2)), "dropout": draw(st.floats(0, 0.9)),
    }  # fmt: skip
    own_width = {"d_ff": choose(None, draw(st.integers(1, 200)))}
    rope = {"rope_theta": draw(st.floats(10, 1e6))} | choose({}, {"rope_scaling": "linear", "rope_factor": 2.5})
    biases = {"attn_bias": choose(True, False), "ff_bias": choose(True, False)}
    one_bias = {"bias": choose(True, False), "norm_bias": True}
    activation = {"activation": choose("gelu", "gelu_tanh", "relu")}
    groups = {"n_kv_heads": choose(*divisors)}
    parallel = {"block": choose("parallel_one_norm", "parallel_two_norms")}
    share = {"rope_fraction": 2 * draw(st.integers(1, width // 2)) / width}
    extras: dict[str, dict[str, Any]] = {
        "llama": {**rope, **own_width, **biases, **groups, "head_dim": choose(None, 2, 14)},
        "mistral": {
            **rope, **own_width, **groups, "head_dim": choose(2, 14), "d_model": draw(st.integers(1, 50)),
            "window": choose(None, *([draw(st.integers(1, shape["context"] - 1))] if shape["context"] > 1 else [])),
        },
        "qwen3": {**rope, **own_width, **groups, "qk_norm": True, "attn_bias": choose(True, False), "head_dim": choose(4, 6)},
        "gpt2": {**LEARNED, **own_width, **activation},
        "opt": {
            **LEARNED, **own_width, **activation, **one_bias, "position_offset": 2, "norm_eps": 1e-5,
            "embed_dim": choose(None, 1, 7), "norm_place": choose("pre", "post"),
        },
        "bloom": {**OURS["bloom"][1]},
        "mpt": {
            **MPT, "norm": choose("layernorm", "layernorm_low_precision"), "clip_qkv": choose(None, 6.0, 0.1),
            "alibi_max": choose(8.0, 16.0, 3.0),
        },
        "gpt_neox": {**NEOX, **rope, **own_width, **activation, **share, "attn_bias": choose(True, False),
                     "block": choose("sequential", "parallel_two_norms"), "tied": shape["tied"]},
        "falcon": {
            **FALCON, **own_width, **activation, **one_bias,
            **choose(rope, {"positions": "alibi", "alibi_falcon": True}),
            **choose({**groups, **parallel}, {"n_kv_heads": 1}, {}),
        },
        "gptj": {**GPTJ, **own_width, **activation, **share},
    }  # fmt: skip
    return ModelConfig.model_validate({**shape, **extras[family.model_type]}).resolved()


def written(cfg: ModelConfig, family: Family, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the config looks like in the words of one family, even where an earlier one fits too."""
    with monkeypatch.context() as patch:
        patch.setattr("herdbook.interop.hf_config.family_of", lambda _: family)
        return json.loads(json.dumps(config_json(cfg)))


def plain(cfg: ModelConfig) -> ModelConfig:
    """NTK-aware scaling is written as the larger base that it is."""
    update = {"rope_scaling": "none", "rope_factor": 1.0, "rope_theta": cfg.rotary_theta}
    return cfg.model_copy(update=update) if cfg.rope_scaling == "ntk" else cfg


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_configs_come_back_as_they_were(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")

    @settings(max_examples=40)
    @given(shapes(family))
    def check(cfg: ModelConfig) -> None:
        assert family.fits(cfg)
        said = written(cfg, family, monkeypatch)
        assert said["architectures"] == [family.architecture]
        assert read_config(write_config(tmp_path, said)) == cfg
        theirs = transformers.AutoConfig.for_model(**said).to_dict()
        assert read_config(write_config(tmp_path, theirs)) == cfg

    check()


CHANGES: dict[str, tuple[Any, ...]] = {
    "n_kv_heads": (1, 2, 3), "head_dim": (4, 6), "d_ff": (7, 192), "embed_dim": (5, 48), "position_offset": (0, 1, 2),
    "positions": ("rope", "learned", "alibi"), "rope_theta": (10_000.0, 99.0), "rope_fraction": (1.0, 0.5, 0.25),
    "rope_interleaved": (True, False), "alibi_max": (8.0, 16.0, 8.5), "alibi_falcon": (True, False),
    "norm": ("rmsnorm", "layernorm", "layernorm_low_precision"), "norm_eps": (1e-5, 1e-6), "norm_place": ("pre", "post"),
    "block": ("sequential", "parallel_one_norm", "parallel_two_norms"), "embed_norm": (True, False), "qk_norm": (True, False),
    "clip_qkv": (None, 2.0), "window": (None, 7), "activation": ("swiglu", "gelu", "gelu_tanh", "relu"),
    "attn_bias": (True, False), "ff_bias": (True, False), "norm_bias": (True, False), "head_bias": (True, False),
    "tied": (True, False), "init_std": (0.02, 2.0),
}  # fmt: skip


@pytest.mark.parametrize("kind", OURS)
def test_a_family_fits_only_what_it_can_say(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every neighbour of every kind: where a family claims to fit, reading back what it says gives the same config."""
    base = our_config(**OURS[kind][1]).resolved()
    fitting = 0
    for name, values in CHANGES.items():
        for value in values:
            try:
                cfg = ModelConfig.model_validate({**base.model_dump(), name: value}).resolved()
            except ValueError:
                continue
            for family in FAMILIES:
                if family.fits(cfg):
                    fitting += 1
                    assert read_config(write_config(tmp_path, written(cfg, family, monkeypatch))) == plain(cfg), (name, value)
    assert fitting >= 10


def test_every_field_of_ours_is_named_or_refused() -> None:
    """CHANGES goes through all that a family could overlook."""
    free = {
        "vocab_size",
        "vocab_multiple",
        "d_model",
        "n_layers",
        "n_heads",
        "context",
        "bias",
        "dropout",
        "rope_scaling",
        "rope_factor",
    }
    assert set(CHANGES) | free == set(ModelConfig.model_fields)


def test_each_class_has_one_family_and_each_key_a_default() -> None:
    assert len({name for family in FAMILIES for name in (family.model_type, *family.legacy)}) == len(FAMILIES) + 2
    assert {architecture for architecture, _ in OURS.values()} == {family.architecture for family in FAMILIES}
    for family in FAMILIES:
        assert set(family.fields) <= set(family.defaults)
        assert family_named(family.model_type) is family
    assert family_of(our_config(norm="layernorm", n_kv_heads=1, block="parallel_one_norm")) is None  # PaLM
    assert family_of(our_config(**{**LEARNED, "norm": "layernorm_low_precision", "activation": "gelu"})) is None
    assert family_of(our_config(**MPT, alibi_max=8.5)) is None


def test_both_versions_of_transformers_are_told_about_rope() -> None:
    linear = config_json(our_config(**OURS["llama-linear"][1]))
    assert linear["rope_theta"] == 10_000.0
    assert linear["rope_scaling"] == {"type": "linear", "factor": 4.0}
    assert linear["rope_parameters"] == {"rope_theta": 10_000.0, "rope_type": "linear", "factor": 4.0}
    stretched = config_json(our_config(**OURS["llama-ntk"][1]))
    assert stretched["rope_theta"] == stretched["rope_parameters"]["rope_theta"] == pytest.approx(10_000 * 4 ** (8 / 6))
    assert stretched["rope_scaling"] is None
    neox = config_json(our_config(**OURS["neox"][1]))
    assert (neox["rotary_pct"], neox["rotary_emb_base"]) == (0.25, 10_000.0)
    assert neox["rope_parameters"] == {"rope_theta": 10_000.0, "rope_type": "default", "partial_rotary_factor": 0.25}
    assert not {"rope_theta", "rope_parameters"} & set(config_json(our_config(**RW)))


# ---- configs of the hub ----

HUB: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "falcon-7b, first release": (
        {"model_type": "RefinedWebModel", "hidden_size": 4544, "n_head": 71, "n_layer": 32, "multi_query": True,
         "parallel_attn": True, "alibi": False, "bias": False, "vocab_size": 65024, "layer_norm_epsilon": 1e-5},
        {"n_kv_heads": 1, "block": "parallel_one_norm", "n_layers": 32, "d_ff": 18176, "norm_bias": True, "ff_bias": False},
    ),
    "falcon-40b, first release": (
        {"model_type": "RefinedWeb", "hidden_size": 8192, "n_head": 128, "n_head_kv": 8, "n_layer": 60, "alibi": False,
         "parallel_attn": True, "bias": False, "vocab_size": 65024},
        {"n_kv_heads": 8, "block": "parallel_two_norms", "n_heads": 128, "head_dim": 64},
    ),
    "falcon-rw-1b, first release": (
        {"model_type": "RefinedWebModel", "hidden_size": 2048, "n_head": 32, "n_layer": 24, "alibi": True, "bias": True,
         "vocab_size": 50304},
        {"n_kv_heads": 32, "block": "sequential", "positions": "alibi", "alibi_falcon": True, "attn_bias": True},
    ),
    "bloom": (
        {"model_type": "bloom", "n_embed": 14336, "hidden_size": 64, "n_layer": 70, "num_attention_heads": 112,
         "seq_length": 2048, "pretraining_tp": 4, "offset_alibi": 100, "attention_softmax_in_fp32": True},
        {"d_model": 14336, "n_heads": 112, "n_layers": 70, "context": 2048, "embed_norm": True, "tied": True},
    ),
    "mpt-7b-storywriter": (
        {"model_type": "mpt", "d_model": 4096, "n_heads": 32, "n_layers": 32, "max_seq_len": 65536, "vocab_size": 50432,
         "learned_pos_emb": True, "attn_config": {"alibi": True, "alibi_bias_max": 16, "clip_qkv": 6, "attn_pdrop": 0}},
        {"alibi_max": 16.0, "clip_qkv": 6.0, "context": 65536, "norm": "layernorm_low_precision"},
    ),
    "mpt without clipping": (
        {"model_type": "mpt", "d_model": 4096, "n_heads": 32, "attn_config": {"clip_qkv": 0, "softmax_scale": 128**-0.5}},
        {"clip_qkv": None, "alibi_max": 8.0, "vocab_size": 50368},
    ),
    "mpt without attn_config": ({"model_type": "mpt"}, {"d_model": 2048, "n_layers": 24, "d_ff": 8192}),
    "opt-350m": (
        {"model_type": "opt", "hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24, "ffn_dim": 4096,
         "word_embed_proj_dim": 512, "do_layer_norm_before": False, "_remove_final_layer_norm": False, "dropout": 0.1},
        {"embed_dim": 512, "norm_place": "post", "position_offset": 2, "dropout": 0.1},
    ),
    "gpt-neox-20b": (
        {"model_type": "gpt_neox", "hidden_act": "gelu_fast", "rotary_pct": 0.25, "rotary_emb_base": 10000},
        {"activation": "gelu_tanh", "rope_fraction": 0.25, "block": "parallel_two_norms", "tied": False},
    ),
    "gpt-j": (
        {"model_type": "gptj", "rotary": True, "rotary_dim": 64, "scale_attn_weights": True, "tie_word_embeddings": False},
        {"rope_fraction": 0.25, "rope_interleaved": True, "head_bias": True, "attn_bias": False, "ff_bias": True},
    ),
    "gpt-j, share that rounds down": (
        {"model_type": "gptj", "n_embd": 98, "n_head": 1, "rotary_dim": 58}, {"rope_interleaved": True},
    ),
    "gpt2 by its other names": (
        {"model_type": "gpt2", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "n_ctx": 1024},
        {"d_model": 32, "n_layers": 3, "n_heads": 4, "d_ff": 128},
    ),
    "mistral-7b": (
        {"model_type": "mistral", "hidden_size": 4096, "num_key_value_heads": 8, "max_position_embeddings": 32768,
         "sliding_window": 4096, "vocab_size": 32000},
        {"window": 4096, "context": 32768, "d_ff": 14336, "n_kv_heads": 8, "tied": False},
    ),
    "mistral by its defaults": ({"model_type": "mistral"}, {"window": 4096, "context": 131_072}),
    "mistral-7b-v0.2, without a window": ({"model_type": "mistral", "sliding_window": None}, {"window": None}),
    "mistral with a window as wide as the context": (
        {"model_type": "mistral", "sliding_window": 4096, "max_position_embeddings": 4096}, {"window": None},
    ),
    "qwen3 with a window that is off": (
        {"model_type": "qwen3", "use_sliding_window": False, "sliding_window": 128, "layer_types": ["full_attention"] * 32},
        {"qk_norm": True, "head_dim": 128},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HUB)
def test_configs_of_the_hub(kind: str, tmp_path: Path) -> None:
    said, expected = HUB[kind]
    cfg = read_config(write_config(tmp_path, said))
    assert {name: getattr(cfg, name) for name in expected} == expected
    family = family_named(said["model_type"])
    assert family is not None
    assert family.fits(cfg)
    if said["model_type"] == "gptj":
        assert cfg.rotary_width == said["rotary_dim"]


@pytest.mark.parametrize("clip", [6, 6.0])
def test_storywriter_is_written_in_the_types_transformers_5_takes(clip: float) -> None:
    said = config_json(our_config(**MPT, clip_qkv=clip, alibi_max=16))["attn_config"]
    assert (repr(said["clip_qkv"]), repr(said["alibi_bias_max"])) == ("6.0", "16")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "logit scale": ({"model_type": "mpt", "logit_scale": "inv_sqrt_d_model"}, "logit_scale is 'inv_sqrt_d_model'"),
    "expansion": ({"model_type": "mpt", "expansion_ratio": 3}, "expansion_ratio is 3"),
    "mpt with biases": ({"model_type": "mpt", "no_bias": False}, "no_bias is False"),
    "mpt without alibi": ({"model_type": "mpt", "attn_config": {"alibi": False}}, "attn_config.alibi is False"),
    "mpt with rope": ({"model_type": "mpt", "attn_config": {"rope": True}}, "attn_config.rope is True"),
    "mpt with qk_ln": ({"model_type": "mpt", "attn_config": {"qk_ln": True}}, "attn_config.qk_ln is True"),
    "mpt with groups": ({"model_type": "mpt", "attn_config": {"attn_type": "grouped"}}, "attn_type is 'grouped'"),
    "mpt scale": ({"model_type": "mpt", "attn_config": {"softmax_scale": 1.0}}, "softmax_scale is 1.0"),
    "mpt rmsnorm": ({"model_type": "mpt", "norm_type": "low_precision_rmsnorm"}, "norm_type 'low_precision_rmsnorm'"),
    "mpt text": ({"model_type": "mpt", "attn_config": "triton"}, "attn_config is not an object"),
    "mpt clip": ({"model_type": "mpt", "attn_config": {"clip_qkv": "six"}}, "clip_qkv"),
    "bloom residual": (
        {"model_type": "bloom", "apply_residual_connection_post_layernorm": True}, "post_layernorm is True",
    ),
    "opt affine": ({"model_type": "opt", "layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine is False"),
    "opt final norm": ({"model_type": "opt", "_remove_final_layer_norm": True}, "_remove_final_layer_norm is True"),
    "window of nothing": ({"model_type": "mistral", "sliding_window": 0}, "sliding_window is 0"),
    "window of a text": ({"model_type": "mistral", "sliding_window": "wide"}, "sliding_window is 'wide'"),
    "window of a part": ({"model_type": "mistral", "sliding_window": 12.5}, "sliding_window is 12.5"),
    "windows by layer": ({"model_type": "mistral", "layer_types": ["sliding_attention", "full_attention"]}, "layer_types is"),
    "mpt window": ({"model_type": "mpt", "attn_config": {"sliding_window_size": 128}}, "sliding_window_size is 128"),
    "window": ({"model_type": "llama", "sliding_window": 1024}, "sliding_window is 1024"),
    "qwen3 window": ({"model_type": "qwen3", "use_sliding_window": True}, "use_sliding_window is True"),
    "layer types": ({"model_type": "qwen3", "layer_types": ["sliding_attention"]}, "layer_types is"),
    "yarn": ({"model_type": "llama", "rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "type 'yarn'"),
    "llama3": ({"model_type": "llama", "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "type 'llama3'"),
    "dynamic": ({"model_type": "falcon", "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "type 'dynamic'"),
    "linear by nothing": ({"model_type": "llama", "rope_scaling": {"type": "linear"}}, "factor of linear"),
    "linear by text": ({"model_type": "llama", "rope_scaling": {"type": "linear", "factor": "two"}}, "factor of linear"),
    "rope by layer": ({"model_type": "llama", "rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "for all layers"),
    "partial rope": ({"model_type": "llama", "partial_rotary_factor": 0.5}, "part of the head"),
    "neox share": ({"model_type": "gpt_neox", "rotary_pct": 0.013}, "must be even"),
    "neox theta": ({"model_type": "gpt_neox", "rotary_emb_base": "big"}, "rope_theta"),
    "gpt-j without share": ({"model_type": "gptj", "rotary_dim": None}, "rotary_dim is None"),
    "gpt-j too wide": ({"model_type": "gptj", "rotary_dim": 10**6}, "rope_fraction"),
    "gpt-j tied": ({"model_type": "gptj", "tie_word_embeddings": True}, "tie_word_embeddings is True"),
    "falcon norms": ({"model_type": "falcon", "num_ln_in_parallel_attn": 2}, "needs new_decoder_architecture"),
    "falcon three norms": (
        {"model_type": "falcon", "new_decoder_architecture": True, "num_ln_in_parallel_attn": 3}, "only 1 and 2",
    ),
    "falcon key heads": ({"model_type": "falcon", "multi_query": False, "num_kv_heads": 2}, "num_kv_heads is 2"),
    "falcon alibi": ({"model_type": "falcon", "alibi": "yes"}, "alibi 'yes' is not supported"),
    "falcon heads": ({"model_type": "falcon", "num_attention_heads": "many"}, "num_attention_heads is 'many'"),
    "quantised": ({"model_type": "llama", "quantization_config": {"bits": 4}}, "quantization_config is"),
    "multiplier": ({"model_type": "llama", "attention_multiplier": 0.01}, "attention_multiplier is 0.01"),
    "too wide": ({"model_type": "herdbook", "herdbook": {"vocab_size": 5, "d_model": 10**400, "n_heads": 1}}, "too large"),
    "no vocabulary": ({"model_type": "herdbook", "herdbook": {}}, "vocab_size is missing"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_changes_the_logits_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    said, message = REFUSED[kind]
    with pytest.raises(UserError, match=rf"config\.json: .*({message})"):
        read_config(write_config(tmp_path, said))


JUNK = st.sampled_from([
    None, True, 0, 1, -1, 3, 10**12, 10**400, 0.5, -0.5, math.inf, math.nan, "", "gelu", "yes", "1.3B", [], [1], {},
    {"factor": 2, "type": "linear"}, {"rope_theta": None}, {"alibi": False}, {"clip_qkv": []}, {"softmax_scale": True},
])  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_any_config_is_read_or_refused_in_plain_words(family: Family, tmp_path: Path) -> None:
    sections = {"attn_config", "rope_parameters", "rope_scaling", "sliding_window", "layer_types", "rotary_pct"}
    keys = sorted({*family.defaults, *family.constants, *family.aliases, *sections})

    @settings(max_examples=150)
    @given(st.sampled_from([family.model_type, *family.legacy]), st.dictionaries(st.sampled_from(keys), JUNK, max_size=3))
    def check(model_type: str, said: dict[str, Any]) -> None:
        folder = write_config(tmp_path, {"model_type": model_type, **said})
        try:
            cfg = read_config(folder)
        except UserError as error:
            assert "config.json" in str(error)
        else:
            with torch.device("meta"):  # what is read can be built
                Decoder(cfg.model_copy(update={"n_layers": 1}))

    check()
