"""The decoder: one module that is LLaMA, LLaMA-2, GPT-2 or GPT-3 by its config.

Notable choices:
- Master weights are float32; each is cast to `compute_dtype` where it is used. That is what autocast does with more
  bookkeeping, runs 1.1-1.2 times as fast under `torch.compile`, and maps onto FSDP2's mixed-precision policy as it is.
- Query, key and value are matrices of their own: it is how checkpoints, adapters and tensor parallelism want them.
- What all layers share (rotary angles, the attention mask) is made once a forward.
- With `documents_BT`, tokens see only their own document and positions restart with it, so that a packed row gives the
  logits its documents give alone.

Sources: GPT-2 (Radford 2019) and GPT-3 (arXiv:2005.14165, section 2.1); LLaMA (arXiv:2302.13971, section 2.2); LLaMA-2
(arXiv:2307.09288, section 2.2); RoPE (arXiv:2104.09864); RMSNorm (arXiv:1910.07467); GQA (arXiv:2305.13245).

Shapes: B batch, T time, S keys, D model width, H query heads, K key/value heads, E head width, F feed-forward, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from herdbook.model.attention import KeyValueCache, Sight, attention
from herdbook.model.config import ModelConfig

Rotary = tuple[Tensor, Tensor]  # cosine and sine, (B or 1, 1, T, E/2), float32


class Linear(nn.Linear):
    """y = x·Wᵀ + b with the weights cast to the type of `x` where they are used."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out), in the type of `x`."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Norm(nn.Module):
    """RMSNorm, or LayerNorm with or without bias."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.kind, self.eps = cfg.norm, cfg.norm_eps
        self.weight = nn.Parameter(torch.ones(cfg.d_model))
        self.bias = nn.Parameter(torch.zeros(cfg.d_model)) if cfg.norm == "layernorm" and cfg.bias else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Same shape and type; the statistics are summed in float32 by the kernel."""
        weight = self.weight.to(x_BTD.dtype)
        if self.kind == "rmsnorm":
            return F.rms_norm(x_BTD, weight.shape, weight, self.eps)
        bias = None if self.bias is None else self.bias.to(x_BTD.dtype)
        return F.layer_norm(x_BTD, weight.shape, weight, bias, self.eps)


def rotary_angles(positions_BT: Tensor, head_dim: int, theta: float) -> Rotary:
    """Cosine and sine of position / theta^(2i/E), float32: a bfloat16 angle would be off by whole radians past position 256."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device=positions_BT.device).float() / head_dim
    angles_BTE = positions_BT[..., None].float() * (1.0 / theta**exponents)
    return angles_BTE.cos()[:, None], angles_BTE.sin()[:, None]


def rotate(x_BHTE: Tensor, rotary: Rotary) -> Tensor:
    """Turn the pairs (x[i], x[i + E/2]) by their angles: the half-split order of Hugging Face checkpoints."""
    cos, sin = rotary
    left, right = x_BHTE.float().chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x_BHTE.dtype)


class Attention(nn.Module):
    """Multi-head, grouped-query or multi-query attention, by the number of key/value heads."""

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.dropout = layer, cfg.dropout
        self.heads, self.kv_heads, self.head_dim = cfg.n_heads, cfg.kv_heads, cfg.head_width
        self.q = Linear(cfg.d_model, self.heads * self.head_dim, bias=cfg.bias)
        self.k = Linear(cfg.d_model, self.kv_heads * self.head_dim, bias=cfg.bias)
        self.v = Linear(cfg.d_model, self.kv_heads * self.head_dim, bias=cfg.bias)
        self.o = Linear(self.heads * self.head_dim, cfg.d_model, bias=cfg.bias)

    def forward(self, x_BTD: Tensor, rotary: Rotary | None, sight: Sight, cache: KeyValueCache | None) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        B, T, _ = x_BTD.shape
        q_BHTE = self.q(x_BTD).view(B, T, self.heads, self.head_dim).transpose(1, 2)
        k_BKTE = self.k(x_BTD).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        v_BKTE = self.v(x_BTD).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        if rotary is not None:
            q_BHTE, k_BKTE = rotate(q_BHTE, rotary), rotate(k_BKTE, rotary)
        if cache is not None:
            k_BKTE, v_BKTE = cache.extend(self.layer, k_BKTE, v_BKTE)
        out_BHTE = attention(q_BHTE, k_BKTE, v_BKTE, sight, dropout=self.dropout if self.training else 0.0)
        out_BTD: Tensor = self.o(out_BHTE.transpose(1, 2).reshape(B, T, -1))
        return out_BTD


class FeedForward(nn.Module):
    """down(act(up x)), or down(silu(gate x) · up x) for SwiGLU."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.activation = cfg.activation
        self.gate = Linear(cfg.d_model, cfg.ff_width, bias=cfg.bias) if cfg.activation == "swiglu" else None
        self.up = Linear(cfg.d_model, cfg.ff_width, bias=cfg.bias)
        self.down = Linear(cfg.ff_width, cfg.d_model, bias=cfg.bias)

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
    """One layer: attention, then feed-forward, each on a normalised copy of the stream it adds to."""

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attn_norm, self.attn = Norm(cfg), Attention(cfg, layer)
        self.ff_norm, self.ff = Norm(cfg), FeedForward(cfg)
        self.dropout = cfg.dropout

    def forward(self, x_BTD: Tensor, rotary: Rotary | None, sight: Sight, cache: KeyValueCache | None = None) -> Tensor:
        """(B, T, D) to (B, T, D)::

            x ──┬───────────────────────────────────────────(+)──┬──────────────────────────────(+)──▶ x
                │            ┌▶ q ─▶ rotary ─┐               ▲   │             ┌▶ gate ─▶ silu ─┐  ▲
                └▶ attn_norm ┼▶ k ─▶ rotary ─┼▶ attention ─▶ o   └▶ ff_norm ───┤                × ─▶ down
                             └▶ v ───────────┘ (cache, sight)                  └▶ up ───────────┘

        Without SwiGLU there is no gate: the activation sits between up and down. Without RoPE nothing is turned: the
        positions were added to the embedding.
        """
        x_BTD = x_BTD + self._drop(self.attn(self.attn_norm(x_BTD), rotary, sight, cache))
        return x_BTD + self._drop(self.ff(self.ff_norm(x_BTD)))

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
        self.embed = nn.Embedding(self.cfg.vocabulary, cfg.d_model)
        rows = cfg.context + cfg.position_offset
        self.position_embed = nn.Embedding(rows, cfg.d_model) if cfg.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(self.cfg, layer) for layer in range(cfg.n_layers))
        self.norm = Norm(self.cfg)
        self.unembed = None if cfg.tied else Linear(cfg.d_model, self.cfg.vocabulary, bias=False)
        if self.embed.weight.device.type != "meta":
            self.init_weights()

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew: normal with `init_std`, biases zero, norms one.

        What is added to the residual stream is scaled by 1/sqrt(2L), so that the stream's variance does not grow with depth
        (GPT-2). On one device the same generator state gives the same weights.
        """
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif weight.dim() == 1:
                weight.fill_(1.0)
            else:
                adds_to_stream = name.endswith(("attn.o.weight", "ff.down.weight"))
                std = self.cfg.init_std / (math.sqrt(2 * self.cfg.n_layers) if adds_to_stream else 1.0)
                weight.normal_(0.0, std, generator=generator)

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
        """The normalised stream before the head, (B, T, D) in `compute_dtype`.

        Args:
            tokens_BT: int64 ids below the vocabulary size.
            documents_BT: a number for the document each token belongs to, the tokens of one side by side; None: one a row.
            positions_BT: position of each token, (B or 1, T); None: counted from 0, or from the document's or cache's start.
            cache: keys and values of earlier tokens; not together with `documents_BT`.
        """
        if documents_BT is not None and cache is not None:
            raise ValueError("documents_BT and cache exclude each other: a cache holds one document a row")
        T = tokens_BT.shape[1]
        sight = Sight() if cache is None else cache.sight(T)
        if documents_BT is not None:
            sight = Sight(document_mask(documents_BT), causal=False)
        if positions_BT is None:
            positions_BT = self._positions(tokens_BT, documents_BT, cache)
        x_BTD = self.embed(tokens_BT)
        rotary = None
        if self.position_embed is not None:
            x_BTD = x_BTD + self.position_embed(positions_BT + self.cfg.position_offset)
        else:
            rotary = rotary_angles(positions_BT, self.cfg.head_width, self.cfg.rope_theta)
        x_BTD = F.dropout(x_BTD, self.cfg.dropout, self.training).to(self.compute_dtype)
        for block in self.blocks:
            x_BTD = block(x_BTD, rotary, sight, cache)
        out_BTD: Tensor = self.norm(x_BTD)
        return out_BTD

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
        weight = self.embed.weight if self.unembed is None else self.unembed.weight
        return F.linear(x_BTD, weight.to(x_BTD.dtype)).float()


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
