"""Every family as herdbook and as transformers spells it, and helpers to compare the two."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from herdbook.interop.hf import save_folder
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder

BOUND = 1e-5
VOCABULARY, CONTEXT = 130, 40

LEARNED = {"positions": "learned", "norm": "layernorm", "bias": True}
FALCON = {"norm": "layernorm", "norm_bias": True, "activation": "gelu"}
NEOX = {**FALCON, "bias": True, "tied": False, "rope_fraction": 0.25}
GPTJ = {
    "norm": "layernorm", "bias": True, "attn_bias": False, "head_bias": True, "tied": False, "rope_interleaved": True,
    "rope_fraction": 0.5, "block": "parallel_one_norm", "activation": "gelu_tanh",
}  # fmt: skip
MPT = {"positions": "alibi", "norm": "layernorm_low_precision", "activation": "gelu"}
OPT = {**LEARNED, "position_offset": 2, "activation": "relu"}
RW = {**FALCON, "positions": "alibi", "alibi_falcon": True, "bias": True}
QWEN3 = {"qk_norm": True, "n_kv_heads": 2, "tied": False, "norm_eps": 1e-6}

# Ours: the class that must be chosen, and the shape. Six heads of eight where nothing else is said: no power of two.
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"tied": False, "norm_eps": 1e-6}),
    "llama-tied": ("LlamaForCausalLM", {}),
    "llama2-gqa": ("LlamaForCausalLM", {"tied": False, "n_kv_heads": 2, "rope_theta": 50_000.0}),
    "llama-mqa-biases": ("LlamaForCausalLM", {"bias": True, "head_dim": 16, "n_kv_heads": 1}),
    "llama-attention-biases": ("LlamaForCausalLM", {"attn_bias": True, "tied": False}),
    "llama-linear": ("LlamaForCausalLM", {"rope_scaling": "linear", "rope_factor": 4.0}),
    "llama-ntk": ("LlamaForCausalLM", {"rope_scaling": "ntk", "rope_factor": 4.0}),
    "mistral": ("MistralForCausalLM", {"n_heads": 5, "head_dim": 8, "tied": False}),
    "mistral-window": ("MistralForCausalLM", {"n_kv_heads": 2, "window": 9}),
    "qwen3": ("Qwen3ForCausalLM", QWEN3),
    "gpt2": ("GPT2LMHeadModel", {**LEARNED, "activation": "gelu_tanh"}),
    "gpt2-untied": ("GPT2LMHeadModel", {**LEARNED, "activation": "relu", "tied": False, "d_ff": 40}),
    "opt": ("OPTForCausalLM", OPT),
    "opt-350m": ("OPTForCausalLM", {**OPT, "norm_place": "post", "embed_dim": 20}),
    "opt-pre-projected-untied": ("OPTForCausalLM", {**OPT, "embed_dim": 20, "tied": False, "activation": "gelu"}),
    "opt-no-bias": ("OPTForCausalLM", {**OPT, "bias": False, "norm_bias": True}),
    "bloom": ("BloomForCausalLM", {**LEARNED, "positions": "alibi", "embed_norm": True, "activation": "gelu_tanh"}),
    "mpt": ("MptForCausalLM", MPT),
    "mpt-clipped-untied": ("MptForCausalLM", {**MPT, "norm": "layernorm", "clip_qkv": 0.25, "tied": False}),
    "falcon-7b": ("FalconForCausalLM", {**FALCON, "n_kv_heads": 1, "block": "parallel_one_norm"}),
    "falcon-40b": ("FalconForCausalLM", {**FALCON, "n_kv_heads": 2, "block": "parallel_two_norms"}),
    "falcon-40b-mha": ("FalconForCausalLM", {**FALCON, "block": "parallel_two_norms", "rope_theta": 5e5, "d_ff": 100}),
    "falcon-11b": ("FalconForCausalLM", {**FALCON, "n_kv_heads": 2, "block": "parallel_one_norm", "tied": False}),
    "falcon-mha-one-norm": ("FalconForCausalLM", {**FALCON, "block": "parallel_one_norm", "bias": True}),
    "falcon-rw": ("FalconForCausalLM", RW),
    "falcon-rw-mqa": ("FalconForCausalLM", {**RW, "n_kv_heads": 1}),
    "falcon-alibi-groups": ("FalconForCausalLM", {**RW, "n_kv_heads": 2, "block": "parallel_two_norms", "bias": False}),
    "falcon-sequential-rope": ("FalconForCausalLM", {**FALCON, "rope_scaling": "linear", "rope_factor": 2.0}),
    "neox": ("GPTNeoXForCausalLM", {**NEOX, "block": "parallel_two_norms"}),
    "neox-sequential": ("GPTNeoXForCausalLM", {**NEOX, "rope_fraction": 0.5, "tied": True}),
    "neox-no-attention-biases": ("GPTNeoXForCausalLM", {**NEOX, "block": "parallel_two_norms", "attn_bias": False}),
    "neox-linear": (
        "GPTNeoXForCausalLM", {**NEOX, "block": "parallel_two_norms", "rope_scaling": "linear", "rope_factor": 4.0},
    ),
    "gpt-j": ("GPTJForCausalLM", GPTJ),
    "gpt-j-whole-head": ("GPTJForCausalLM", {**GPTJ, "rope_fraction": 1.0, "d_ff": 70, "activation": "gelu"}),
}  # fmt: skip

LLAMA_KEYS = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 6,
    "max_position_embeddings": CONTEXT,
}  # fmt: skip
GPT_KEYS = {"vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": CONTEXT}
OPT_KEYS = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "ffn_dim": 100, "num_hidden_layers": 2, "num_attention_heads": 6,
    "max_position_embeddings": CONTEXT,
}  # fmt: skip
MPT_KEYS = {"vocab_size": VOCABULARY, "d_model": 48, "n_layers": 2, "n_heads": 6, "max_seq_len": CONTEXT}
FALCON_KEYS = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6,
    "max_position_embeddings": CONTEXT,
}  # fmt: skip
# Theirs: written by hand in the words of the models' own config files.
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", LLAMA_KEYS),
    "llama2-gqa": ("Llama", {**LLAMA_KEYS, "num_key_value_heads": 2, "rope_theta": 5e5, "tie_word_embeddings": True}),
    "llama-biases": ("Llama", {**LLAMA_KEYS, "attention_bias": True, "mlp_bias": True, "head_dim": 10}),
    "llama-linear": ("Llama", {**LLAMA_KEYS, "rope_scaling": {"type": "linear", "factor": 4.0}}),
    "mistral": ("Mistral", {**LLAMA_KEYS, "num_key_value_heads": 3, "sliding_window": None}),
    "mistral-window": ("Mistral", {**LLAMA_KEYS, "num_key_value_heads": 3, "sliding_window": 9}),
    "mistral-window-of-itself": ("Mistral", {**LLAMA_KEYS, "num_key_value_heads": 6, "head_dim": 10, "sliding_window": 1}),
    "mistral-wide-window": ("Mistral", {**LLAMA_KEYS, "num_key_value_heads": 3}),
    "qwen3": ("Qwen3", {**LLAMA_KEYS, "num_key_value_heads": 2, "head_dim": 12, "attention_bias": True}),
    "gpt2": ("GPT2LMHeadModel", GPT_KEYS),
    "opt": ("OPT", OPT_KEYS),
    "opt-350m": ("OPT", {**OPT_KEYS, "do_layer_norm_before": False, "word_embed_proj_dim": 20}),
    "opt-no-bias": ("OPT", {**OPT_KEYS, "enable_bias": False, "activation_function": "gelu"}),
    "bloom": ("Bloom", {"vocab_size": VOCABULARY, "n_embed": 48, "n_layer": 2, "num_attention_heads": 6, "seq_length": 40}),
    "mpt": ("Mpt", {**MPT_KEYS, "no_bias": True, "attn_config": {"alibi": True, "attn_impl": "torch"}}),
    "mpt-clipped": ("Mpt", {**MPT_KEYS, "attn_config": {"clip_qkv": 0.25}, "norm_type": "layernorm"}),
    "falcon-7b": ("Falcon", {**FALCON_KEYS, "multi_query": True, "parallel_attn": True, "num_kv_heads": 6}),
    "falcon-40b": ("Falcon", {**FALCON_KEYS, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-11b": (
        "Falcon", {**FALCON_KEYS, "new_decoder_architecture": True, "num_kv_heads": 3, "num_ln_in_parallel_attn": 1},
    ),
    "falcon-rw": ("Falcon", {**FALCON_KEYS, "alibi": True, "bias": True, "multi_query": False, "parallel_attn": False}),
    "falcon-mha-one-norm": ("Falcon", {**FALCON_KEYS, "multi_query": False, "rope_theta": 500.0, "ffn_hidden_size": 70}),
    "neox": ("GPTNeoX", {**LLAMA_KEYS, "rotary_pct": 0.25, "rotary_emb_base": 10000, "hidden_act": "gelu_fast"}),
    "neox-sequential": (
        "GPTNeoX", {**LLAMA_KEYS, "rotary_pct": 1.0, "use_parallel_residual": False, "tie_word_embeddings": True},
    ),
    "neox-v5": (
        "GPTNeoX",
        {**LLAMA_KEYS, "attention_bias": False,
         "rope_parameters": {"rope_theta": 900.0, "partial_rotary_factor": 0.5, "rope_type": "linear", "factor": 2.0}},
    ),
    "gpt-j": ("GPTJ", {**GPT_KEYS, "rotary_dim": 4}),
    "gpt-j-own-width": ("GPTJ", {**GPT_KEYS, "rotary_dim": 8, "n_inner": 70, "activation_function": "relu"}),
}  # fmt: skip


def our_config(**shape: Any) -> ModelConfig:
    base = {"vocab_size": VOCABULARY, "d_model": 48, "n_layers": 2, "n_heads": 6, "context": CONTEXT}
    return ModelConfig.model_validate({**base, **shape})


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Every weight drawn, biases and norms too: zeros and ones would hide a swapped pair."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            mean = 1.0 if weight.dim() == 1 and float(weight.mean()) == 1.0 else 0.0
            weight.copy_(torch.empty(weight.shape).normal_(mean, 0.15, generator=generator))


def make_ours(**shape: Any) -> Decoder:
    model = Decoder(our_config(**shape)).eval()
    randomise(model)
    return model


def tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (2, CONTEXT), generator=torch.Generator().manual_seed(1))


def save_quietly(model: Decoder, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        save_folder(model, folder, tokenizer=None)


def open_theirs(folder: Path, **more: Any) -> Any:
    """The model as transformers opens it; nothing may be missing or left over."""
    transformers = pytest.importorskip("transformers")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **more
    )
    assert not any(info.values()), info
    return model.eval()


def difference(ours: Decoder, theirs: Any) -> float:
    with torch.inference_mode():
        one, other = ours(tokens()), theirs(tokens()).logits
    assert one.std() > 0.05
    return float((one - other).abs().max())


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write_config(folder: Path, written: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(written))
    return folder
