"""The shape of a decoder as orthogonal fields, and what that shape costs.

No field names a family: LLaMA-2 is rope + rmsnorm + swiglu + grouped key heads, GPT-2 and GPT-3 are learned positions +
layernorm + gelu + biases + tied head, MPT is alibi + low-precision layernorm without biases, Falcon-7B is rope + one key head
+ a parallel block behind one norm. The presets in `facts/families/` are such settings as data. The counting methods are
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

VOCABULARY_MULTIPLE = 64
_POSITION_FIELDS = {
    "rope": ("rope_theta", "rope_fraction", "rope_interleaved", "rope_scaling", "rope_factor"),
    "learned": ("position_offset",),
    "alibi": ("alibi_max", "alibi_falcon"),
}


class ModelConfig(Config):
    """One decoder. Fields left at null follow from the others; `resolved` writes them out."""

    vocab_size: Count | None = Field(
        default=None, description="rows of the embedding; null: the tokenizer's, padded to vocab_multiple"
    )
    vocab_multiple: Count = Field(
        default=VOCABULARY_MULTIPLE,
        gt=0,
        description="what a vocabulary left at null is padded to a multiple of: matrix kernels like round widths",
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
    embed_dim: Count | None = Field(
        default=None, gt=0, description="width of the embedding; null: d_model, else a matrix leads in and one out (OPT-350M)"
    )
    context: Count = Field(default=256, gt=0, description="longest sequence in tokens")
    window: Count | None = Field(
        default=None, gt=0, description="a query sees this many keys at most, itself among them (Mistral); null: all"
    )

    positions: Literal["rope", "learned", "alibi"] = Field(
        default="rope", description="rotary angles, a learned vector a position, or a bias by distance (ALiBi)"
    )
    position_offset: Count = Field(
        default=0, ge=0, description="learned: rows of the position table before position 0 (OPT has 2)"
    )
    rope_theta: float = Field(default=10_000.0, gt=0, description="rope: base of the wavelengths")
    rope_fraction: float = Field(default=1.0, gt=0, le=1, description="rope: share of each head that is turned (NeoX: 0.25)")
    rope_interleaved: bool = Field(
        default=False, description="rope: turn neighbours (x[2i], x[2i+1]) as GPT-J does, instead of the halves of a head"
    )
    rope_scaling: Literal["none", "linear", "ntk"] = Field(
        default="none", description="rope: how positions are fitted to a longer context: all shrunk, or the base stretched"
    )
    rope_factor: float = Field(default=1.0, ge=1, description="rope: how many times longer the context became by scaling")
    alibi_max: float = Field(default=8.0, gt=0, description="alibi: slopes go from 2^(-max/heads) to 2^-max")
    alibi_falcon: bool = Field(
        default=False,
        description="alibi: as Falcon-RW has it, in bfloat16, and scaled with the scores by 1/sqrt(head_dim)",
    )

    norm: Literal["rmsnorm", "layernorm", "layernorm_low_precision"] = Field(
        default="rmsnorm", description="kind of normalisation; low precision: in the type of the activations, not in float32"
    )
    norm_eps: float = Field(default=1e-5, gt=0, description="added to the variance before the root")
    norm_place: Literal["pre", "post"] = Field(
        default="pre", description="on the copy each part reads, or on the stream after each part has added to it"
    )
    block: Literal["sequential", "parallel_one_norm", "parallel_two_norms"] = Field(
        default="sequential", description="feed-forward after attention, or beside it, behind one norm for both or one each"
    )
    embed_norm: bool = Field(default=False, description="a norm right after the embedding (BLOOM)")
    qk_norm: bool = Field(default=False, description="a norm over each head's query and key")
    clip_qkv: float | None = Field(default=None, gt=0, description="queries, keys and values are clipped to ± this")

    activation: Literal["swiglu", "gelu", "gelu_tanh", "relu"] = Field(default="swiglu", description="of the feed-forward part")
    bias: bool = Field(default=False, description="biases wherever the four fields below do not say otherwise")
    attn_bias: bool | None = Field(default=None, description="biases of query, key, value and output; null: as `bias`")
    ff_bias: bool | None = Field(default=None, description="biases of the feed-forward part; null: as `bias`")
    norm_bias: bool | None = Field(default=None, description="biases of layernorms; null: as `bias`")
    head_bias: bool = Field(default=False, description="a bias on the logits (GPT-J)")
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
        if self.vocab_size is not None and self.vocab_size < 1:
            raise ValueError(f"vocab_size {self.vocab_size} is not positive")
        if self.positions == "rope" and (self.rotary_width < 2 or self.rotary_width % 2):
            part = "head width" if self.rope_fraction == 1 else f"share {self.rope_fraction:g} of the head width"
            raise ValueError(f"rope turns pairs of values, so the {part} ({self.rotary_width}) must be even")
        if (self.rope_factor != 1) != (self.rope_scaling != "none"):
            raise ValueError("rope_scaling and a rope_factor above 1 go together: set both or neither")
        if self.block != "sequential" and self.norm_place == "post":
            raise ValueError("a parallel block has its norms before its parts: norm_place post needs block: sequential")
        if self.head_bias and self.tied:
            raise ValueError("head_bias needs a head of its own: set tied: false")
        self._no_idle_fields()
        return self

    def _no_idle_fields(self) -> None:
        """A field that the chosen kind of positions or norm does not read must stay at its default."""
        for kind, names in _POSITION_FIELDS.items():
            for name in names if kind != self.positions else ():
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} is for positions: {kind}, and positions is {self.positions}")
        if self.norm == "rmsnorm" and self.norm_bias:
            raise ValueError("rmsnorm has no bias: norm_bias is for layernorm")

    @property
    def head_width(self) -> int:
        """E, the width of a head."""
        return self.head_dim or self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        """K, the number of key/value heads."""
        return self.n_kv_heads or self.n_heads

    @property
    def rotary_width(self) -> int:
        """How many values of a head RoPE turns; 0 without RoPE."""
        # A hair more, because the share of 30 values in 52 is a float that makes 29.999999999999996 of them.
        return int(self.head_width * self.rope_fraction + 1e-6) if self.positions == "rope" else 0

    @property
    def rotary_theta(self) -> float:
        """The base of the wavelengths, stretched by NTK-aware scaling so that the longest wave covers the longer context:
        theta · factor^(R/(R-2)) with R turned values a head (bloc97 2023; YaRN, arXiv:2309.00071, section 3.1)."""
        if self.rope_scaling != "ntk" or self.rotary_width <= 2:
            return self.rope_theta
        return float(self.rope_theta * self.rope_factor ** (self.rotary_width / (self.rotary_width - 2)))

    @property
    def embed_width(self) -> int:
        """The width of the embedding, D unless it is projected."""
        return self.embed_dim or self.d_model

    @property
    def has_attn_bias(self) -> bool:
        """Whether query, key, value and output have biases."""
        return self.bias if self.attn_bias is None else self.attn_bias

    @property
    def has_ff_bias(self) -> bool:
        """Whether the feed-forward part has biases."""
        return self.bias if self.ff_bias is None else self.ff_bias

    @property
    def has_norm_bias(self) -> bool:
        """Whether norms have biases; RMSNorm never has."""
        return self.norm != "rmsnorm" and (self.bias if self.norm_bias is None else self.norm_bias)

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
            size = self.vocab_multiple * math.ceil(vocab_size / self.vocab_multiple)
        if size is not None and vocab_size is not None and size < vocab_size:
            raise UserError(
                f"vocab_size {size:,} is smaller than the tokenizer's {vocab_size:,}",
                where="model.vocab_size", todo="leave it at null to follow the tokenizer",
            )  # fmt: skip
        update = {
            "vocab_size": size, "vocab_multiple": VOCABULARY_MULTIPLE, "n_kv_heads": self.kv_heads,
            "head_dim": self.head_width, "d_ff": self.ff_width, "embed_dim": self.embed_width,
            "bias": self.has_attn_bias and self.has_ff_bias,
            "attn_bias": self.has_attn_bias, "ff_bias": self.has_ff_bias, "norm_bias": self.has_norm_bias,
        }  # fmt: skip
        done = self.model_copy(update=update)
        done.vocabulary  # noqa: B018  raises when it is still unknown
        return done

    def parameters(self) -> int:
        """All weights, a tied head counted once."""
        tables = 1 if self.tied else 2
        return self.parameters_non_embedding() + tables * self.vocabulary * self.embed_width + self._position_parameters()

    def parameters_non_embedding(self) -> int:
        """All weights but the tables: without embedding, learned positions and head."""
        d, f, e = self.d_model, self.ff_width, self.head_width
        query, key = self.n_heads * e, self.kv_heads * e
        attention = d * (query + 2 * key) + query * d + ((query + 2 * key + d) if self.has_attn_bias else 0)
        attention += 2 * self._norm_parameters(e) if self.qk_norm else 0
        inner = 2 if self.activation == "swiglu" else 1
        feed_forward = (inner + 1) * d * f + ((inner * f + d) if self.has_ff_bias else 0)
        block = attention + feed_forward + (1 if self.block == "parallel_one_norm" else 2) * self._norm_parameters(d)
        norms = (self.norm_place == "pre") + self.embed_norm  # after post-norm blocks the stream is normalised already
        around = norms * self._norm_parameters(d) + (self.vocabulary if self.head_bias else 0)
        around += 2 * d * self.embed_width if self.embed_width != d else 0
        return self.n_layers * block + around

    def _norm_parameters(self, width: int) -> int:
        return width * (2 if self.has_norm_bias else 1)

    def _position_parameters(self) -> int:
        return (self.context + self.position_offset) * self.d_model if self.positions == "learned" else 0

    def flops_per_token(self, context: int | None = None, *, training: bool = True) -> float:
        """FLOPs a token costs on average in sequences of `context` tokens (default: the config's).

        2·N for the matrices, with N all weights that are multiplied (blocks and head; looking up an embedding is free), and
        2·L·H·E·T for causal attention: scores and weighted sum, 2·2·L·H·E·T, of which the mask leaves half. Training is
        three times that, once forward and twice backward: 6·N + 12·L·H·E·T/2 (PaLM, arXiv:2204.02311, appendix B). Through a
        window of W < T tokens a query sees W·(1 - W/2T) keys on average instead of T/2.
        """
        matrices = self.parameters_non_embedding() + self.vocabulary * self.embed_width
        length = context or self.context
        window = min(self.window or length, length)
        attention = self.n_layers * self.n_heads * self.head_width * window * (2 - window / length)
        return float((6 if training else 2) * (matrices + attention))

    def kv_bytes_per_token(self, bytes_per_value: float = 2) -> float:
        """Bytes the key/value cache grows by with each token: 2·L·K·E values."""
        return 2 * self.n_layers * self.kv_heads * self.head_width * bytes_per_value
