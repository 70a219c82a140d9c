"""The one training loop: pre-training and all that follows are tasks of it.

A step: the task's micro-batches one after the other, gradients summed; one multiplication that makes the sum the mean over
all tokens trained on and clips it; AdamW. So the result does not depend on how a step is cut into micro-batches.

A run cut off at any moment and started again gives the same numbers as one that was not, bit for bit on one machine: data
and random numbers are pure functions of (seed, step), a checkpoint holds everything else, and the decisions `auto` came to
are kept with it.
"""

from __future__ import annotations

import fcntl
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from herdbook import pedigree
from herdbook.console import Progress, Terminal
from herdbook.errors import Interrupted, UserError
from herdbook.files import remove_partials, require_space
from herdbook.model.decoder import Decoder
from herdbook.train.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, require_same, save_checkpoint
from herdbook.train.config import LoopConfig
from herdbook.train.interrupt import StopRequest
from herdbook.train.machine import Machine, compile_parts, settings
from herdbook.train.metrics import MetricsLog, read_metrics
from herdbook.train.optim import build_optimizer, finish_gradients, set_learning_rate
from herdbook.train.progress import Pace, progress_line
from herdbook.train.schedule import learning_rate, warmup_steps
from herdbook.train.task import MicroBatch, Outcome, Setting, Task

CHECKPOINT_BYTES = 12  # a parameter: itself and AdamW's two moments, float32


def train(
    model: Decoder, task: Task, cfg: LoopConfig, setting: Setting, machine: Machine, out: Path, terminal: Terminal,
    *, checkpoint: Checkpoint | None = None,
) -> Outcome:  # fmt: skip
    """Train `model` in place, from `checkpoint` on or from the start; on return it is trained and a last checkpoint written.

    Args:
        machine: device, precision, threads, compilation; see `train.machine.decide`.
        out: where checkpoints and `metrics.jsonl` go.
        checkpoint: of this very run, from `open_run`.

    Raises:
        UserError: the loss is no longer finite, or the checkpoint does not fit. Interrupted: SIGINT or SIGTERM, all saved.
    """
    with ExitStack() as stack:
        stack.enter_context(settings(machine))
        stop = stack.enter_context(StopRequest())
        loop = _Loop(model, task, cfg, setting, machine, out, terminal, stop)
        stack.callback(loop.close)
        return loop.run(checkpoint)


@contextmanager
def open_run(out: Path, identity: dict[str, Any], terminal: Terminal) -> Iterator[Checkpoint | None]:
    """Take hold of a run's folder; gives the checkpoint to go on from, or None.

    Raises UserError when another process trains here, or what is here was made with other settings or inputs.
    """
    out.mkdir(parents=True, exist_ok=True)
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("another process is training here", where=out, todo="wait for it, or use out=DIR") from None
        remove_partials(out)
        checkpoint = find_checkpoint(out, terminal)
        if checkpoint is not None:
            require_same(checkpoint, identity)
        elif pedigree.exists(out):
            raise UserError("a model that was trained with other settings or inputs is here", where=out,
                            todo="choose another folder with out=DIR, or delete this one to start anew")  # fmt: skip
        yield checkpoint
    finally:
        os.close(handle)


@dataclass
class _Loop:
    model: Decoder
    task: Task
    cfg: LoopConfig
    setting: Setting
    machine: Machine
    out: Path
    terminal: Terminal
    stop: StopRequest
    step: int = 0
    saved_step: int = 0
    elapsed_s: float = 0.0
    validation: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.device = torch.device(self.machine.device)
        self.model.to(self.device).train()
        self.model.compute_dtype = self.machine.dtype
        self.optimizer = build_optimizer(self.model, self.cfg)
        self.steps = self.task.steps
        self.warmup = warmup_steps(self.cfg, self.steps, self.task.tokens_per_step)
        self.eval_every = self.cfg.eval_every or max(1, self.steps // 10)
        self.pace, self.loader = Pace(), ThreadPoolExecutor(1, thread_name_prefix="loader")
        self.log: MetricsLog | None = None

    def close(self) -> None:
        """Let go of the loader's thread and the log."""
        self.loader.shutdown(wait=False, cancel_futures=True)
        if self.log is not None:
            self.log.close()

    def run(self, checkpoint: Checkpoint | None) -> Outcome:
        """Train from `checkpoint`, or the start, to the end."""
        if checkpoint is not None:
            load_checkpoint(checkpoint, self.model, self.optimizer)
            self.step = self.saved_step = checkpoint.step
            self.elapsed_s = checkpoint.facts["elapsed_s"]
            self.validation = checkpoint.facts["validation"]
            self.terminal.say(f"  going on from step {self.step:,} of {self.steps:,}", style="dim")
        self._require_room(self.cfg.keep_checkpoints + 1)
        self.log = MetricsLog(self.out, self.step)
        if self.step < self.steps:
            self._compile()
            with self.terminal.progress(self.task.name) as progress:
                self._steps(progress)
        return self._outcome()

    def _compile(self) -> None:
        if not self.machine.compiled:
            return
        batch = self._to_device(self.task.micro_batches(self.step)[0])

        def probe() -> None:
            torch.autograd.backward(self.task.loss(self.model, batch)[0])
            self.optimizer.zero_grad()

        compile_parts(self.task.parts(self.model), probe, self.terminal)

    def _steps(self, progress: Progress) -> None:
        saved_at = time.monotonic()
        coming = self.loader.submit(self.task.micro_batches, self.step)
        while self.step < self.steps:
            began = time.perf_counter()
            batches = coming.result()
            if self.step + 1 < self.steps:
                coming = self.loader.submit(self.task.micro_batches, self.step + 1)
            row = self._update(batches)
            self._note(row, time.perf_counter() - began, progress)
            due = self.cfg.checkpoint_every is not None and self.step % self.cfg.checkpoint_every == 0
            due_s = self.cfg.checkpoint_every_s is not None and time.monotonic() - saved_at >= self.cfg.checkpoint_every_s
            if due or due_s or self.step == self.steps:
                self._save()
                saved_at = time.monotonic()
            if self.stop.received is not None:
                self._interrupted(self.stop.received)

    def _update(self, batches: list[MicroBatch]) -> dict[str, Any]:
        """One update of the weights; what to log of it."""
        step = self.step + 1
        torch.manual_seed(step_seed(self.cfg.seed, step))
        lr = learning_rate(step, self.cfg, steps=self.steps, warmup=self.warmup)
        set_learning_rate(self.optimizer, lr)
        total, tokens = torch.zeros((), device=self.device), 0
        for batch in batches:
            loss, trained = self.task.loss(self.model, self._to_device(batch))
            torch.autograd.backward(loss)
            total += loss.detach()
            tokens += trained
        if tokens == 0:
            raise ValueError(f"{self.task.name}: step {step} has nothing to train on")
        mean, norm = total.item() / tokens, finish_gradients(self.model, tokens, self.cfg.clip)
        if not (math.isfinite(mean) and math.isfinite(norm)):
            raise self._not_finite(step, mean, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step = step
        return {"step": step, "tokens": step * self.task.tokens_per_step, "loss": mean, "lr": lr, "grad_norm": norm}

    def _note(self, row: dict[str, Any], seconds: float, progress: Progress) -> None:
        """Log a step, look at held-out text when it is time, and show the live line."""
        self.elapsed_s += seconds
        self.pace.add(seconds)
        rate = self.task.tokens_per_step / seconds
        row |= {"tokens_per_s": round(rate, 1), "mfu": self._mfu(rate), "elapsed_s": round(self.elapsed_s, 3)}
        if self.setting.validate is not None and (self.step % self.eval_every == 0 or self.step == self.steps):
            self.model.eval()
            # Held-out batches have other shapes; compiling for them too would cost more than it saves.
            with torch.compiler.set_stance("force_eager"):
                self.validation = self.setting.validate(self.model)
            self.model.train()
            row |= self.validation
        assert self.log is not None
        self.log.write(row)
        rate = self.task.tokens_per_step / self.pace.step_s
        progress.show(
            progress_line(
                step=self.step,
                steps=self.steps,
                loss=row["loss"],
                bytes_per_token=self.setting.bytes_per_token,
                tokens_per_s=rate,
                mfu=self._mfu(rate),
                left_s=(self.steps - self.step) * self.pace.step_s,
            )
        )

    def _mfu(self, tokens_per_s: float) -> float | None:
        if self.setting.peak_flops is None:
            return None
        return round(tokens_per_s * self.setting.flops_per_token / self.setting.peak_flops, 4)

    def _to_device(self, batch: MicroBatch) -> MicroBatch:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def _require_room(self, checkpoints: int) -> None:
        size = sum(parameter.numel() for parameter in self.model.parameters())
        noun = "a checkpoint" if checkpoints == 1 else "training, with its checkpoints,"
        require_space(self.out, checkpoints * size * CHECKPOINT_BYTES, purpose=noun)

    def _save(self) -> None:
        if self.saved_step == self.step:
            return
        self._require_room(1)
        assert self.log is not None
        self.log.sync()
        facts = {"seed": self.cfg.seed, "elapsed_s": self.elapsed_s, "validation": self.validation,
                 "identity": self.setting.identity, "machine": self.machine.as_dict(),
                 "micro_batch": self.setting.micro_batch}  # fmt: skip
        save_checkpoint(self.out, self.step, self.model, self.optimizer, facts, keep=self.cfg.keep_checkpoints)
        self.saved_step = self.step

    def _interrupted(self, number: int) -> None:
        self._save()
        raise Interrupted(
            f"stopped after step {self.step:,} of {self.steps:,}; a checkpoint is in {self.out}",
            todo=self.setting.resume_hint, signal_number=number,
        )  # fmt: skip

    def _not_finite(self, step: int, loss: float, norm: float) -> UserError:
        kept = f"the checkpoint of step {self.saved_step:,} is kept" if self.saved_step else "no checkpoint was written yet"
        return UserError(
            f"training broke down at step {step:,}: the loss is {loss} and the gradient's norm {norm}; {kept}",
            where=self.out, todo="lower lr, or lengthen warmup, and train into another folder",
        )  # fmt: skip

    def _outcome(self) -> Outcome:
        rows = read_metrics(self.out / "metrics.jsonl")
        last = rows[-min(50, max(1, self.steps // 10)) :]
        rate = self.steps * self.task.tokens_per_step / self.elapsed_s if self.elapsed_s else 0.0
        return Outcome(
            steps=self.steps,
            tokens=self.steps * self.task.tokens_per_step,
            final_loss=sum(row["loss"] for row in last) / len(last) if last else None,
            train_s=round(self.elapsed_s, 3),
            tokens_per_s=round(rate, 1),
            mfu=self._mfu(rate),
            validation=self.validation,
        )


def step_seed(seed: int, step: int) -> int:
    """The seed of dropout and the like in one step: another for each (seed, step), the same on every machine."""
    return (seed * 1_000_003 + step * 7_919 + 0x5EED) % 2**63
