"""Small decoders and a byte-level tokenizer, so that any bytes a random model writes are text."""

from __future__ import annotations

import json
from typing import Any

import torch
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Trained

from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.tokenizer import Tokenizer

SPECIALS = ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KINDS: dict[str, dict[str, Any]] = {
    "mha": {},
    "gqa": {"n_kv_heads": 2},
    "mqa": {"n_kv_heads": 1, "tied": False},
    "learned": {"positions": "learned", "norm": "layernorm", "activation": "gelu_tanh", "bias": True},
    "post": {"positions": "learned", "norm": "layernorm", "norm_place": "post", "activation": "relu", "embed_dim": 20},
    "alibi": {"positions": "alibi", "norm": "layernorm", "embed_norm": True, "n_kv_heads": 2},
    "alibi-falcon": {"positions": "alibi", "alibi_falcon": True, "norm": "layernorm", "bias": True},
    "parallel": {"block": "parallel_two_norms", "norm": "layernorm", "rope_fraction": 0.5, "n_kv_heads": 1},
    "interleaved": {"block": "parallel_one_norm", "rope_interleaved": True, "rope_scaling": "linear", "rope_factor": 2.0},
    "window-5": {"window": 5, "n_kv_heads": 2},
    "window-20": {"window": 20, "rope_scaling": "linear", "rope_factor": 2.0},
    "alibi-window": {"positions": "alibi", "window": 18, "norm": "layernorm", "n_kv_heads": 2},
}
CONTEXT = 40


def byte_tokenizer(**config: Any) -> Tokenizer:
    """One token a byte, ids 4…259, after the four special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained = Trained(models.BPE(vocab={letter: 4 + i for i, letter in enumerate(alphabet)}, merges=[]))
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\s+|\S+"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trained.decoder = decoders.ByteLevel()
    definition = json.loads(trained.to_str())
    definition["added_tokens"] = [
        {
            "id": i,
            "content": token,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for i, token in enumerate(SPECIALS)
    ]
    definition["model"]["vocab"].update({token: i for i, token in enumerate(SPECIALS)})
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    return Tokenizer(json.dumps(definition), {**names, **config})


def make_decoder(kind: str, *, seed: int = 0, **changes: Any) -> Decoder:
    """A decoder of a kind, with weights large enough that its choices differ clearly."""
    shape = {"vocab_size": 320, "d_model": 32, "n_layers": 2, "n_heads": 4, "context": CONTEXT, "init_std": 0.3}
    model = Decoder(ModelConfig.model_validate({**shape, **KINDS[kind], **changes}))
    model.init_weights(torch.Generator().manual_seed(seed))
    return model.eval()
