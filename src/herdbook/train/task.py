"""What the loop asks of a task, and what a run of the loop is given and gives back.

A task is what is learned: pre-training here, fine-tuning in `align/`. It turns a step into micro-batches and a micro-batch
into a loss; how weights change, when checkpoints are written and what is shown is the loop's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from herdbook.model.decoder import Decoder

MicroBatch = dict[str, Tensor]


class Task(Protocol):
    """What is learned.

    Attributes:
        name: one word, for messages.
        steps: updates of the weights in the whole task.
        tokens_per_step: tokens a step computes on, as counted for speed and budget.
    """

    @property
    def name(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def tokens_per_step(self) -> int: ...

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """The data of step 0 … steps-1 as CPU tensors: a pure function of `step`. May be called from another thread."""

    def loss(self, model: Decoder, batch: MicroBatch) -> tuple[Tensor, int]:
        """The sum of the losses over the trained tokens of a micro-batch on the model's device, and their number."""

    def parts(self, model: Decoder) -> list[nn.Module]:
        """The modules worth compiling, each by itself; equal ones share their code, so cold time does not grow with depth."""

    def describe(self) -> dict[str, Any]:
        """Facts about the task for its pedigree."""


@dataclass(frozen=True)
class Setting:
    """What the loop cannot find out by itself.

    Attributes:
        identity: settings and hashes of inputs that decide which model comes out; a checkpoint of another is refused.
        flops_per_token: of training, for the share of the machine's peak.
        peak_flops: measured rate of the machine for the precision in use, FLOP/s; None leaves that share out.
        bytes_per_token: text bytes a token stands for, to show bits per byte; None leaves them out.
        validate: looks at held-out text: {"val_loss": nats a token, "val_bits_per_byte": …}; None looks at none.
        micro_batch: sequences computed at once, kept with checkpoints.
        resume_hint: the words that tell a person how to go on after an interruption.
    """

    identity: dict[str, Any]
    flops_per_token: float
    peak_flops: float | None = None
    bytes_per_token: float | None = None
    validate: Callable[[Decoder], dict[str, float]] | None = None
    micro_batch: int | None = None
    resume_hint: str = "run the same command again to go on from there"


@dataclass(frozen=True)
class Outcome:
    """How a run of the loop ended.

    Attributes:
        steps, tokens: of the whole run, earlier parts of a resumed one included.
        final_loss: nats a token, mean of the last tenth of the steps (at most 50), which says more than one noisy batch.
        train_s: seconds spent in steps, compilation and checkpoints aside.
        validation: the last look at held-out text.
    """

    steps: int
    tokens: int
    final_loss: float | None
    train_s: float
    tokens_per_s: float
    mfu: float | None
    validation: dict[str, float] = field(default_factory=dict)
