"""What llama.cpp's model code computes and how its files name it, as data.

An architecture fits a decoder when each of `fixed` holds; then `keys` say which of its numbers go under which name and
`names` where the tensors go. Where llama.cpp's graph needs a family that it has no code for (OPT, GPT-J, PaLM, Falcon-RW),
nothing fits, and `why_not` names what is in the way.

Source: the model graphs and loaders of llama.cpp (ggml 0.25.3), read and checked by loading what we write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from herdbook.model.config import ModelConfig

# What none of its graphs has, unless an architecture says otherwise. LayerNorm is computed in float32 in all of them.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "position_offset": (0,), "alibi_falcon": (False,), "rope_interleaved": (False,), "rope_fraction": (1.0,),
    "norm_place": ("pre",), "block": ("sequential",), "embed_norm": (False,), "qk_norm": (False,), "clip_qkv": (None,),
    "window": (None,),
    "head_bias": (False,), "norm": ("layernorm", "layernorm_low_precision"),
}  # fmt: skip
_COMMON = {
    "context_length": "context", "embedding_length": "d_model", "block_count": "n_layers", "feed_forward_length": "d_ff",
    "attention.head_count": "n_heads", "attention.head_count_kv": "n_kv_heads", "vocab_size": "vocab_size",
}  # fmt: skip
_LAYERNORM = {**_COMMON, "attention.layer_norm_epsilon": "norm_eps"}
_ROPE = {"rope.freq_base": "rotary_theta", "rope.dimension_count": "rotary_width"}
_TABLES = {"token_embd": ("embed",), "output_norm": ("norm",), "output": ("unembed",)}
_FUSED = {
    "blk.{n}.attn_qkv": ("attn.q", "attn.k", "attn.v"), "blk.{n}.attn_output": ("attn.o",),
    "blk.{n}.ffn_up": ("ff.up",), "blk.{n}.ffn_down": ("ff.down",),
}  # fmt: skip
_APART = {
    "blk.{n}.attn_q": ("attn.q",), "blk.{n}.attn_k": ("attn.k",), "blk.{n}.attn_v": ("attn.v",),
    "blk.{n}.attn_output": ("attn.o",), "blk.{n}.ffn_gate": ("ff.gate",), "blk.{n}.ffn_up": ("ff.up",),
    "blk.{n}.ffn_down": ("ff.down",),
}  # fmt: skip
_NORMS = {"blk.{n}.attn_norm": ("attn_norm",), "blk.{n}.ffn_norm": ("ff_norm",)}
_LLAMA_FIXED = {**_PLAIN, "positions": ("rope",), "norm": ("rmsnorm",), "activation": ("swiglu",)}


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's model graphs.

    Attributes:
        name: as in `general.architecture`.
        fixed: our field → the values its graph computes; the first is what a file of it is read as.
        keys: its key, without the architecture in front → our field or property.
        names: its tensor, without `.weight` or `.bias` → what of ours it holds, stacked in this order; `{n}` is the layer.
        interleaved: its RoPE turns neighbours, so the rows of query and key are stored in that order.
        own_width: it can be told a head width other than d_model / n_heads.
        flags: further keys of its own.
    """

    name: str
    fixed: Mapping[str, tuple[Any, ...]]
    keys: Mapping[str, str]
    names: Mapping[str, tuple[str, ...]]
    interleaved: bool = False
    own_width: bool = False
    flags: tuple[str, ...] = ()

    def why_not(self, cfg: ModelConfig) -> list[str]:
        """What of this config its graph does not compute, as `field value`; empty when it fits."""
        wrong = [f"{name} {getattr(cfg, name)}" for name, values in self.fixed.items() if getattr(cfg, name) not in values]
        if cfg.embed_width != cfg.d_model:
            wrong.append(f"embed_dim {cfg.embed_width}")
        if not self.own_width and cfg.head_width * cfg.n_heads != cfg.d_model:
            wrong.append(f"head_dim {cfg.head_width}")
        return wrong


def _without(name: str) -> dict[str, tuple[Any, ...]]:
    """The plain graph, but for a field that may be anything."""
    return {other: values for other, values in _PLAIN.items() if other != name}


_BIASED = {"attn_bias": (True,), "ff_bias": (True,), "norm_bias": (True,)}

ARCHITECTURES = (
    Architecture(
        "llama", {**_LLAMA_FIXED, "rope_interleaved": (False, True)},
        {**_COMMON, **_ROPE, "attention.layer_norm_rms_epsilon": "norm_eps",
         "attention.key_length": "head_dim", "attention.value_length": "head_dim"},
        {**_TABLES, **_NORMS, **_APART}, interleaved=True, own_width=True,
    ),
    Architecture(
        "qwen3", {**_LLAMA_FIXED, "qk_norm": (True,), "attn_bias": (False,), "ff_bias": (False,)},
        {**_COMMON, **_ROPE, "attention.layer_norm_rms_epsilon": "norm_eps",
         "attention.key_length": "head_dim", "attention.value_length": "head_dim"},
        {**_TABLES, **_NORMS, **_APART, "blk.{n}.attn_q_norm": ("attn.q_norm",), "blk.{n}.attn_k_norm": ("attn.k_norm",)},
        own_width=True,
    ),
    Architecture(
        "gpt2", {**_PLAIN, **_BIASED, "positions": ("learned",), "activation": ("gelu_tanh",)}, _LAYERNORM,
        {**_TABLES, **_NORMS, **_FUSED, "position_embd": ("position_embed",)},
    ),
    Architecture(
        "bloom", {**_PLAIN, **_BIASED, "positions": ("alibi",), "alibi_max": (8.0,), "embed_norm": (True,),
                  "activation": ("gelu_tanh",)}, _LAYERNORM,
        {**_TABLES, **_NORMS, **_FUSED, "token_embd_norm": ("embed_norm",)},
    ),
    Architecture(
        "mpt", {**_without("clip_qkv"), "positions": ("alibi",), "activation": ("gelu",),
                "norm": ("layernorm_low_precision", "layernorm")},
        {**_LAYERNORM, "attention.max_alibi_bias": "alibi_max", "attention.clamp_kqv": "clip_qkv"},
        {**_TABLES, **_NORMS, **_FUSED},
    ),
    Architecture(
        "falcon", {**_PLAIN, "positions": ("rope",), "activation": ("gelu",), "block": ("parallel_one_norm",),
                   "attn_bias": (False,), "ff_bias": (False,), "norm_bias": (True,)}, {**_LAYERNORM, **_ROPE},
        {**_TABLES, **_FUSED, "blk.{n}.attn_norm": ("attn_norm",)},
    ),
    Architecture(  # the 40B's graph: its `attn_norm` stands before the feed-forward part, `attn_norm_2` before attention
        "falcon", {**_PLAIN, "positions": ("rope",), "activation": ("gelu",), "block": ("parallel_two_norms",),
                   "attn_bias": (False,), "ff_bias": (False,), "norm_bias": (True,)}, {**_LAYERNORM, **_ROPE},
        {**_TABLES, **_FUSED, "blk.{n}.attn_norm": ("ff_norm",), "blk.{n}.attn_norm_2": ("attn_norm",)},
    ),
    Architecture(
        "gptneox", {**_without("rope_fraction"), **_BIASED, "positions": ("rope",), "activation": ("gelu",), "tied": (False,),
                    "block": ("parallel_two_norms", "sequential")}, {**_LAYERNORM, **_ROPE},
        {**_TABLES, **_NORMS, **_FUSED}, flags=("use_parallel_residual",),
    ),
)  # fmt: skip


def architecture_of(cfg: ModelConfig) -> Architecture | None:
    """The first graph of llama.cpp that computes a decoder of this config, or None."""
    return next((row for row in ARCHITECTURES if not row.why_not(cfg)), None)
