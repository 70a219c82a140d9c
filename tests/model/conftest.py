"""Small decoders of every kind that the config can express."""

from __future__ import annotations

from typing import Any

import torch

from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder

KINDS: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa": {"n_kv_heads": 2},
    "mqa": {"n_kv_heads": 1, "tied": False},
    "biases": {"bias": True, "head_dim": 10, "activation": "gelu"},
    "learned": {"positions": "learned", "norm": "layernorm", "activation": "gelu_tanh", "bias": True},
    "offset": {"positions": "learned", "position_offset": 2, "norm": "layernorm", "activation": "relu", "n_kv_heads": 2},
    # the families' own combinations; fields are orthogonal, so these stand for the rest
    "opt-350m": {
        "positions": "learned", "position_offset": 2, "norm": "layernorm", "norm_place": "post", "activation": "relu",
        "bias": True, "embed_dim": 20,
    },
    "bloom": {"positions": "alibi", "norm": "layernorm", "embed_norm": True, "activation": "gelu_tanh", "bias": True},
    "storywriter": {
        "positions": "alibi", "alibi_max": 16, "norm": "layernorm_low_precision", "clip_qkv": 1.5, "activation": "gelu",
        "n_heads": 6,
    },
    "falcon-7b": {
        "n_kv_heads": 1, "norm": "layernorm", "norm_bias": True, "block": "parallel_one_norm", "activation": "gelu",
    },
    "falcon-40b": {
        "n_kv_heads": 2, "norm": "layernorm", "norm_bias": True, "block": "parallel_two_norms", "activation": "gelu",
    },
    "falcon-rw": {"positions": "alibi", "alibi_falcon": True, "norm": "layernorm", "activation": "gelu", "bias": True},
    "neox": {
        "rope_fraction": 0.34, "norm": "layernorm", "block": "parallel_two_norms", "activation": "gelu", "bias": True,
        "tied": False,
    },
    "gpt-j": {
        "rope_fraction": 0.5, "rope_interleaved": True, "norm": "layernorm", "block": "parallel_one_norm", "bias": True,
        "activation": "gelu_tanh", "attn_bias": False, "head_bias": True, "tied": False,
    },
    "palm": {"n_kv_heads": 1, "norm": "layernorm", "block": "parallel_one_norm", "d_ff": 192},
    "alibi-gqa": {"positions": "alibi", "n_kv_heads": 2, "n_heads": 6},
    "alibi-mqa": {"positions": "alibi", "n_kv_heads": 1, "alibi_falcon": True},
    "qk-norm": {"qk_norm": True, "n_kv_heads": 2},
    "linear": {"rope_scaling": "linear", "rope_factor": 4.0},
    "ntk": {"rope_scaling": "ntk", "rope_factor": 4.0},
    "window-5": {"window": 5, "n_kv_heads": 2},
    "window-20": {"window": 20, "tied": False},
    "alibi-window": {"positions": "alibi", "window": 17, "n_kv_heads": 2},
    "alibi-falcon-window": {"positions": "alibi", "alibi_falcon": True, "window": 6},
}  # fmt: skip
VOCABULARY, CONTEXT = 96, 48


def make_decoder(kind: str, *, seed: int = 0, **changes: Any) -> Decoder:
    """A decoder of a kind, with weights large enough that its logits differ clearly."""
    shape = {"vocab_size": VOCABULARY, "d_model": 48, "n_layers": 2, "n_heads": 4, "context": CONTEXT, "init_std": 0.2}
    model = Decoder(ModelConfig.model_validate({**shape, **KINDS[kind], **changes}))
    model.init_weights(torch.Generator().manual_seed(seed))
    return model.eval()
