"""Falcon: 7B (one key head, parallel behind one norm), 40B and 180B (key groups, two norms), RW (ALiBi, sequential, biases).

The first releases had their own code, with the model types `RefinedWebModel` (7B, RW) and `RefinedWeb` (40B); their configs
are read too. Sources: arXiv:2311.16867, arXiv:2306.01116; `FalconForCausalLM` of transformers 4.57 and 5.23.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from herdbook.errors import UserError
from herdbook.interop.families.base import ACTIVATIONS, Family, RopeKeys, Row, Settings, pair, shown, whole_number
from herdbook.model.config import ModelConfig


def _architecture(settings: Settings, where: Path) -> dict[str, Any]:
    """Key heads and block from three flags that overrule each other, in the order their class asks them."""
    heads, norms = whole_number(settings, "num_attention_heads", where), settings["num_ln_in_parallel_attn"]
    found: dict[str, Any] = {"alibi_falcon": True} if settings["alibi"] else {}
    if settings["new_decoder_architecture"]:
        if norms not in (None, 1, 2):
            raise UserError(f"num_ln_in_parallel_attn is {shown(norms)}, and only 1 and 2 are supported", where=where)
        kv = heads if settings["num_kv_heads"] is None else whole_number(settings, "num_kv_heads", where)
        return {**found, "n_kv_heads": kv, "block": "parallel_one_norm" if norms == 1 else "parallel_two_norms"}
    if norms == 2:
        raise UserError("num_ln_in_parallel_attn is 2, which needs new_decoder_architecture", where=where)
    if not settings["multi_query"] and settings["num_kv_heads"] not in (None, heads):
        what = (
            f"num_kv_heads is {shown(settings['num_kv_heads'])}, and without new_decoder_architecture only {heads} is supported"
        )
        raise UserError(what, where=where)
    block = "parallel_one_norm" if settings["parallel_attn"] else "sequential"
    return {**found, "n_kv_heads": 1 if settings["multi_query"] else heads, "block": block}


def _flags(cfg: ModelConfig) -> dict[str, Any]:
    grouped = cfg.kv_heads not in (1, cfg.n_heads)
    new = cfg.block == "parallel_two_norms" or (cfg.block == "parallel_one_norm" and grouped)
    return {
        "new_decoder_architecture": new,
        "multi_query": cfg.kv_heads == 1 and cfg.n_heads > 1,
        "parallel_attn": cfg.block != "sequential",
        "num_kv_heads": cfg.kv_heads,
        "num_ln_in_parallel_attn": (2 if cfg.block == "parallel_two_norms" else 1) if new else None,
    }


_ONE, _TWO = ("parallel_one_norm",), ("parallel_two_norms",)

FALCON = Family(
    model_type="falcon",
    architecture="FalconForCausalLM",
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "ffn_hidden_size": "d_ff",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "max_position_embeddings": "context",
        "alibi": "positions",
        "activation": "activation",
        "bias": ("attn_bias", "ff_bias"),
        "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tied",
        "initializer_range": "init_std",
        "hidden_dropout": "dropout",
        "attention_dropout": "dropout",
    },
    defaults={
        "vocab_size": 65024, "hidden_size": 4544, "ffn_hidden_size": None, "num_hidden_layers": 32,
        "num_attention_heads": 71, "max_position_embeddings": 2048, "alibi": False, "activation": "gelu", "bias": False,
        "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "initializer_range": 0.02, "hidden_dropout": 0.0,
        "attention_dropout": 0.0, "new_decoder_architecture": False, "multi_query": True, "parallel_attn": True,
        "num_kv_heads": None, "num_ln_in_parallel_attn": None,
    },
    fixed={
        "norm": ("layernorm",), "norm_bias": (True,),  # norms have biases even where the matrices have none
        "alibi_falcon": lambda cfg: cfg.alibi_falcon == (cfg.positions == "alibi"),
        "n_kv_heads": lambda cfg: cfg.block != "sequential" or cfg.kv_heads in (1, cfg.n_heads),
    },
    values={"alibi": {False: "rope", True: "alibi"}, "activation": ACTIVATIONS},
    neutral={"apply_residual_connection_post_layernorm": (False,)},
    aliases={
        "n_embed": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
        "n_head_kv": "num_kv_heads",
    },
    legacy={
        "RefinedWebModel": {"multi_query": False, "parallel_attn": False},
        "RefinedWeb": {"new_decoder_architecture": True},
    },
    rope=RopeKeys(),
    read=_architecture,
    write=_flags,
    derived=("n_kv_heads", "block", "alibi_falcon"),
    rows=(
        Row("transformer.word_embeddings.weight", ("embed.weight",)),
        *pair("transformer.h.{n}.input_layernorm", "attn_norm", blocks=("sequential", *_ONE)),
        *pair("transformer.h.{n}.ln_attn", "attn_norm", blocks=_TWO),
        *pair("transformer.h.{n}.self_attention.query_key_value", "attn.q", "attn.k", "attn.v", grouped=True),
        *pair("transformer.h.{n}.self_attention.dense", "attn.o"),
        *pair("transformer.h.{n}.post_attention_layernorm", "ff_norm", blocks=("sequential",)),
        *pair("transformer.h.{n}.ln_mlp", "ff_norm", blocks=_TWO),
        *pair("transformer.h.{n}.mlp.dense_h_to_4h", "ff.up"),
        *pair("transformer.h.{n}.mlp.dense_4h_to_h", "ff.down"),
        *pair("transformer.ln_f", "norm"),
        Row("lm_head.weight", ("unembed.weight",)),
    ),
    ignored=(".inv_freq",),
    prefixes=("transformer.",),
    caveats=(
        (
            lambda cfg: cfg.positions == "alibi",
            "the eager attention of transformers adds Falcon's ALiBi bias twice: open the folder with "
            'attn_implementation="sdpa", its default, which is right',
        ),
    ),
)  # fmt: skip
