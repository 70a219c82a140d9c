"""One dial: from a depth to a whole shape, and from a shape to batch, learning rate and tokens.

The width follows the depth by an aspect ratio (width / depth) of 4·depth, held within 64 and 128. That passes through GPT-2's
and GPT-3's small model (12 layers of 768), LLaMA-7B (32 of 4,096) and LLaMA-13B (40 of 5,120); the loss depends little on the
ratio (Kaplan et al. 2020, arXiv:2001.08361, section 3.1). Heads are 64 wide, from a width of 2,048 on 128, and from 8 on their
number is even. With `like` all other fields are those of a model of the catalogue: positions, norms, activation, biases,
vocabulary, context.

Without it, two rules of this project's own: context is the power of two at or above the width, within 256 and 2,048, and the
vocabulary the power of two nearest to 32,768·(N/1e9)^(1/3), within 4,096 and 32,768, for N parameters in the blocks. They
give what small recipes here use (4,096 entries at 1M parameters, 8,192 at 10M) and about what GPT-2 and LLaMA have.

Batch and learning rate are DeepSeek LLM's fits (Bi et al. 2024, arXiv:2401.02954, equation 1; the coefficients are from memory,
and give the 9.4M tokens a step and 4.2e-4 of its own 7B model): B = 0.2920·C^0.3271 tokens, lr = 0.3118·C^-0.1250, with C the
FLOPs of the run without head. They were fitted between 1e17 and 2e19 FLOPs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from herdbook.model.config import ModelConfig
from herdbook.plan.laws import TOKENS_PER_PARAMETER

ASPECT_LOW, ASPECT_HIGH = 64, 128
DEEPEST = 512
BATCH_LAW, RATE_LAW = (0.2920, 0.3271), (0.3118, -0.1250)
# The sizes themselves; everything else is taken over from the model that a shape is like.
_SIZES = ("d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "embed_dim")


def shape(depth: int, like: ModelConfig | None = None) -> ModelConfig:
    """The shape of so many layers, resolved. `like` gives all that is not a size."""
    assert depth > 0
    aspect = min(max(4 * depth, ASPECT_LOW), ASPECT_HIGH)
    head = like.head_width if like is not None and like.head_width in (64, 128) else 64 if aspect * depth < 2048 else 128
    heads = _even(aspect * depth / head)
    width = heads * head
    if like is None:
        blocks = ModelConfig(d_model=width, n_layers=depth, n_heads=heads, vocab_size=64).parameters_non_embedding()
        context = min(max(2 ** math.ceil(math.log2(width)), 256), 2048)
        return ModelConfig(
            d_model=width, n_layers=depth, n_heads=heads, vocab_size=_vocabulary(blocks), context=context
        ).resolved()  # fmt: skip
    values = {name: getattr(like, name) for name in type(like).model_fields if name not in _SIZES}
    return ModelConfig(
        **values, d_model=width, n_layers=depth, n_heads=heads, head_dim=head, n_kv_heads=_key_heads(heads, like),
        d_ff=_inner(width, like),
    ).resolved()  # fmt: skip


def shape_for(parameters: float, like: ModelConfig | None = None) -> ModelConfig:
    """The shape of the dial whose number of parameters is nearest, by ratio."""
    low, high = 1, DEEPEST
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if shape(middle, like).parameters() < parameters else (low, middle)
    near = [shape(depth, like) for depth in (max(1, low - 1), low)]
    return min(near, key=lambda found: abs(math.log(found.parameters() / parameters)))


def _even(heads: float) -> int:
    """A whole number of heads, from 8 on an even one, so that two devices can share them."""
    return 2 * round(heads / 2) if heads >= 8 else max(1, round(heads))


def _vocabulary(parameters: int) -> int:
    return int(2 ** min(max(round(15 + math.log2(parameters / 1e9) / 3), 12), 15))


def _key_heads(heads: int, like: ModelConfig) -> int:
    """As many key/value heads as the model has that this one is like: all, one, or the nearest number below that divides."""
    if like.kv_heads == like.n_heads:
        return heads
    return max(count for count in range(1, like.kv_heads + 1) if heads % count == 0)


def _inner(width: int, like: ModelConfig) -> int:
    """The feed-forward width in the same ratio, rounded up as `ModelConfig.ff_width` rounds."""
    multiple = 256 if width >= 1024 else 64
    return multiple * math.ceil(like.ff_width * width / like.d_model / multiple)


@dataclass(frozen=True)
class Settings:
    """What the dial fills in beside the shape: tokens, tokens a step, peak learning rate."""

    tokens: int
    tokens_per_step: int
    lr: float
    flops: float


def settings(model: ModelConfig, *, multiple: float = 1.0, tokens: int | None = None) -> Settings:
    """Tokens by a multiple of Chinchilla's 20 a parameter, unless they are given; batch and learning rate by the fits."""
    wanted = tokens or round(multiple * TOKENS_PER_PARAMETER * model.parameters())
    flops = (model.flops_per_token() - 6 * model.vocabulary * model.embed_width) * wanted
    sequences = BATCH_LAW[0] * flops ** BATCH_LAW[1] / model.context
    per_step = model.context * int(2 ** max(0, round(math.log2(sequences))))
    rate = RATE_LAW[0] * flops ** RATE_LAW[1]
    digits = 1 - math.floor(math.log10(rate))
    return Settings(tokens=wanted, tokens_per_step=per_step, lr=round(rate, digits), flops=flops)
