"""What the loop asks of a task, and what a run of the loop is given and gives back.

A task is what is learned: pre-training here, fine-tuning in `align/`. It turns a step into micro-batches and a micro-batch
into a loss; how weights change, when checkpoints are written and what is shown is the loop's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from herdbook.errors import UserError
from herdbook.model.decoder import Decoder

MicroBatch = dict[str, Tensor]


class Loss(NamedTuple):
    """What a micro-batch gives.

    Attributes:
        total: what is differentiated: summed over the trained tokens.
        tokens: how many are trained on; a tensor where counting them on the device saves waiting for it.
        sums: what is logged, detached, summed over tokens: `loss` is the cross-entropy; a task may add others, which
            `Task.report` turns into what people read.
    """

    total: Tensor
    tokens: int | Tensor
    sums: dict[str, Tensor]


class Task(ABC):
    """What is learned.

    Attributes:
        name: one word, for messages.
        steps: updates of the weights in the whole task.
        tokens_per_step: tokens a step of full size computes on, as counted for speed and budget.
        micro_batch: sequences computed at once.
        share: (number, of how many): which part of each step's sequences this process takes.
        left_out: of (step, sequences): so many sequences are passed over from that step on, see `leave_out`.
    """

    name: str
    steps: int
    micro_batch: int
    share: tuple[int, int] = (0, 1)
    left_out: list[tuple[int, int]]

    @property
    @abstractmethod
    def tokens_per_step(self) -> int: ...

    @abstractmethod
    def micro_batches(self, step: int) -> list[MicroBatch]:
        """The data of step 0 … steps-1 as CPU tensors: a pure function of `step`, `share` and `left_out`. May be called from
        another thread."""

    @abstractmethod
    def loss(self, model: Decoder, batch: MicroBatch) -> Loss:
        """The losses over the trained tokens of a micro-batch on the model's device."""

    @abstractmethod
    def parts(self, model: Decoder) -> list[nn.Module]:
        """The modules worth compiling, each by itself; equal ones share their code, so cold time does not grow with depth."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Facts about the task for its pedigree."""

    def tokens_after(self, steps: int) -> int:
        """Tokens of the first `steps` steps."""
        return steps * self.tokens_per_step

    def report(self, sums: dict[str, Tensor]) -> dict[str, Any]:
        """What to log of a step beside its loss, from the `Loss.sums` of all its micro-batches."""
        return {}

    def documents(self, step: int) -> list[dict[str, Any]]:
        """What the data of a step is from, for the record of a step that went wrong."""
        return []

    def leave_out(self, first: int, last: int) -> int:
        """Never train on the data of steps `first` … `last`: step `first` takes what follows. Gives the sequences left out.

        Raises UserError where a task cannot.
        """
        raise UserError(f"{self.name} cannot leave data out", where="stability", todo="take `skip` instead of `rewind`")


@dataclass(frozen=True)
class Setting:
    """What the loop cannot find out by itself.

    Attributes:
        identity: settings and hashes of inputs that decide which model comes out; a checkpoint of another is refused.
        flops_per_token: of training, for the share of the machine's peak.
        peak_flops: measured rate of the machine for the precision in use, FLOP/s; None leaves that share out.
        bytes_per_token: text bytes a token stands for, to show bits per byte; None leaves them out.
        validate: looks at held-out text: {"val_loss": nats a token, "val_bits_per_byte": …}; None looks at none.
        resume_hint: the words that tell a person how to go on after an interruption.
    """

    identity: dict[str, Any]
    flops_per_token: float
    peak_flops: float | None = None
    bytes_per_token: float | None = None
    validate: Callable[[Decoder], dict[str, float]] | None = None
    resume_hint: str = "run the same command again to go on from there"


@dataclass(frozen=True)
class Outcome:
    """How a run of the loop ended.

    Attributes:
        steps, tokens: of the whole run, earlier parts of a resumed one included.
        final_loss: nats a token, mean of the last tenth of the steps (at most 50), which says more than one noisy batch.
        train_s: seconds spent in steps, compilation and checkpoints aside.
        skipped, rewinds: steps without an update, and returns to a checkpoint, for losses gone wrong.
        energy_kwh: as measured or estimated, see `energy`.
        validation: the last look at held-out text.
    """

    steps: int
    tokens: int
    final_loss: float | None
    train_s: float
    tokens_per_s: float
    mfu: float | None
    skipped: int = 0
    rewinds: int = 0
    energy_kwh: float | None = None
    validation: dict[str, float] = field(default_factory=dict)
