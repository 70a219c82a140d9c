"""The decoder: one module that is GPT-2, GPT-3, OPT, BLOOM, LLaMA, MPT, Falcon, LLaMA-2, GPT-NeoX, GPT-J or PaLM by its config.

Notable choices:
- Master weights are float32; each is cast to `compute_dtype` where it is used. That is what autocast does with more
  bookkeeping, runs 1.1-1.2 times as fast under `torch.compile`, and maps onto FSDP2's mixed-precision policy as it is.
- Query, key and value are matrices of their own: it is how checkpoints, adapters and tensor parallelism want them.
- What all layers share (rotary angles, the attention mask, ALiBi's bias) is made once a forward.
- With `documents_BT`, tokens see only their own document and positions restart with it, so that a packed row gives the
  logits its documents give alone.

Sources: GPT-2 (Radford 2019) and GPT-3 (arXiv:2005.14165, section 2.1); PaLM (arXiv:2204.02311, section 2); GPT-NeoX
(arXiv:2204.06745, section 2.1); OPT (arXiv:2205.01068, section 2.1); BLOOM (arXiv:2211.05100, section 3.2.2); LLaMA
(arXiv:2302.13971, section 2.2); LLaMA-2 (arXiv:2307.09288, section 2.2); Falcon (arXiv:2311.16867); RoPE (arXiv:2104.09864);
ALiBi (arXiv:2108.12409); RMSNorm (arXiv:1910.07467); MQA (arXiv:1911.02150); GQA (arXiv:2305.13245); sliding windows: Mistral
7B (arXiv:2310.06825, section 2).

Shapes: B batch, T time, S keys, D model width, H query heads, K key/value heads, E head width, R turned part of it,
F feed-forward, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from herdbook.model.attention import KeyValueCache, Sight, alibi_slopes, attention, with_alibi, with_window
from herdbook.model.config import ModelConfig
from herdbook.model.start import Start, draw

Rotary = tuple[Tensor, Tensor]  # cosine and sine, (B or 1, 1, T, R/2), float32


class Linear(nn.Linear):
    """y = x·Wᵀ + b with the weights cast to the type of `x` where they are used."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out), in the type of `x`."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Norm(nn.Module):
    """RMSNorm, or LayerNorm with or without bias, over the last `width` values.

    LayerNorm works in float32, as under autocast; `layernorm_low_precision` works in the type of its input, which MPT was
    trained with and which saves memory traffic. In float32 the two are one.
    """

    def __init__(self, cfg: ModelConfig, width: int) -> None:
        super().__init__()
        self.kind, self.eps = cfg.norm, cfg.norm_eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if cfg.has_norm_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and type; the statistics are summed in float32 by the kernel."""
        kind = torch.float32 if self.kind == "layernorm" else x.dtype
        weight = self.weight.to(kind)
        if self.kind == "rmsnorm":
            return F.rms_norm(x, weight.shape, weight, self.eps)
        bias = None if self.bias is None else self.bias.to(kind)
        return F.layer_norm(x.to(kind), weight.shape, weight, bias, self.eps).to(x.dtype)


def rotary_angles(positions_BT: Tensor, cfg: ModelConfig) -> Rotary:
    """Cosine and sine of position / theta^(2i/R), float32: a bfloat16 angle would be off by whole radians past position 256.

    Linear scaling shrinks the positions (arXiv:2306.15595); NTK-aware scaling is a larger theta (`ModelConfig.rotary_theta`).
    """
    width, positions_BT = cfg.rotary_width, positions_BT.float()
    exponents_R = torch.arange(0, width, 2, dtype=torch.int64, device=positions_BT.device).float() / width
    if cfg.rope_scaling == "linear":
        positions_BT = positions_BT / cfg.rope_factor
    angles_BTR = positions_BT[..., None] * (1.0 / cfg.rotary_theta**exponents_R)
    return angles_BTR.cos()[:, None], angles_BTR.sin()[:, None]


def rotate(x_BHTE: Tensor, rotary: Rotary, interleaved: bool = False) -> Tensor:
    """Turn pairs of the first R values by their angles; the rest of the head passes through.

    The pairs are (x[i], x[i + R/2]), the order of Hugging Face checkpoints, or neighbours (x[2i], x[2i + 1]) when
    `interleaved`, the order of GPT-J and of Meta's own LLaMA files.
    """
    cos, sin = rotary
    width = 2 * cos.shape[-1]
    turned, rest = x_BHTE[..., :width].float(), x_BHTE[..., width:]
    if interleaved:
        left, right = turned[..., ::2], turned[..., 1::2]
        turned = torch.stack((left * cos - right * sin, right * cos + left * sin), dim=-1).flatten(-2)
    else:
        left, right = turned.chunk(2, dim=-1)
        turned = torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
    turned = turned.to(x_BHTE.dtype)
    return turned if rest.shape[-1] == 0 else torch.cat((turned, rest), dim=-1)


class Attention(nn.Module):
    """Multi-head, grouped-query or multi-query attention, by the number of key/value heads."""

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.dropout, self.clip, self.interleaved = layer, cfg.dropout, cfg.clip_qkv, cfg.rope_interleaved
        self.heads, self.kv_heads, self.head_dim, bias = cfg.n_heads, cfg.kv_heads, cfg.head_width, cfg.has_attn_bias
        self.q = Linear(cfg.d_model, self.heads * self.head_dim, bias=bias)
        self.k = Linear(cfg.d_model, self.kv_heads * self.head_dim, bias=bias)
        self.v = Linear(cfg.d_model, self.kv_heads * self.head_dim, bias=bias)
        self.o = Linear(self.heads * self.head_dim, cfg.d_model, bias=bias)
        self.q_norm = Norm(cfg, self.head_dim) if cfg.qk_norm else None
        self.k_norm = Norm(cfg, self.head_dim) if cfg.qk_norm else None

    def forward(self, x_BTD: Tensor, rotary: Rotary | None, sight: Sight, cache: KeyValueCache | None) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        B, T, _ = x_BTD.shape
        q_BHTE = self._heads(self.q(x_BTD), self.heads)
        k_BKTE = self._heads(self.k(x_BTD), self.kv_heads)
        v_BKTE = self._heads(self.v(x_BTD), self.kv_heads)
        if self.q_norm is not None and self.k_norm is not None:
            q_BHTE, k_BKTE = self.q_norm(q_BHTE), self.k_norm(k_BKTE)
        if rotary is not None:
            q_BHTE, k_BKTE = rotate(q_BHTE, rotary, self.interleaved), rotate(k_BKTE, rotary, self.interleaved)
        if cache is None:
            out_BHTE = attention(q_BHTE, k_BKTE, v_BKTE, sight, dropout=self.dropout if self.training else 0.0)
        else:
            out_BHTE = cache.attend(self.layer, q_BHTE, k_BKTE, v_BKTE, sight)
        out_BTD: Tensor = self.o(out_BHTE.transpose(1, 2).reshape(B, T, -1))
        return out_BTD

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        """(B, T, heads·E) to (B, heads, T, E), clipped where the config says so."""
        x = x if self.clip is None else x.clamp(-self.clip, self.clip)
        return x.view(*x.shape[:2], heads, self.head_dim).transpose(1, 2)


class FeedForward(nn.Module):
    """down(act(up x)), or down(silu(gate x) · up x) for SwiGLU."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.activation = cfg.activation
        self.gate = Linear(cfg.d_model, cfg.ff_width, bias=cfg.has_ff_bias) if cfg.activation == "swiglu" else None
        self.up = Linear(cfg.d_model, cfg.ff_width, bias=cfg.has_ff_bias)
        self.down = Linear(cfg.ff_width, cfg.d_model, bias=cfg.has_ff_bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        x_BTF = self.up(x_BTD)
        if self.gate is not None:
            x_BTF = F.silu(self.gate(x_BTD)) * x_BTF
        elif self.activation == "relu":
            x_BTF = F.relu(x_BTF)
        else:
            x_BTF = F.gelu(x_BTF, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        out_BTD: Tensor = self.down(x_BTF)
        return out_BTD


class Block(nn.Module):
    """One layer: attention and feed-forward, each adding to the stream."""

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attn_norm, self.attn = Norm(cfg, cfg.d_model), Attention(cfg, layer)
        self.ff_norm = None if cfg.block == "parallel_one_norm" else Norm(cfg, cfg.d_model)
        self.ff = FeedForward(cfg)
        self.dropout, self.parallel, self.post = cfg.dropout, cfg.block != "sequential", cfg.norm_place == "post"

    def forward(self, x_BTD: Tensor, rotary: Rotary | None, sight: Sight, cache: KeyValueCache | None = None) -> Tensor:
        """(B, T, D) to (B, T, D). Sequential with norms before (GPT-2, OPT, BLOOM, LLaMA, MPT, Falcon-RW)::

            x ──┬────────────────────────────────────(+)──┬──────────────────────(+)──▶ x
                └▶ attn_norm ─▶ attn ─────────────────┘   └▶ ff_norm ─▶ ff ───────┘

        with norms after (OPT-350M)::

            x ──┬────────────(+)─▶ attn_norm ──┬──────────(+)─▶ ff_norm ──▶ x
                └▶ attn ──────┘                └▶ ff ──────┘

        parallel, behind one norm (Falcon-7B, GPT-J, PaLM) or one each (Falcon-40B and 180B, GPT-NeoX)::

            x ──┬────────────────────────(+)──(+)──▶ x
                ├▶ attn_norm ──┬▶ attn ───┘    │
                └▶ (ff_norm) ──┴▶ ff ──────────┘

        and inside::

            attn:  ┌▶ q ─▶ clip ─▶ norm ─▶ rotary ─┐                               ff:  ┌▶ gate ─▶ silu ─┐
                x ─┼▶ k ─▶ clip ─▶ norm ─▶ rotary ─┼▶ (cache) ─▶ attention ─▶ o      x ─┤                × ─▶ down
                   └▶ v ─▶ clip ───────────────────┘              ▲ sight, ALiBi        └▶ up ───────────┘

        Clip, the norms of q and k, and rotary are there when the config says so. Without SwiGLU there is no gate: the
        activation sits between up and down.
        """
        if self.post:
            x_BTD = self.attn_norm(x_BTD + self._drop(self.attn(x_BTD, rotary, sight, cache)))
            assert self.ff_norm is not None  # a post-norm block is sequential
            out_BTD: Tensor = self.ff_norm(x_BTD + self._drop(self.ff(x_BTD)))
            return out_BTD
        normed_BTD = self.attn_norm(x_BTD)
        attn_BTD = self._drop(self.attn(normed_BTD, rotary, sight, cache))
        if not self.parallel:
            x_BTD = x_BTD + attn_BTD
        if self.ff_norm is not None:
            normed_BTD = self.ff_norm(x_BTD)
        x_BTD = x_BTD + self._drop(self.ff(normed_BTD))
        return x_BTD + attn_BTD if self.parallel else x_BTD

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Decoder(nn.Module):
    """Tokens in, logits out.

    Attributes:
        cfg: the resolved config.
        compute_dtype: type of the activations; set it to `torch.bfloat16` where that is fast. Weights stay as they are.

    Raises UserError when the config does not know its vocabulary. The weights start at random, from torch's own seed; call
    `init_weights` with a generator to fix them.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg.resolved()
        self.compute_dtype = torch.float32
        self.heads_here = slice(None)  # of all query heads; tensor parallelism leaves each process its own
        width, projected = cfg.embed_width, cfg.embed_width != cfg.d_model
        self.embed = nn.Embedding(self.cfg.vocabulary, width)
        self.project_in = Linear(width, cfg.d_model, bias=False) if projected else None
        rows = cfg.context + cfg.position_offset
        self.position_embed = nn.Embedding(rows, cfg.d_model) if cfg.positions == "learned" else None
        self.embed_norm = Norm(cfg, cfg.d_model) if cfg.embed_norm else None
        self.blocks = nn.ModuleList(Block(self.cfg, layer) for layer in range(cfg.n_layers))
        # The last post-norm block has normalised the stream already.
        self.norm = Norm(cfg, cfg.d_model) if cfg.norm_place == "pre" else None
        self.project_out = Linear(cfg.d_model, width, bias=False) if projected else None
        self.unembed = None if cfg.tied else Linear(width, self.cfg.vocabulary, bias=cfg.head_bias)
        if self.embed.weight.device.type != "meta":
            self.init_weights()

    def init_weights(self, generator: torch.Generator | None = None, start: Start = "normal") -> None:
        """Draw all weights anew, see `start`. On one device the same generator state gives the same weights."""
        for name, weight in self.named_parameters():
            draw(weight, name, self.cfg, generator, start)

    def forward(
        self, tokens_BT: Tensor, *, documents_BT: Tensor | None = None, positions_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:  # fmt: skip
        """Logits (B, T, V) in float32; arguments as for `hidden`."""
        return self.head(self.hidden(tokens_BT, documents_BT=documents_BT, positions_BT=positions_BT, cache=cache))

    def hidden(
        self, tokens_BT: Tensor, *, documents_BT: Tensor | None = None, positions_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:  # fmt: skip
        """The stream before the head, normalised, (B, T, D) in `compute_dtype`.

        Args:
            tokens_BT: int64 ids below the vocabulary size.
            documents_BT: a number for the document each token belongs to, the tokens of one side by side; None: one a row.
            positions_BT: position of each token, (B or 1, T); None: counted from 0, or from the document's or cache's start.
            cache: keys and values of earlier tokens; not together with `documents_BT`.
        """
        x_BTD, rotary, sight = self.enter(tokens_BT, documents_BT=documents_BT, positions_BT=positions_BT, cache=cache)
        for block in self.blocks:
            x_BTD = block(x_BTD, rotary, sight, cache)
        out_BTD: Tensor = x_BTD if self.norm is None else self.norm(x_BTD)
        return out_BTD

    def enter(
        self, tokens_BT: Tensor, *, documents_BT: Tensor | None = None, positions_BT: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> tuple[Tensor, Rotary | None, Sight]:  # fmt: skip
        """What the first block reads, (B, T, D), and what all blocks share; arguments as for `hidden`."""
        if documents_BT is not None and cache is not None:
            raise ValueError("documents_BT and cache exclude each other: a cache holds one document a row")
        if positions_BT is None:
            positions_BT = self._positions(tokens_BT, documents_BT, cache)
        x_BTD = self.embed(tokens_BT)
        if self.project_in is not None:
            x_BTD = self.project_in(x_BTD)
        if self.position_embed is not None:
            x_BTD = x_BTD + self.position_embed(positions_BT + self.cfg.position_offset)
        x_BTD = x_BTD.to(self.compute_dtype)
        if self.embed_norm is not None:
            x_BTD = self.embed_norm(x_BTD)
        x_BTD = F.dropout(x_BTD, self.cfg.dropout, self.training)
        rotary = rotary_angles(positions_BT, self.cfg) if self.cfg.positions == "rope" else None
        sight = self._sight(tokens_BT.shape[1], positions_BT, documents_BT, cache)
        return x_BTD, rotary, sight

    def _sight(self, T: int, positions_BT: Tensor, documents_BT: Tensor | None, cache: KeyValueCache | None) -> Sight:
        """Who sees whom, through the window if there is one, with ALiBi's bias where positions are told by one."""
        sight = Sight() if cache is None else cache.sight(T)
        if sight is None:
            return Sight()
        if documents_BT is not None:
            sight = Sight(document_mask(documents_BT))
        if self.cfg.window is None and self.cfg.positions != "alibi":
            return sight
        keys_BS = positions_BT if cache is None else cache.key_positions(T)
        if self.cfg.window is not None:
            sight = with_window(sight, self.cfg.window, positions_BT, keys_BS)
        if self.cfg.positions != "alibi":
            return sight
        slopes_H = alibi_slopes(self.cfg.n_heads, self.cfg.alibi_max)[self.heads_here].to(positions_BT.device)
        return with_alibi(
            sight, slopes_H, positions_BT, keys_BS,
            head_width=self.cfg.head_width, dtype=self.compute_dtype, falcon=self.cfg.alibi_falcon,
        )  # fmt: skip

    def _positions(self, tokens_BT: Tensor, documents_BT: Tensor | None, cache: KeyValueCache | None) -> Tensor:
        if cache is not None:
            return cache.positions(tokens_BT.shape[1])
        if documents_BT is not None:
            return document_positions(documents_BT)
        if self.position_embed is not None and tokens_BT.shape[1] > self.cfg.context:
            raise ValueError(f"{tokens_BT.shape[1]} tokens, but there are learned positions for only {self.cfg.context}")
        return torch.arange(tokens_BT.shape[1], device=tokens_BT.device)[None]

    def head(self, x_BTD: Tensor) -> Tensor:
        """Logits (…, V) in float32 from the stream (…, D)."""
        x_BTD = self.before_head(x_BTD)
        if self.unembed is None:
            return F.linear(x_BTD, self.embed.weight.to(x_BTD.dtype)).float()
        logits_BTV: Tensor = self.unembed(x_BTD)
        return logits_BTV.float()

    def before_head(self, x_BTD: Tensor) -> Tensor:
        """The stream in the width of the embedding, which is what `head_weights` multiply."""
        return x_BTD if self.project_out is None else self.project_out(x_BTD)

    def head_weights(self) -> tuple[Tensor, Tensor | None]:
        """Matrix (V, width of the embedding) and bias (V,) that make the logits; the matrix is the embedding's if tied."""
        return (self.embed.weight, None) if self.unembed is None else (self.unembed.weight, self.unembed.bias)


def document_mask(documents_BT: Tensor) -> Tensor:
    """(B, 1, T, T), True where the query sees the key: the same document, and not later."""
    T = documents_BT.shape[1]
    same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    return (same_BTT & torch.ones(T, T, dtype=torch.bool, device=documents_BT.device).tril())[:, None]


def document_positions(documents_BT: Tensor) -> Tensor:
    """Positions (B, T) that restart at 0 with each document."""
    places_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    starts_BT = torch.ones_like(documents_BT, dtype=torch.bool)
    starts_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    return places_T - torch.where(starts_BT, places_T, 0).cummax(dim=1).values
