"""Small decoders in the shape of each family, for the doors to other ecosystems."""

from __future__ import annotations

from typing import Any

import torch

from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder

_LAYERNORM = {"norm": "layernorm", "norm_bias": True}
LLAMA: dict[str, Any] = {"n_kv_heads": 2, "tied": False}
# What llama.cpp has a graph for.
GGUF_SHAPES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama-tied": {"tied": True, "bias": True, "head_dim": 32, "rope_theta": 5e5},
    "llama-interleaved": {**LLAMA, "rope_interleaved": True},
    "llama-linear": {**LLAMA, "rope_scaling": "linear", "rope_factor": 4.0},
    "llama-ntk": {**LLAMA, "rope_scaling": "ntk", "rope_factor": 2.0},
    "qwen3": {**LLAMA, "qk_norm": True},
    "gpt2": {**_LAYERNORM, "positions": "learned", "activation": "gelu_tanh", "bias": True},
    "bloom": {**_LAYERNORM, "positions": "alibi", "embed_norm": True, "activation": "gelu_tanh", "bias": True},
    "mpt": {"positions": "alibi", "norm": "layernorm_low_precision", "activation": "gelu"},
    "storywriter": {
        "positions": "alibi", "norm": "layernorm_low_precision", "activation": "gelu", "alibi_max": 16, "clip_qkv": 2.5,
        "n_heads": 6, "d_model": 192,
    },
    "falcon-7b": {**_LAYERNORM, "n_kv_heads": 1, "block": "parallel_one_norm", "activation": "gelu"},
    "falcon-40b": {**_LAYERNORM, "n_kv_heads": 2, "block": "parallel_two_norms", "activation": "gelu"},
    "neox": {
        **_LAYERNORM, "rope_fraction": 0.25, "block": "parallel_two_norms", "activation": "gelu", "bias": True, "tied": False,
    },
    "neox-sequential": {**_LAYERNORM, "rope_fraction": 0.25, "activation": "gelu", "bias": True, "tied": False},
}  # fmt: skip
# What it has none for, and the field that is in the way.
NOT_GGUF: dict[str, tuple[dict[str, Any], str]] = {
    "opt": (
        {**_LAYERNORM, "positions": "learned", "position_offset": 2, "activation": "relu", "bias": True}, "activation relu"
    ),
    "gpt-j": (
        {**_LAYERNORM, "rope_interleaved": True, "rope_fraction": 0.5, "block": "parallel_one_norm", "bias": True,
         "attn_bias": False, "head_bias": True, "tied": False, "activation": "gelu_tanh"},
        "head_bias True",
    ),
    "mistral": ({**LLAMA, "window": 30}, "window 30"),
    "palm": ({"norm": "layernorm", "n_kv_heads": 1, "block": "parallel_one_norm"}, "block parallel_one_norm"),
    "falcon-rw": (
        {**_LAYERNORM, "positions": "alibi", "alibi_falcon": True, "activation": "gelu", "bias": True}, "alibi_falcon True"
    ),
}  # fmt: skip


def make_decoder(shape: dict[str, Any], *, seed: int = 0, **changes: Any) -> Decoder:
    """A decoder with every weight drawn, norms and biases too, because ones and zeros hide mistakes."""
    base = {"vocab_size": 160, "d_model": 128, "n_layers": 2, "n_heads": 4, "context": 64}
    model = Decoder(ModelConfig.model_validate({**base, **shape, **changes}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            weight.normal_(mean, 0.08, generator=generator)
    return model.eval()


def ids(*shape: int, vocabulary: int = 160, seed: int = 0) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))
