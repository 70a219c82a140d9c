"""OPT, with the 350M's norms after the parts and its narrower embedding, and BLOOM.

Sources: arXiv:2205.01068, arXiv:2211.05100; `OPTForCausalLM` and `BloomForCausalLM` of transformers 4.57 and 5.23.
"""

from __future__ import annotations

from herdbook.interop.families.base import ACTIVATIONS, Family, Row, pair

OPT = Family(
    model_type="opt",
    architecture="OPTForCausalLM",
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "word_embed_proj_dim": "embed_dim",
        "ffn_dim": "d_ff",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "max_position_embeddings": "context",
        "activation_function": "activation",
        "do_layer_norm_before": "norm_place",
        "enable_bias": ("attn_bias", "ff_bias"),
        "tie_word_embeddings": "tied",
        "init_std": "init_std",
        "dropout": "dropout",
        "attention_dropout": "dropout",
    },
    defaults={
        "vocab_size": 50272, "hidden_size": 768, "word_embed_proj_dim": None, "ffn_dim": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "max_position_embeddings": 2048, "activation_function": "relu",
        "do_layer_norm_before": True, "enable_bias": True, "tie_word_embeddings": True, "init_std": 0.02, "dropout": 0.1,
        "attention_dropout": 0.0,
    },
    # two rows of the position table stand before position 0; the class has no key for the epsilon
    fixed={
        "positions": ("learned",), "position_offset": (2,), "norm": ("layernorm",), "norm_eps": (1e-5,), "norm_bias": (True,),
    },
    values={"activation_function": ACTIVATIONS, "do_layer_norm_before": {True: "pre", False: "post"}},
    constants={"layer_norm_elementwise_affine": True, "_remove_final_layer_norm": False},
    rows=(
        Row("model.decoder.embed_tokens.weight", ("embed.weight",)),
        Row("model.decoder.embed_positions.weight", ("position_embed.weight",)),
        Row("model.decoder.project_in.weight", ("project_in.weight",)),
        *pair("model.decoder.layers.{n}.self_attn_layer_norm", "attn_norm"),
        *pair("model.decoder.layers.{n}.self_attn.q_proj", "attn.q"),
        *pair("model.decoder.layers.{n}.self_attn.k_proj", "attn.k"),
        *pair("model.decoder.layers.{n}.self_attn.v_proj", "attn.v"),
        *pair("model.decoder.layers.{n}.self_attn.out_proj", "attn.o"),
        *pair("model.decoder.layers.{n}.final_layer_norm", "ff_norm"),  # so named, and in every layer
        *pair("model.decoder.layers.{n}.fc1", "ff.up"),
        *pair("model.decoder.layers.{n}.fc2", "ff.down"),
        *pair("model.decoder.final_layer_norm", "norm"),
        Row("model.decoder.project_out.weight", ("project_out.weight",)),
        Row("lm_head.weight", ("unembed.weight",)),
    ),
    prefixes=("model.", "model.decoder."),
)  # fmt: skip

BLOOM = Family(
    model_type="bloom",
    architecture="BloomForCausalLM",
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "d_model",
        "n_layer": "n_layers",
        "n_head": "n_heads",
        "seq_length": "context",
        "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tied",
        "initializer_range": "init_std",
        "hidden_dropout": "dropout",
        "attention_dropout": "dropout",
    },
    defaults={
        "vocab_size": 250880, "hidden_size": 64, "n_layer": 2, "n_head": 8, "seq_length": 2048, "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True, "initializer_range": 0.02, "hidden_dropout": 0.0, "attention_dropout": 0.0,
    },
    fixed={
        "positions": ("alibi",), "norm": ("layernorm",), "norm_bias": (True,), "attn_bias": (True,), "ff_bias": (True,),
        "embed_norm": (True,), "activation": ("gelu_tanh",),
    },
    constants={"apply_residual_connection_post_layernorm": False},
    aliases={"n_embed": "hidden_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
    rows=(
        Row("transformer.word_embeddings.weight", ("embed.weight",)),
        *pair("transformer.word_embeddings_layernorm", "embed_norm"),
        *pair("transformer.h.{n}.input_layernorm", "attn_norm"),
        *pair("transformer.h.{n}.self_attention.query_key_value", "attn.q", "attn.k", "attn.v", grouped=True),
        *pair("transformer.h.{n}.self_attention.dense", "attn.o"),
        *pair("transformer.h.{n}.post_attention_layernorm", "ff_norm"),
        *pair("transformer.h.{n}.mlp.dense_h_to_4h", "ff.up"),
        *pair("transformer.h.{n}.mlp.dense_4h_to_h", "ff.down"),
        *pair("transformer.ln_f", "norm"),
        Row("lm_head.weight", ("unembed.weight",)),
    ),
    prefixes=("transformer.",),
)  # fmt: skip
