"""MPT, with StoryWriter's wider bias and clipping.

Sources: mosaicml/llm-foundry; `MptForCausalLM` of transformers 4.57 and 5.23, which hard-codes four times the width for the
feed-forward part, no biases and one key head a query head, and whatever the config says, ALiBi slopes that end at 2^-8.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from herdbook.errors import UserError
from herdbook.interop.families.base import Family, Row, Settings, pair, shown, whole_number
from herdbook.model.config import ModelConfig


def _attention(settings: Settings, where: Path) -> dict[str, Any]:
    """Clipping and the scale of the scores; the scale may be spelled out, but it must be the usual one."""
    scale, clip = settings.get("attn_config.softmax_scale"), settings.get("attn_config.clip_qkv")
    width = whole_number(settings, "d_model", where) / whole_number(settings, "n_heads", where)
    if scale is not None and not (isinstance(scale, int | float) and math.isclose(scale, 1 / math.sqrt(width), rel_tol=1e-6)):
        what = f"attn_config.softmax_scale is {shown(scale)}, and only null, for 1/sqrt(head width), is supported"
        raise UserError(what, where=where)
    return {"clip_qkv": clip or None}  # the authors' code reads 0 as no clipping too


def _attention_keys(cfg: ModelConfig) -> dict[str, Any]:
    """transformers 5 wants a floating-point number here and a whole one there."""
    return {
        "attn_config.clip_qkv": cfg.clip_qkv,
        "attn_config.alibi_bias_max": int(cfg.alibi_max),
        "attn_config.softmax_scale": None,
        "learned_pos_emb": False,  # either value is read: ALiBi turns it off
    }


MPT = Family(
    model_type="mpt",
    architecture="MptForCausalLM",
    fields={
        "vocab_size": "vocab_size",
        "d_model": "d_model",
        "n_layers": "n_layers",
        "n_heads": "n_heads",
        "max_seq_len": "context",
        "attn_config.alibi_bias_max": "alibi_max",
        "norm_type": "norm",
        "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tied",
        "initializer_range": "init_std",
        "resid_pdrop": "dropout",
        "emb_pdrop": "dropout",
    },
    defaults={
        "vocab_size": 50368, "d_model": 2048, "n_layers": 24, "n_heads": 16, "max_seq_len": 2048,
        "attn_config.alibi_bias_max": 8, "norm_type": "low_precision_layernorm", "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True, "initializer_range": 0.02, "resid_pdrop": 0.0, "emb_pdrop": 0.0,
    },
    fixed={
        "positions": ("alibi",), "alibi_max": lambda cfg: cfg.alibi_max == int(cfg.alibi_max), "activation": ("gelu",),
        "attn_bias": (False,), "ff_bias": (False,), "norm_bias": (False,),
    },
    values={"norm_type": {"low_precision_layernorm": "layernorm_low_precision", "layernorm": "layernorm"}},
    constants={
        "expansion_ratio": 4, "no_bias": True, "logit_scale": None, "attn_config.attn_type": "multihead_attention",
        "attn_config.alibi": True, "attn_config.qk_ln": False, "attn_config.prefix_lm": False,
    },
    neutral={
        "attn_config.rope": (False,), "attn_config.qk_gn": (False,), "attn_config.sliding_window_size": (-1,),
        "attn_config.attn_logit_softcapping": (None,), "block_overrides": (None,),
    },
    aliases={"num_attention_heads": "n_heads", "hidden_size": "d_model", "num_hidden_layers": "n_layers"},
    read=_attention,
    write=_attention_keys,
    derived=("clip_qkv",),
    rows=(
        Row("transformer.wte.weight", ("embed.weight",)),
        *pair("transformer.blocks.{n}.norm_1", "attn_norm"),
        *pair("transformer.blocks.{n}.attn.Wqkv", "attn.q", "attn.k", "attn.v"),
        *pair("transformer.blocks.{n}.attn.out_proj", "attn.o"),
        *pair("transformer.blocks.{n}.norm_2", "ff_norm"),
        *pair("transformer.blocks.{n}.ffn.up_proj", "ff.up"),
        *pair("transformer.blocks.{n}.ffn.down_proj", "ff.down"),
        *pair("transformer.norm_f", "norm"),
        Row("lm_head.weight", ("unembed.weight",)),
    ),
    prefixes=("transformer.",),
    caveats=(
        (
            lambda cfg: cfg.alibi_max != 8,
            "MptForCausalLM of transformers ignores alibi_bias_max and takes 8, so its logits will be wrong for this model: "
            "open the folder with herdbook, or with the code of its authors (llm-foundry)",
        ),
    ),
)  # fmt: skip
