"""How much memory serving a model takes: its weights, and the key/value cache of the sequences it is writing.

Weights count by their precision. `int8` and `int4` are those of GGUF's Q8_0 and Q4_0, where 32 weights share a scale of 16
bits: 8.5 and 4.5 bits a weight; beside 4 bits the embedding and the head are Q8_0, as our GGUF files have them. The cache
stays in 16 bits, in 32 for fp32; it is kept whole, behind a sliding window too. What the runtime itself takes comes on top:
some hundred megabytes, and the activations of the batch it is reading.

A text is written token by token, and every step reads all weights and all caches once (of a model with a window, what the
window shows of them), so a device writes at most bandwidth / (weights + caches) tokens a second in each sequence, and at most
peak / (2·N·sequences) (Pope et al. 2022, arXiv:2211.05102, section 3). `largest_served` turns that around, as MosaicML did when
they sized MPT-30B for one A100-80GB in 16 bits (mosaicml/mpt-30b, model card): the largest model that fits a device and is
still fast enough.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from herdbook.errors import UserError
from herdbook.facts.devices import Device
from herdbook.model.config import ModelConfig
from herdbook.plan.shapes import DEEPEST, shape

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


@dataclass(frozen=True)
class Served:
    """A model on a device.

    Attributes:
        need: its memory, with the caches at their full length.
        room: bytes of the device that may be used.
        speed: tokens/s of each sequence at most, with full caches; `bound` says by what: "bandwidth" or "products".
    """

    model: ModelConfig
    need: Serving
    room: float
    speed: float
    bound: str

    @property
    def fits(self) -> bool:
        """Whether there is room."""
        return self.need.total <= self.room

    def as_dict(self) -> dict[str, Any]:
        """The numbers as plain JSON."""
        return {
            "parameters": self.model.parameters(), "layers": self.model.n_layers, "width": self.model.d_model,
            "memory": self.need.as_dict(), "room": self.room, "fits": self.fits, "tokens_per_s": self.speed,
            "bound": self.bound,
        }  # fmt: skip


def served(
    model: ModelConfig, device: Device, precision: str = "bf16", *, context: int | None = None, sequences: int = 1,
    usable: float = 0.9, bandwidth_share: float = 1.0,
) -> Served:  # fmt: skip
    """How a model does on one device. Raises UserError for a precision that is none."""
    need = serving_memory(model, precision, context=context, sequences=sequences)
    seen = min(model.window or need.context, need.context) / need.context  # of the cache, by each step
    read = device.bandwidth * bandwidth_share / (need.weights + need.cache * seen)
    # Quantised weights are multiplied in 16 bits by most engines, so their products go at that rate.
    peak = device.peak("fp32" if precision == "fp32" else "bf16")[1]
    multiplied = peak / (model.flops_per_token(need.context, training=False) * sequences)
    bound = "bandwidth" if read <= multiplied else "products"
    return Served(model, need, usable * device.memory, min(read, multiplied), bound)


def largest_served(
    judge: Callable[[ModelConfig], Served], *, like: ModelConfig, speed: float | None = None
) -> tuple[Served, str]:
    """The largest shape of the dial (`herdbook.plan.shapes`) that fits and gives each sequence `speed` tokens/s, and what keeps
    the next one out: "memory" or "speed".

    Args:
        judge: how a shape does, `served` with its device and the rest.

    Raises UserError when not even one layer does.
    """
    best, stopped = None, "memory"
    for depth in range(1, DEEPEST + 1):
        found = judge(shape(depth, like))
        if not found.fits or (speed is not None and found.speed < speed):
            stopped = "speed" if found.fits else "memory"
            break
        best = found
    if best is None:
        raise UserError(f"not even one layer can be served: {stopped} does not suffice",
                        todo="take a shorter context, fewer sequences, a lower speed, or a larger device")  # fmt: skip
    return best, stopped
