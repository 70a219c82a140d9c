"""The parts of the loop's tests, in a file of their own so that a process that is going to be killed can load them too."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from herdbook.console import Terminal
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.train.batching import cut
from herdbook.train.config import LoopConfig
from herdbook.train.loop import open_run, train
from herdbook.train.losses import HeadLoss
from herdbook.train.machine import Machine
from herdbook.train.task import Loss, MicroBatch, Outcome, Setting, Task

SHAPE = ModelConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=2, context=16)


@dataclass
class Counting(Task):
    """Each sequence is a, a+1, a+2, … modulo 64, from a start that the step decides."""

    steps: int = 12
    sequences: int = 8
    micro_batch: int = 8
    name: str = "counting"
    head_loss: HeadLoss = field(default_factory=HeadLoss)
    left_out: list[tuple[int, int]] = field(default_factory=list)

    @property
    def tokens_per_step(self) -> int:
        return self.sequences * 16

    def micro_batches(self, step: int) -> list[MicroBatch]:
        shift = sum(count for at, count in self.left_out if at <= step)
        starts_B1 = np.random.default_rng([7, step * self.sequences + shift]).integers(0, 64, (self.sequences, 1))
        return cut({"tokens": torch.from_numpy((starts_B1 + np.arange(17)) % 64)}, self.micro_batch)

    def loss(self, model: Decoder, batch: MicroBatch) -> Loss:
        tokens_BT = batch["tokens"]
        rows_B, z = self.head_loss(model, model.hidden(tokens_BT[:, :-1]), tokens_BT[:, 1:])
        return Loss(rows_B.sum() + z, tokens_BT[:, 1:].numel(), {"loss": rows_B.sum().detach()})

    def leave_out(self, first: int, last: int) -> int:
        begin = sum(count for at, count in self.left_out if at <= first)
        end = sum(count for at, count in self.left_out if at <= last) + (last + 1 - first) * self.sequences
        self.left_out = [*((at, count) for at, count in self.left_out if at <= first), (first, end - begin)]
        return end - begin

    def documents(self, step: int) -> list[dict[str, Any]]:
        return [{"id": f"document of step {step + 1}"}]

    def parts(self, model: Decoder) -> list[nn.Module]:
        return [*model.blocks, self.head_loss]

    def describe(self) -> dict[str, Any]:
        return {"steps": self.steps}


def decoder(**changes: Any) -> Decoder:
    model = Decoder(SHAPE.model_copy(update=changes))
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def run(
    out: Path, *, task: Counting | None = None, terminal: Terminal | None = None, model: Decoder | None = None,
    machine: Machine | None = None, setting: Setting | None = None, **config: Any,
) -> Outcome:  # fmt: skip
    """The loop over a task in `out`, going on from a checkpoint there; with dropout, so that random numbers matter."""
    cfg = LoopConfig(**{"lr": 1e-2, "checkpoint_every_s": None, **config})
    setting = setting or Setting({"train": cfg.identity()}, flops_per_token=1e5)
    terminal = terminal or Terminal(quiet=True)
    with open_run(out, setting.identity, terminal) as checkpoint:
        return train(
            model or decoder(dropout=0.1), task or Counting(), cfg, setting, machine or Machine("cpu", "float32", 1, False),
            out, terminal, checkpoint=checkpoint,
        )  # fmt: skip
