"""LLaMA and what has its layout: Mistral, which may look through a sliding window, and Qwen3, whose queries and keys are
normalised and whose windows differ from layer to layer, so that only models without one are read.

Sources: arXiv:2302.13971, arXiv:2307.09288, arXiv:2310.06825; `LlamaForCausalLM`, `MistralForCausalLM` and `Qwen3ForCausalLM`
of transformers 4.57 and 5.23.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from herdbook.interop.checks import window_of
from herdbook.interop.families.base import Family, RopeKeys, Row, Settings, divides, pair

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
        "rms_norm_eps": "norm_eps",
        "attention_bias": "attn_bias",
        "mlp_bias": "ff_bias",
        "tie_word_embeddings": "tied",
        "initializer_range": "init_std",
        "attention_dropout": "dropout",
    },
    defaults={
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
        "initializer_range": 0.02, "attention_dropout": 0.0,
    },
    # transformers 5 checks the spread of the random start, which matters to no one who loads weights
    fixed={
        "positions": ("rope",), "norm": ("rmsnorm",), "norm_bias": (False,), "activation": ("swiglu",),
        "d_model": divides, "init_std": lambda cfg: cfg.init_std <= 1,
    },
    constants={"hidden_act": "silu"},
    rows=(
        Row("model.embed_tokens.weight", ("embed.weight",)),
        *pair("model.layers.{n}.input_layernorm", "attn_norm"),
        *pair("model.layers.{n}.self_attn.q_proj", "attn.q"),
        *pair("model.layers.{n}.self_attn.k_proj", "attn.k"),
        *pair("model.layers.{n}.self_attn.v_proj", "attn.v"),
        *pair("model.layers.{n}.self_attn.o_proj", "attn.o"),
        *pair("model.layers.{n}.post_attention_layernorm", "ff_norm"),
        *pair("model.layers.{n}.mlp.gate_proj", "ff.gate"),
        *pair("model.layers.{n}.mlp.up_proj", "ff.up"),
        *pair("model.layers.{n}.mlp.down_proj", "ff.down"),
        *pair("model.norm", "norm"),
        Row("lm_head.weight", ("unembed.weight",)),
    ),
    rope=RopeKeys(),
    ignored=("rotary_emb.inv_freq",),
)  # fmt: skip

_PLAIN = {key: name for key, name in LLAMA.fields.items() if key not in ("attention_bias", "mlp_bias")}


def _window(settings: Settings, file: Path) -> dict[str, Any]:
    """Every layer's window. transformers' is ours: a query sees so many keys, itself among them."""
    key = "sliding_window"
    return {"window": window_of(settings[key], settings["max_position_embeddings"], file, key)}


MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    architecture="MistralForCausalLM",
    fields=_PLAIN,
    defaults={
        **LLAMA.defaults, "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131_072,
        "sliding_window": 4096,
    },
    fixed={
        "positions": ("rope",), "norm": ("rmsnorm",), "norm_bias": (False,), "activation": ("swiglu",),
        "attn_bias": (False,), "ff_bias": (False,),
    },
    read=_window,
    derived=("window",),
    write=lambda cfg: {"sliding_window": cfg.window},
)  # fmt: skip

QWEN3 = replace(
    LLAMA,
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    fields={**_PLAIN, "attention_bias": "attn_bias"},
    defaults={
        **LLAMA.defaults, "vocab_size": 151_936, "intermediate_size": 22016, "num_key_value_heads": 32, "head_dim": 128,
        "max_position_embeddings": 32_768, "use_sliding_window": False, "sliding_window": 4096,
    },
    fixed={
        "positions": ("rope",), "norm": ("rmsnorm",), "norm_bias": (False,), "activation": ("swiglu",),
        "ff_bias": (False,), "qk_norm": (True,),
    },
    constants={"hidden_act": "silu", "use_sliding_window": False},
    rows=(
        *LLAMA.rows,
        Row("model.layers.{n}.self_attn.q_norm.weight", ("blocks.{n}.attn.q_norm.weight",)),
        Row("model.layers.{n}.self_attn.k_norm.weight", ("blocks.{n}.attn.k_norm.weight",)),
    ),
)  # fmt: skip
