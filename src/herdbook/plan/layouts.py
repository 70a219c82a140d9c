"""Layouts: how training is spread over devices, what each device then holds, and which layout to take.

G devices are T-fold tensor parallel (inside a node) times N-fold data parallel, G = T·N. The data parallel ones hold

- `ddp`: everything, each of them;
- `zero1`: 1/N of the optimizer's state; `zero2`: also 1/N of the gradients; both move as many bytes a step as ddp;
- `fsdp` (ZeRO-3): also 1/N of the weights, and gather a block when it is computed: half as many bytes again.

Rajbhandari et al. 2020 (arXiv:1910.02054), sections 5 and 7. Tensor parallelism divides the state by T, and with its sequence
parallelism all activations too: Korthikanti et al. 2022 (arXiv:2205.05198), section 4.2.2.

What is taken is the first that fits of an order that puts what costs least time in front: no recomputation beyond what a fused
attention does before full recomputation (a third more FLOPs), fewer tensor parallel devices (their traffic cannot hide behind
computation) before more, less sharding before more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from herdbook.facts.devices import Device
from herdbook.model.config import ModelConfig
from herdbook.plan.memory import Precision, Recompute, activation_bytes, cast_bytes

Sharding = Literal["ddp", "zero1", "zero2", "fsdp"]
SHARDINGS: tuple[Sharding, ...] = ("ddp", "zero1", "zero2", "fsdp")
USABLE = 0.9  # of a device's memory; the rest is for the driver, communication buffers and fragments. vLLM's default, too
TENSOR = (1, 2, 4, 8)


@dataclass(frozen=True)
class Layout:
    """One way to spread training.

    Attributes:
        data: devices among which the batch is divided; `tensor`: devices that share each product.
    """

    sharding: Sharding
    data: int
    tensor: int
    recompute: Recompute

    @property
    def title(self) -> str:
        """As people write it: `fsdp 4 × tp 2`."""
        parts = [f"{self.sharding} {self.data}"] if self.data > 1 else []
        parts += [f"tp {self.tensor}"] if self.tensor > 1 else []
        return " × ".join(parts) or "one device"


@dataclass(frozen=True)
class Held:
    """Bytes on each device. `casts` are the 16-bit copies of the weights, under fsdp the blocks gathered at a time."""

    weights: float
    casts: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def state(self) -> float:
        """All that does not depend on the batch."""
        return self.weights + self.casts + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        """The sum."""
        return self.state + self.activations

    def as_dict(self) -> dict[str, Any]:
        """The numbers as plain JSON."""
        return {**asdict(self), "total": self.total}


def held(model: ModelConfig, layout: Layout, precision: Precision, *, context: int, micro_batch: int = 1) -> Held:
    """What each device holds; `micro_batch` is the sequences of `context` tokens computed at once by a data parallel rank."""
    n, t = layout.data, layout.tensor
    share = {part: n if SHARDINGS.index(layout.sharding) >= rank else 1
             for part, rank in (("optimizer", 1), ("gradients", 2), ("weights", 3))}  # fmt: skip
    parameters = model.parameters() / t
    gathered = layout.sharding == "fsdp" and n > 1
    casts = _gathered(model, precision) / t if gathered else (cast_bytes(model, precision.values) if precision.casts else 0) / t
    tokens = micro_batch * context
    kept = activation_bytes(model, tokens, precision.values, recompute=layout.recompute, context=context)
    return Held(
        weights=precision.weights * parameters / share["weights"],
        casts=casts,
        gradients=precision.gradients * parameters / share["gradients"],
        optimizer=precision.optimizer * parameters / share["optimizer"],
        activations=kept / t,
    )


def _gathered(model: ModelConfig, precision: Precision) -> float:
    """Bytes that fully sharded training holds whole for a moment: the tables with their gradients, the block that is computed
    and the next one that is fetched meanwhile, and the gradients of one block."""
    tables = model.parameters() - model.parameters_non_embedding()
    block = model.parameters_non_embedding() / model.n_layers
    return precision.values * (2 * tables + 3 * block)


def layouts(model: ModelConfig, devices: int, node: int) -> Iterator[Layout]:
    """All layouts over so many devices, in the order they are preferred.

    Tensor parallelism stays within a node, and divides the heads.
    """
    for recompute in ("selective", "full"):
        for tensor in TENSOR:
            if tensor > node or devices % tensor or model.n_heads % tensor:
                continue
            for sharding in SHARDINGS if devices > tensor else SHARDINGS[:1]:
                yield Layout(sharding, devices // tensor, tensor, recompute)


def choose(
    model: ModelConfig, device: Device, devices: int, precision: Precision, *, context: int, micro_batch: int = 1,
    usable: float = USABLE,
) -> Layout | None:  # fmt: skip
    """The first layout that fits the usable memory; None where none does."""
    room = usable * device.memory
    for layout in layouts(model, devices, device.node):
        if held(model, layout, precision, context=context, micro_batch=micro_batch).total <= room:
            return layout
    return None


def largest_micro_batch(
    model: ModelConfig, layout: Layout, device: Device, precision: Precision, *, context: int, usable: float = USABLE
) -> int:
    """The most sequences that a layout computes at once in the usable memory; 0 when not even one fits."""
    one, two = (held(model, layout, precision, context=context, micro_batch=size).total for size in (1, 2))
    room = usable * device.memory - one
    return 1 + int(room / (two - one)) if room >= 0 else 0


def fewest_devices(
    model: ModelConfig, device: Device, precision: Precision, *, context: int, usable: float = USABLE
) -> int | None:
    """The smallest power of two of devices on which some layout fits one sequence; None beyond 65,536."""
    for power in range(17):
        if choose(model, device, 2**power, precision, context=context, usable=usable) is not None:
            return int(2**power)
    return None
