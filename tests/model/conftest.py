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
}
VOCABULARY, CONTEXT = 96, 48


def make_decoder(kind: str, *, seed: int = 0, **changes: Any) -> Decoder:
    """A decoder of a kind, with weights large enough that its logits differ clearly."""
    shape = {"vocab_size": VOCABULARY, "d_model": 48, "n_layers": 2, "n_heads": 4, "context": CONTEXT, "init_std": 0.2}
    model = Decoder(ModelConfig.model_validate({**shape, **KINDS[kind], **changes}))
    model.init_weights(torch.Generator().manual_seed(seed))
    return model.eval()
