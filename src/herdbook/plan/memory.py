"""Memory of training, in bytes: the state, which grows with the parameters, and the activations, which grow with the tokens.

State, a parameter (`PRECISIONS`): weights, gradients and AdamW's two moments; in mixed precision also the 16-bit copies of the
weights that products are made with. 16 bytes is the sum that ZeRO reckons with (Rajbhandari et al. 2020, arXiv:1910.02054,
section 3.1).

Activations are counted tensor by tensor, as Korthikanti et al. 2022 do (arXiv:2205.05198, section 4); for GPT's block with
dropout and plain attention the count is their s·b·h·(34 + 5·a·s/h), equation 2, to the byte. What is recomputed in the backward
pass instead of being kept is their choice of three:

- `none`: nothing, so the softmax of the scores stays, T values a head and token;
- `selective`: attention's core, which is what a fused attention does: queries, keys, values, its output, and one number a head
  and token stay. It is what herdbook's own attention does, on every device;
- `full`: whole blocks, so that only the input of each stays, and all of one block while it is recomputed. It costs a second
  forward pass, a third more FLOPs.

Fused or compiled code keeps less than PyTorch's single operations: what RMSNorm has in float32 and the product inside SwiGLU
are computed again. `eager=True` counts those too; with it the count is what torch's saved tensors add up to on a CPU, within
2 % for every family of the catalogue (`tests/plan/test_memory.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from herdbook.model.config import ModelConfig

Recompute = Literal["none", "selective", "full"]
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")
STATE_BYTES = {"weights": 4, "gradients": 4, "optimizer": 8}  # float32; AdamW keeps two moments


@dataclass(frozen=True)
class Precision:
    """Bytes a parameter of each part of the state, and bytes a value of the activations.

    Attributes:
        casts: 16-bit copies of the matrices, kept from forward to backward.
        values: bytes of an activation.
        products: the rate that products go at, as `Device.peak` calls it.
    """

    name: str
    what: str
    weights: int
    casts: int
    gradients: int
    optimizer: int
    values: int
    products: str

    @property
    def state(self) -> int:
        """Bytes a parameter of weights, gradients and optimizer."""
        return self.weights + self.gradients + self.optimizer


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("mixed", "float32 weights, products in 16 bits: how herdbook trains", 4, 2, 4, 8, 2, "bf16"),
        Precision("zero", "16-bit weights and gradients, float32 copies in the optimizer (ZeRO, section 3.1)",
                  2, 0, 2, 12, 2, "bf16"),
        Precision("fp32", "all in float32", 4, 0, 4, 8, 4, "fp32"),
        Precision("bf16", "all in bfloat16, moments too: least memory, and worse results", 2, 0, 2, 4, 2, "bf16"),
    )
}  # fmt: skip


def training_memory(model: ModelConfig, tokens: int, bytes_per_value: int = 2) -> dict[str, int]:
    """Bytes of weights, gradients, optimizer, and of the activations of forward passes over `tokens` tokens."""
    state = {name: size * model.parameters() for name, size in STATE_BYTES.items()}
    return {**state, "activations": activation_bytes(model, tokens, bytes_per_value)}


def cast_bytes(model: ModelConfig, bytes_per_value: int = 2) -> int:
    """Bytes of the copies of all matrices in the type of the activations; none when that is float32."""
    matrices = model.parameters_non_embedding() + model.vocabulary * model.embed_width
    return matrices * bytes_per_value if bytes_per_value < 4 else 0


def activation_bytes(
    model: ModelConfig,
    tokens: int,
    bytes_per_value: int = 2,
    *,
    recompute: Recompute = "selective",
    context: int | None = None,
    eager: bool = False,
) -> int:
    """Bytes that the forward pass over `tokens` tokens keeps for the backward pass.

    After the blocks come the last norm, and the logits in float32 with their gradient (8·V).

    Args:
        bytes_per_value: 2 for bf16, 4 for float32.
        context: tokens a sequence, for what grows with its square (default: the model's longest).
        eager: count what single operations keep and fused ones do not.
    """
    length = context or model.context
    block = block_bytes(model, bytes_per_value, recompute="none" if recompute == "none" else "selective", context=length,
                        eager=eager)  # fmt: skip
    if recompute == "full":
        blocks = model.n_layers * bytes_per_value * model.d_model + block
    else:
        blocks = model.n_layers * block
    ends = _norm_bytes(model, 1, 1, bytes_per_value, eager) if model.norm_place == "pre" else 0
    ends += _norm_bytes(model, 1, 1, bytes_per_value, eager) if model.embed_norm else 0
    ends += 2 * bytes_per_value * model.embed_width if model.embed_width != model.d_model else 0
    # Without a fused kernel ALiBi is a matrix of biases, made once for all layers and sequences.
    bias = 4 * model.n_heads * length**2 if eager and model.positions == "alibi" else 0
    return tokens * (blocks + ends + 8 * model.vocabulary) + bias


def block_bytes(
    model: ModelConfig, bytes_per_value: int, *, recompute: Literal["none", "selective"], context: int, eager: bool = False
) -> int:
    """Bytes a token that one block keeps.

    The inputs and outputs of its norms (2·D each), queries, keys and values ((H + 2·K)·E), the output of attention (H·E), what
    goes into and comes out of the activation (2·F; with a gate 3·F, with ReLU only F), and a byte of mask for each value that
    dropout drew on.
    """
    wide = model.n_heads * model.head_width
    narrow = model.kv_heads * model.head_width
    norms = 1 if model.block == "parallel_one_norm" else 2
    size = _norm_bytes(model, 1 if model.block != "sequential" else 2, norms, bytes_per_value, eager)
    values = 2 * wide + 2 * narrow
    values += wide + narrow if model.qk_norm else 0
    values += wide + 2 * narrow if model.clip_qkv is not None else 0
    values += wide if eager and model.positions == "rope" else 0  # the output, copied into the order of the next product
    # ReLU's backward pass reads its output, which the next product keeps anyway.
    inner = {"relu": 1, "swiglu": 4 if eager else 3}.get(model.activation, 2)
    size += bytes_per_value * (values + inner * model.ff_width)
    dropped = 1 if model.dropout else 0
    size += 2 * dropped * model.d_model
    if recompute == "none":
        return size + model.n_heads * context * (bytes_per_value + dropped * (1 + bytes_per_value))
    return size + 4 * model.n_heads  # the logarithm of the softmax's sum, float32


def _norm_bytes(model: ModelConfig, streams: int, norms: int, bytes_per_value: int, eager: bool) -> int:
    """Bytes a token of what `norms` norms over `streams` different inputs keep: the inputs, and the outputs for the matrices.

    Outside low precision a norm works in float32: single operations keep its input converted, and RMSNorm, which is made of
    several, the normalised value before it is scaled too.
    """
    outputs = norms * bytes_per_value * model.d_model
    if not eager or model.norm == "layernorm_low_precision":
        return outputs + streams * bytes_per_value * model.d_model
    inputs = streams if bytes_per_value == 4 else norms  # in float32 two norms share the stream itself
    scaled = norms if model.norm == "rmsnorm" else 0
    return outputs + 4 * (inputs + scaled) * model.d_model
