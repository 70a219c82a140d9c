"""How much memory serving a model takes: its weights, and the key/value cache of the sequences it is writing.

Weights count by their precision. `int8` and `int4` are those of GGUF's Q8_0 and Q4_0, where 32 weights share a scale of 16
bits: 8.5 and 4.5 bits a weight; beside 4 bits the embedding and the head are Q8_0, as our GGUF files have them. The cache
stays in 16 bits, in 32 for fp32. What the runtime itself takes comes on top: some hundred megabytes, and the activations of
the batch it is reading.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from herdbook.errors import UserError
from herdbook.model.config import ModelConfig

BITS = {"fp32": 32.0, "bf16": 16.0, "fp16": 16.0, "int8": 8.5, "int4": 4.5}


@dataclass(frozen=True)
class Serving:
    """Memory to serve a model, in bytes."""

    precision: str
    weights: int
    cache: int
    context: int
    sequences: int

    @property
    def total(self) -> int:
        """Weights and cache."""
        return self.weights + self.cache

    def as_dict(self) -> dict[str, Any]:
        """The numbers as plain JSON."""
        return {**asdict(self), "total": self.total}


def serving_memory(model: ModelConfig, precision: str = "bf16", *, context: int | None = None, sequences: int = 1) -> Serving:
    """The memory that `sequences` sequences of `context` tokens (default: the model's) take.

    Raises UserError when the precision is not one of BITS.
    """
    if precision not in BITS:
        raise UserError(f"the precision {precision!r} is not known", where="--precision", todo=f"use one of {', '.join(BITS)}")
    length = context or model.context
    cache = model.kv_bytes_per_token(4 if precision == "fp32" else 2) * length * sequences
    tables = (1 if model.tied else 2) * model.vocabulary * model.embed_width
    few = BITS["int8"] if precision == "int4" else BITS[precision]
    weights = ((model.parameters() - tables) * BITS[precision] + tables * few) / 8
    return Serving(precision=precision, weights=round(weights), cache=round(cache), context=length, sequences=sequences)
