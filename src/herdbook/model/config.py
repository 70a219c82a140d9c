"""The shape of a decoder as orthogonal fields, and what that shape costs.

No field names a family: LLaMA-2 is rope + rmsnorm + swiglu + grouped key heads, GPT-2 and GPT-3 are learned positions +
layernorm + gelu + biases + tied head. The presets in `facts/models.yaml` are such settings as data. The counting methods are
the only place where parameters, FLOPs and cache bytes are computed: planner, MFU meter and benchmarks all ask here.

This file imports no torch, so that reading a recipe stays cheap.

Legend of sizes: B batch, T time, S time of the keys, D model width, H query heads, K key/value heads, E head width,
F feed-forward width, V vocabulary, L layers.
"""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from herdbook.config import Config
from herdbook.errors import UserError
from herdbook.units import Count, Share

VOCABULARY_MULTIPLE = 64  # matrix kernels like round widths


class ModelConfig(Config):
    """One decoder. Fields left at null follow from the others; `resolved` writes them out."""

    vocab_size: Count | None = Field(
        default=None, description="rows of the embedding; null: the tokenizer's, padded to a multiple of 64"
    )
    d_model: Count = Field(default=192, gt=0, description="width of the residual stream")
    n_layers: Count = Field(default=5, gt=0, description="how many blocks")
    n_heads: Count = Field(default=3, gt=0, description="query heads")
    n_kv_heads: Count | None = Field(
        default=None, gt=0, description="key/value heads; null: as many as query heads (MHA), 1: MQA, between: GQA"
    )
    head_dim: Count | None = Field(default=None, gt=0, description="width of a head; null: d_model / n_heads")
    d_ff: Count | None = Field(
        default=None, gt=0, description="feed-forward width; null: 4·d_model, for swiglu 8/3·d_model rounded up"
    )
    context: Count = Field(default=256, gt=0, description="longest sequence in tokens")
    positions: Literal["rope", "learned"] = Field(default="rope", description="rotary angles, or a learned vector a position")
    position_offset: Count = Field(
        default=0, ge=0, description="learned: rows of the position table before position 0 (OPT has 2)"
    )
    rope_theta: float = Field(default=10_000.0, gt=0, description="rope: base of the wavelengths")
    norm: Literal["rmsnorm", "layernorm"] = Field(
        default="rmsnorm", description="kind of normalisation before each part of a block"
    )
    norm_eps: float = Field(default=1e-5, gt=0, description="added to the variance before the root")
    activation: Literal["swiglu", "gelu", "gelu_tanh", "relu"] = Field(default="swiglu", description="of the feed-forward part")
    bias: bool = Field(default=False, description="biases in all linear layers and layernorms")
    tied: bool = Field(default=True, description="the head shares the embedding's matrix")
    init_std: float = Field(
        default=0.02, gt=0, description="spread of the random start; outputs of each part get it / sqrt(2·layers)"
    )
    dropout: Share = Field(default=0.0, ge=0, lt=1, description="share of activations dropped while training")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.head_dim is None and self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}; change one, or set head_dim")
        if self.n_kv_heads is not None and (self.n_heads % self.n_kv_heads or self.n_kv_heads > self.n_heads):
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.positions == "rope" and self.head_width % 2:
            raise ValueError(f"rope turns pairs of values, so the head width ({self.head_width}) must be even")
        if self.positions == "rope" and self.position_offset:
            raise ValueError("position_offset is for learned positions only")
        if self.vocab_size is not None and self.vocab_size < 1:
            raise ValueError(f"vocab_size {self.vocab_size} is not positive")
        return self

    @property
    def head_width(self) -> int:
        """E, the width of a head."""
        return self.head_dim or self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        """K, the number of key/value heads."""
        return self.n_kv_heads or self.n_heads

    @property
    def ff_width(self) -> int:
        """F, the feed-forward width. SwiGLU has three matrices where others have two, so it gets 2/3 of the width
        (Shazeer 2020, arXiv:2002.05202); rounded up to a multiple of 256 as LLaMA does, of 64 in small models."""
        if self.d_ff:
            return self.d_ff
        if self.activation != "swiglu":
            return 4 * self.d_model
        multiple = 256 if self.d_model >= 1024 else 64
        return multiple * math.ceil((8 * self.d_model // 3) / multiple)

    @property
    def vocabulary(self) -> int:
        """V, the rows of the embedding. Raises UserError while it is unknown."""
        if self.vocab_size is None:
            where, todo = "model.vocab_size", "set it, or name a tokenizer"
            raise UserError("the vocabulary size is not known yet", where=where, todo=todo)
        return self.vocab_size

    def resolved(self, vocab_size: int | None = None) -> ModelConfig:
        """The same shape with every null written out; `vocab_size` is the tokenizer's.

        Raises UserError when the configured vocabulary is too small for the tokenizer, or none is known.
        """
        size = self.vocab_size
        if size is None and vocab_size is not None:
            size = VOCABULARY_MULTIPLE * math.ceil(vocab_size / VOCABULARY_MULTIPLE)
        if size is not None and vocab_size is not None and size < vocab_size:
            raise UserError(
                f"vocab_size {size:,} is smaller than the tokenizer's {vocab_size:,}",
                where="model.vocab_size", todo="leave it at null to follow the tokenizer",
            )  # fmt: skip
        update = {"vocab_size": size, "n_kv_heads": self.kv_heads, "head_dim": self.head_width, "d_ff": self.ff_width}
        done = self.model_copy(update=update)
        done.vocabulary  # noqa: B018  raises when it is still unknown
        return done

    def parameters(self) -> int:
        """All weights, a tied head counted once."""
        tables = 1 if self.tied else 2
        return self.parameters_non_embedding() + tables * self.vocabulary * self.d_model + self._position_parameters()

    def parameters_non_embedding(self) -> int:
        """The weights of the blocks and the last norm: without embedding, positions and head."""
        d, f = self.d_model, self.ff_width
        query, key = self.n_heads * self.head_width, self.kv_heads * self.head_width
        attention = d * (query + 2 * key) + query * d + ((query + 2 * key + d) if self.bias else 0)
        inner = 2 if self.activation == "swiglu" else 1
        feed_forward = (inner + 1) * d * f + ((inner * f + d) if self.bias else 0)
        return self.n_layers * (attention + feed_forward + 2 * self._norm_parameters()) + self._norm_parameters()

    def _norm_parameters(self) -> int:
        return self.d_model * (2 if self.norm == "layernorm" and self.bias else 1)

    def _position_parameters(self) -> int:
        return (self.context + self.position_offset) * self.d_model if self.positions == "learned" else 0

    def flops_per_token(self, context: int | None = None, *, training: bool = True) -> float:
        """FLOPs a token costs on average in sequences of `context` tokens (default: the config's).

        2·N for the matrices, with N all weights that are multiplied (blocks and head; looking up an embedding is free), and
        2·L·H·E·T for causal attention: scores and weighted sum, 2·2·L·H·E·T, of which the mask leaves half. Training is
        three times that, once forward and twice backward: 6·N + 12·L·H·E·T/2 (PaLM, arXiv:2204.02311, appendix B).
        """
        matrices = self.parameters_non_embedding() + self.vocabulary * self.d_model
        attention = self.n_layers * self.n_heads * self.head_width * (context or self.context)
        return float((6 if training else 2) * (matrices + attention))

    def kv_bytes_per_token(self, bytes_per_value: float = 2) -> float:
        """Bytes the key/value cache grows by with each token: 2·L·K·E values."""
        return 2 * self.n_layers * self.kv_heads * self.head_width * bytes_per_value
