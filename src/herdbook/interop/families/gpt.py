"""GPT-2 and GPT-3, GPT-J, and GPT-NeoX with Pythia.

Sources: Radford 2019, arXiv:2005.14165, arXiv:2204.06745; `GPT2LMHeadModel`, `GPTJForCausalLM` and `GPTNeoXForCausalLM` of
transformers 4.57 and 5.23.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from herdbook.interop.families.base import ACTIVATIONS, Family, RopeKeys, Row, Settings, divides, pair, whole_number

_NAMES = {
    "hidden_size": "n_embd", "max_position_embeddings": "n_positions", "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}  # fmt: skip
_FIELDS = {
    "vocab_size": "vocab_size",
    "n_embd": "d_model",
    "n_inner": "d_ff",
    "n_layer": "n_layers",
    "n_head": "n_heads",
    "n_positions": "context",
    "activation_function": "activation",
    "layer_norm_epsilon": "norm_eps",
    "initializer_range": "init_std",
    "resid_pdrop": "dropout",
    "embd_pdrop": "dropout",
    "attn_pdrop": "dropout",
}

GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    fields={**_FIELDS, "tie_word_embeddings": "tied"},
    defaults={
        "vocab_size": 50257, "n_embd": 768, "n_inner": None, "n_layer": 12, "n_head": 12, "n_positions": 1024,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
        "initializer_range": 0.02, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1,
    },
    fixed={
        "positions": ("learned",), "norm": ("layernorm",), "norm_bias": (True,), "attn_bias": (True,), "ff_bias": (True,),
    },
    values={"activation_function": ACTIVATIONS},
    constants={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    aliases=_NAMES,
    rows=(
        Row("transformer.wte.weight", ("embed.weight",)),
        Row("transformer.wpe.weight", ("position_embed.weight",)),
        *pair("transformer.h.{n}.ln_1", "attn_norm"),
        *pair("transformer.h.{n}.attn.c_attn", "attn.q", "attn.k", "attn.v", transposed=True),
        *pair("transformer.h.{n}.attn.c_proj", "attn.o", transposed=True),
        *pair("transformer.h.{n}.ln_2", "ff_norm"),
        *pair("transformer.h.{n}.mlp.c_fc", "ff.up", transposed=True),
        *pair("transformer.h.{n}.mlp.c_proj", "ff.down", transposed=True),
        *pair("transformer.ln_f", "norm"),
        Row("lm_head.weight", ("unembed.weight",)),
    ),
    ignored=(".attn.bias", ".attn.masked_bias"),
    prefixes=("transformer.",),
)  # fmt: skip


def _turned_share(settings: Settings, where: Path) -> dict[str, Any]:
    """GPT-J counts the turned values of a head, we take their share of it."""
    turned = whole_number(settings, "rotary_dim", where)
    head = max(1, whole_number(settings, "n_embd", where) // whole_number(settings, "n_head", where))
    return {"rope_fraction": min(turned, 2 * head) / head}  # too many turned values are for the config to refuse


GPTJ = Family(
    model_type="gptj",
    architecture="GPTJForCausalLM",
    fields=_FIELDS,
    defaults={
        "vocab_size": 50400, "n_embd": 4096, "n_inner": None, "n_layer": 28, "n_head": 16, "n_positions": 2048,
        "rotary_dim": 64, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "initializer_range": 0.02,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
    fixed={
        "positions": ("rope",), "rope_interleaved": (True,), "norm": ("layernorm",), "norm_bias": (True,),
        "attn_bias": (False,), "ff_bias": (True,), "head_bias": (True,), "tied": (False,), "block": ("parallel_one_norm",),
    },
    values={"activation_function": ACTIVATIONS},
    constants={"scale_attn_weights": True, "tie_word_embeddings": False},
    neutral={"rotary": (True,)},
    aliases=_NAMES,
    read=_turned_share,
    write=lambda cfg: {"rotary_dim": cfg.rotary_width},
    derived=("rope_fraction",),
    rows=(
        Row("transformer.wte.weight", ("embed.weight",)),
        *pair("transformer.h.{n}.ln_1", "attn_norm"),
        *pair("transformer.h.{n}.attn.q_proj", "attn.q"),
        *pair("transformer.h.{n}.attn.k_proj", "attn.k"),
        *pair("transformer.h.{n}.attn.v_proj", "attn.v"),
        *pair("transformer.h.{n}.attn.out_proj", "attn.o"),
        *pair("transformer.h.{n}.mlp.fc_in", "ff.up"),
        *pair("transformer.h.{n}.mlp.fc_out", "ff.down"),
        *pair("transformer.ln_f", "norm"),
        *pair("lm_head", "unembed"),
    ),
    ignored=(".attn.bias", ".attn.masked_bias"),
    prefixes=("transformer.",),
)  # fmt: skip

NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "intermediate_size": "d_ff",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "max_position_embeddings": "context",
        "hidden_act": "activation",
        "layer_norm_eps": "norm_eps",
        "use_parallel_residual": "block",
        "attention_bias": "attn_bias",
        "tie_word_embeddings": "tied",
        "initializer_range": "init_std",
        "hidden_dropout": "dropout",
        "attention_dropout": "dropout",
    },
    defaults={
        "vocab_size": 50432, "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 44,
        "num_attention_heads": 64, "max_position_embeddings": 2048, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
        "use_parallel_residual": True, "attention_bias": True, "tie_word_embeddings": False, "initializer_range": 0.02,
        "hidden_dropout": 0.0, "attention_dropout": 0.0,
    },
    fixed={
        "positions": ("rope",), "norm": ("layernorm",), "norm_bias": (True,), "ff_bias": (True,), "d_model": divides,
    },
    values={"hidden_act": ACTIVATIONS, "use_parallel_residual": {True: "parallel_two_norms", False: "sequential"}},
    rows=(
        Row("gpt_neox.embed_in.weight", ("embed.weight",)),
        *pair("gpt_neox.layers.{n}.input_layernorm", "attn_norm"),
        *pair("gpt_neox.layers.{n}.attention.query_key_value", "attn.q", "attn.k", "attn.v", grouped=True),
        *pair("gpt_neox.layers.{n}.attention.dense", "attn.o"),
        *pair("gpt_neox.layers.{n}.post_attention_layernorm", "ff_norm"),
        *pair("gpt_neox.layers.{n}.mlp.dense_h_to_4h", "ff.up"),
        *pair("gpt_neox.layers.{n}.mlp.dense_4h_to_h", "ff.down"),
        *pair("gpt_neox.final_layer_norm", "norm"),
        Row("embed_out.weight", ("unembed.weight",)),
    ),
    rope=RopeKeys(theta="rotary_emb_base", fraction="rotary_pct", default_fraction=0.25),
    ignored=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"),
    prefixes=("gpt_neox.",),
)  # fmt: skip
