"""How Hugging Face's model classes name what our decoder has: names of config fields and of tensors, as data.

A family fits a config when each of `fixed` holds; then `fields` translate one by one and `rows` say where each tensor goes.
Sources: the layouts of transformers 4.57 and 5.23, checked against its classes by the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from herdbook.model.config import ModelConfig


@dataclass(frozen=True)
class Row:
    """Where a tensor goes: `theirs` holds `ours`, stacked in this order along the outputs; `{n}` is the layer.

    `transposed`: theirs is stored (in, out), as GPT-2's Conv1D does, and ours (out, in).
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False


@dataclass(frozen=True)
class Family:
    """One of transformers' model classes.

    Attributes:
        fields: their config key → our field.
        defaults: what their class assumes when a key is absent.
        fixed: our field → the values their class can express.
        constants: their key → what it must be when it is present, and what we write.
        accepted: their keys with further values that mean nothing to the logits.
        values: their key → {their value: ours}, where values are named differently; the first of equals is written.
        ignored: endings of tensor names that hold no weights (buffers of old versions).
        prefix: what some checkpoints leave out in front of tensor names.
    """

    model_type: str
    architecture: str
    fields: Mapping[str, str]
    fixed: Mapping[str, tuple[Any, ...]]
    rows: tuple[Row, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    prefix: str = ""

    def fits(self, cfg: ModelConfig) -> bool:
        """Whether their class computes what a decoder of this config does."""
        return all(getattr(cfg, name) in values for name, values in self.fixed.items()) and (
            "n_kv_heads" in self.fields.values()
            or (cfg.kv_heads == cfg.n_heads and cfg.head_width * cfg.n_heads == cfg.d_model)
        )


def _both(theirs: str, *ours: str, transposed: bool = False) -> tuple[Row, Row]:
    """The rows of a layer's weight and bias; only the weight is transposed."""
    return (
        Row(f"{theirs}.weight", tuple(f"blocks.{{n}}.{name}.weight" for name in ours), transposed),
        Row(f"{theirs}.bias", tuple(f"blocks.{{n}}.{name}.bias" for name in ours)),
    )


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "intermediate_size": "d_ff",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "head_dim": "head_dim",
        "max_position_embeddings": "context",
        "rope_theta": "rope_theta",
        "rms_norm_eps": "norm_eps",
        "attention_bias": "bias",
        "mlp_bias": "bias",
        "tie_word_embeddings": "tied",
        "initializer_range": "init_std",
        "attention_dropout": "dropout",
    },
    defaults={
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None, "max_position_embeddings": 2048,
        "rope_theta": 10_000.0, "rms_norm_eps": 1e-6, "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": False, "initializer_range": 0.02, "attention_dropout": 0.0,
    },
    fixed={"positions": ("rope",), "norm": ("rmsnorm",), "activation": ("swiglu",)},
    constants={"hidden_act": "silu"},
    rows=(
        Row("model.embed_tokens.weight", ("embed.weight",)),
        *_both("model.layers.{n}.input_layernorm", "attn_norm"),
        *_both("model.layers.{n}.self_attn.q_proj", "attn.q"),
        *_both("model.layers.{n}.self_attn.k_proj", "attn.k"),
        *_both("model.layers.{n}.self_attn.v_proj", "attn.v"),
        *_both("model.layers.{n}.self_attn.o_proj", "attn.o"),
        *_both("model.layers.{n}.post_attention_layernorm", "ff_norm"),
        *_both("model.layers.{n}.mlp.gate_proj", "ff.gate"),
        *_both("model.layers.{n}.mlp.up_proj", "ff.up"),
        *_both("model.layers.{n}.mlp.down_proj", "ff.down"),
        Row("model.norm.weight", ("norm.weight",)),
        Row("lm_head.weight", ("unembed.weight",)),
    ),
    ignored=("rotary_emb.inv_freq",),
)  # fmt: skip

GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    fields={
        "vocab_size": "vocab_size",
        "n_embd": "d_model",
        "n_inner": "d_ff",
        "n_layer": "n_layers",
        "n_head": "n_heads",
        "n_positions": "context",
        "activation_function": "activation",
        "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tied",
        "initializer_range": "init_std",
        "resid_pdrop": "dropout",
        "embd_pdrop": "dropout",
        "attn_pdrop": "dropout",
    },
    defaults={
        "vocab_size": 50257, "n_embd": 768, "n_inner": None, "n_layer": 12, "n_head": 12, "n_positions": 1024,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
        "initializer_range": 0.02, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1,
    },
    fixed={
        "positions": ("learned",), "position_offset": (0,), "norm": ("layernorm",), "bias": (True,),
        "activation": ("gelu", "gelu_tanh", "relu"),
    },
    constants={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    values={
        "activation_function": {"gelu_new": "gelu_tanh", "gelu": "gelu", "relu": "relu", "gelu_pytorch_tanh": "gelu_tanh"}
    },
    rows=(
        Row("transformer.wte.weight", ("embed.weight",)),
        Row("transformer.wpe.weight", ("position_embed.weight",)),
        *_both("transformer.h.{n}.ln_1", "attn_norm"),
        *_both("transformer.h.{n}.attn.c_attn", "attn.q", "attn.k", "attn.v", transposed=True),
        *_both("transformer.h.{n}.attn.c_proj", "attn.o", transposed=True),
        *_both("transformer.h.{n}.ln_2", "ff_norm"),
        *_both("transformer.h.{n}.mlp.c_fc", "ff.up", transposed=True),
        *_both("transformer.h.{n}.mlp.c_proj", "ff.down", transposed=True),
        Row("transformer.ln_f.weight", ("norm.weight",)),
        Row("transformer.ln_f.bias", ("norm.bias",)),
        Row("lm_head.weight", ("unembed.weight",)),
    ),
    ignored=(".attn.bias", ".attn.masked_bias"),
    prefix="transformer.",
)  # fmt: skip

FAMILIES = (LLAMA, GPT2)


def family_of(cfg: ModelConfig) -> Family | None:
    """The first class of transformers that expresses this config, or None."""
    return next((family for family in FAMILIES if family.fits(cfg)), None)
