"""The one training loop: pre-training and all that follows are tasks of it.

A step: the task's micro-batches one after the other, gradients summed; one multiplication that makes the sum the mean over
all tokens trained on and clips it; the optimizer. So the result does not depend on how a step is cut into micro-batches. A step
whose loss is no finite number, or leaps, is skipped or rewound from, see `stability`.

A run cut off at any moment and started again gives the same numbers as one that was not, bit for bit on one machine: data
and random numbers are pure functions of (seed, step), a checkpoint holds everything else, and the decisions `auto` came to
are kept with it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from herdbook import pedigree
from herdbook.console import Progress, Terminal
from herdbook.errors import Interrupted, UserError
from herdbook.files import remove_partials, require_space
from herdbook.model.decoder import Decoder
from herdbook.model.quantized import require_dense
from herdbook.train.checkpoint import Checkpoint, CheckpointWriter, find_checkpoint, load_checkpoint, require_same
from herdbook.train.config import LoopConfig
from herdbook.train.energy import EnergyMeter
from herdbook.train.interrupt import StopRequest
from herdbook.train.machine import Machine, compile_parts, settings
from herdbook.train.memory import recompute, to_float8
from herdbook.train.metrics import METRICS, MetricsLog, read_metrics
from herdbook.train.optim import STATE_BYTES, build_optimizers, finish_gradients, set_learning_rate
from herdbook.train.parallel.gradients import collect_gradients
from herdbook.train.parallel.shard import Spread
from herdbook.train.parallel.world import World
from herdbook.train.progress import Pace, Table, progress_line
from herdbook.train.schedule import learning_rate, warmup_tokens
from herdbook.train.stability import Trouble, Watch, last_rewind, log_event, read_events
from herdbook.train.task import MicroBatch, Outcome, Setting, Task
from herdbook.train.trackers import Trackers
from herdbook.train.watchdog import Watchdog

WRITTEN_AT_ONCE = 64 << 20  # bytes; a smaller checkpoint is written sooner than a thread would be worth
RANK_SEEDS = 0x9E3779B1  # between the seeds of one step on two processes


def train(
    model: Decoder, task: Task, cfg: LoopConfig, setting: Setting, machine: Machine, out: Path, terminal: Terminal,
    *, checkpoint: Checkpoint | None = None, world: World | None = None, spread: Spread | None = None,
) -> Outcome:  # fmt: skip
    """Train `model` in place, from `checkpoint` on or from the start; on return it is trained and a last checkpoint written.

    Args:
        machine: device, precision, threads, compilation; see `train.machine.decide`.
        out: where checkpoints and `metrics.jsonl` go.
        checkpoint: of this very run, from `open_run`.
        world, spread: the processes of the run, all of which call this, and how `model` lies over them.

    Raises:
        UserError: the loss is no longer finite, or the checkpoint does not fit. Interrupted: SIGINT or SIGTERM, all saved.
    """
    with ExitStack() as stack:
        stack.enter_context(settings(machine))
        stop = stack.enter_context(StopRequest())
        loop = _Loop(model, task, cfg, setting, machine, out, terminal, stop, world or World(), spread or Spread())
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


class _Update(NamedTuple):
    """What became of a step: its row for the log, or what is wrong with it."""

    row: dict[str, Any]
    trouble: Trouble | None


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
    world: World
    spread: Spread
    step: int = 0
    saved_step: int = 0
    elapsed_s: float = 0.0
    validation: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_dense(self.model, "train")
        self.device = torch.device(self.machine.device)
        if self.world.size == 1:
            self.model.to(self.device)
        self.model.train()
        if self.cfg.float8:
            to_float8(self.model)
        recompute(self.model, self.cfg.recompute)
        self.task.share = (self.spread.layout.data_rank(self.world.rank), self.spread.layout.data_ranks)
        self.terminal = self.world.quiet(self.terminal)
        self.model.compute_dtype = self.machine.dtype
        self.optimizers = build_optimizers(self.model, self.cfg)
        self.steps = self.task.steps
        self.total = self.task.tokens_after(self.steps)
        self.warmup = warmup_tokens(self.cfg, self.total)
        self.eval_every = self.cfg.eval_every or max(1, self.steps // 10)
        self.watch = Watch(self.cfg.stability)
        self.energy = EnergyMeter(self.machine.device, self.cfg.power_w, self.world.size)
        self.pace, self.table = Pace(), Table(self.terminal, self.setting.bytes_per_token)
        self.loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        background = self._checkpoint_bytes() > WRITTEN_AT_ONCE
        self.writer = CheckpointWriter(
            self.out, self.model, self.optimizers, keep=self.cfg.keep_checkpoints, world=self.world, background=background
        )
        self.log: MetricsLog | None = None
        self.trackers: Trackers | None = None

    def close(self) -> None:
        """Let go of the threads and the logs; a checkpoint under way is finished."""
        self.loader.shutdown(wait=False, cancel_futures=True)
        self.writer.close()
        for log in (self.log, self.trackers):
            if log is not None:
                log.close()

    def run(self, checkpoint: Checkpoint | None) -> Outcome:
        """Train from `checkpoint`, or the start, to the end."""
        if checkpoint is not None:
            self._restore(checkpoint)
            self.terminal.say(f"  going on from step {self.step:,} of {self.steps:,}", style="dim")
        self._require_room(self.cfg.keep_checkpoints + 1)
        self._open_logs()
        if self.step < self.steps:
            if checkpoint is None and "rewind" in (self.cfg.stability.nonfinite, self.cfg.stability.spike):
                self._save(first=True)
            self._compile()
            with self.terminal.progress(self.task.name) as progress, Watchdog(self.out, self.cfg.hang_after_s) as dog:
                self._steps(progress, dog)
            self.writer.finish()
        return self._outcome()

    def _open_logs(self) -> None:
        if not self.world.is_main:
            return
        if self.log is not None:
            self.log.close()
        self.log = MetricsLog(self.out, self.step)
        self.trackers = self.trackers or Trackers(self.cfg.trackers, self.out, self.setting.identity, self.terminal)

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Be as the run was when it wrote a checkpoint, but for data that it has been rewound from since."""
        facts = checkpoint.facts
        load_checkpoint(checkpoint, self.model, self.optimizers, self.world)
        self.step = self.saved_step = checkpoint.step
        self.elapsed_s, self.validation = facts["elapsed_s"], facts["validation"]
        self.energy.joules = facts.get("joules", 0.0)
        self.watch = Watch(self.cfg.stability, facts.get("stability"))
        left_out = facts.get("left_out", [])
        rewind = last_rewind(read_events(self.out), self.step, self.watch.rewinds)
        if rewind is not None:
            left_out, self.watch.rewinds = rewind["left_out"], rewind["rewinds"]
        self.task.left_out = [(int(step), int(sequences)) for step, sequences in left_out]

    def _compile(self) -> None:
        if not self.machine.compiled:
            return
        batch = self._to_device(self.task.micro_batches(self.step)[0])

        def probe() -> None:
            torch.autograd.backward(self.task.loss(self.model, batch).total)
            self._zero()

        compile_parts(self.task.parts(self.model), probe, self.terminal)

    def _steps(self, progress: Progress, dog: Watchdog) -> None:
        saved_at = time.monotonic()
        coming = self.loader.submit(self.task.micro_batches, self.step)
        while self.step < self.steps:
            began = time.perf_counter()
            batches = coming.result()
            if self.step + 1 < self.steps:
                coming = self.loader.submit(self.task.micro_batches, self.step + 1)
            row, trouble = self._update(batches)
            if trouble is not None:
                self._react(trouble)
                if trouble.action == "rewind":
                    coming = self.loader.submit(self.task.micro_batches, self.step)
                    continue
            self._note(row, time.perf_counter() - began, progress)
            dog.alive()
            due = self.cfg.checkpoint_every is not None and self.step % self.cfg.checkpoint_every == 0
            due_s = self.cfg.checkpoint_every_s is not None and time.monotonic() - saved_at >= self.cfg.checkpoint_every_s
            # What one process decides, all do: clocks and signals differ.
            stop, late = self.world.most(self.stop.received or 0, due_s)
            if due or late or self.step == self.steps:
                self._save()
                saved_at = time.monotonic()
                dog.alive()
            if stop:
                self._interrupted(int(stop))

    def _update(self, batches: list[MicroBatch]) -> _Update:
        """One update of the weights, unless something is wrong with it."""
        step = self.step + 1
        torch.manual_seed(step_seed(self.cfg.seed, step) + self.spread.dropout_rank * RANK_SEEDS)
        tokens_seen = self.task.tokens_after(step)
        lr = learning_rate(tokens_seen, self.cfg, total=self.total, warmup=self.warmup)
        set_learning_rate(self.optimizers, lr)
        tokens, sums = self._gradients(batches)
        if tokens == 0:
            raise ValueError(f"{self.task.name}: step {step} has nothing to train on")
        mean, norm = sums["loss"].item() / tokens, finish_gradients(self.model, tokens, self.cfg.clip, self.world)
        row = {"step": step, "tokens": tokens_seen, "loss": mean, "lr": lr, "grad_norm": norm, **self.task.report(sums)}
        trouble = self.watch.judge(mean, norm)
        if trouble is None:
            for optimizer in self.optimizers:
                optimizer.step()
        elif trouble.action == "skip":
            row = {"step": step, "tokens": tokens_seen, "loss": None, "lr": lr, "grad_norm": None, "skipped": trouble.kind}
        self._zero()
        if trouble is None or trouble.action == "skip":
            self.step = step
        return _Update(row, trouble)

    def _gradients(self, batches: list[MicroBatch]) -> tuple[int, dict[str, Tensor]]:
        """Sum gradients over a step's micro-batches; the trained tokens and what is to be logged, summed too.

        A micro-batch that memory does not hold is made half as large, for this step and all that follow.
        """
        while True:
            if len(next(iter(batches[0].values()))) > self.task.micro_batch:  # fetched before they were made smaller
                batches = self.task.micro_batches(self.step)
            tokens: int | Tensor = 0
            sums: dict[str, Tensor] = {}
            try:
                for number, batch in enumerate(batches, 1):
                    collect_gradients(self.model, last=number == len(batches))
                    with self.spread.step():
                        loss = self.task.loss(self.model, self._to_device(batch))
                        torch.autograd.backward(loss.total)
                    tokens = tokens + loss.tokens
                    for name, value in loss.sums.items():
                        sums[name] = sums[name] + value if name in sums else value
                return self._over_all(int(tokens), sums)
            except (RuntimeError, MemoryError) as error:
                alone = self.world.size == 1  # others would wait for this process in the middle of the step
                if not alone or not is_out_of_memory(error) or self.cfg.micro_batch != "auto" or self.task.micro_batch == 1:
                    raise
            self._zero()
            self.task.micro_batch = max(1, self.task.micro_batch // 2)
            self.terminal.warn(f"memory ran out; going on with micro-batches of {self.task.micro_batch} sequences")

    def _over_all(self, tokens: int, sums: dict[str, Tensor]) -> tuple[int, dict[str, Tensor]]:
        """The same, added up over all processes."""
        if self.world.size == 1:
            return tokens, sums
        shapes = {name: value.shape for name, value in sums.items()}
        flat = torch.cat([sums[name].detach().double().flatten().cpu() for name in shapes])
        counted, *numbers = self.world.total(tokens, *flat.tolist(), counted=self.spread.counts)
        parts = torch.split(torch.tensor(numbers, dtype=torch.float64), [shape.numel() for shape in shapes.values()])
        return int(counted), {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}

    def _zero(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def _react(self, trouble: Trouble) -> None:
        """Skip the step, go back to the last checkpoint, or stop; said to people, and written down with the documents."""
        step = self.step if trouble.action == "skip" else self.step + 1
        event = {"event": trouble.action, "step": step, "kind": trouble.kind, "detail": trouble.detail}
        checkpoint = self._last_checkpoint() if trouble.action == "rewind" else None
        if trouble.action == "stop" or (trouble.action == "rewind" and checkpoint is None):
            self._log_event({**event, "event": "stop", "documents": self.task.documents(step - 1)})
            raise self._broke_down(step, trouble.detail)
        self.watch.note(trouble)
        if checkpoint is None:
            self._log_event({**event, "documents": self.task.documents(step - 1)})
            self.terminal.warn(f"step {step:,} is skipped: {trouble.detail}")
            return
        documents = [{"step": at + 1, **row} for at in range(checkpoint.step, step) for row in self.task.documents(at)]
        rewinds, sequences = self.watch.rewinds, self.task.leave_out(checkpoint.step, step - 1)
        self._log_event({**event, "to_step": checkpoint.step, "sequences": sequences, "left_out": self.task.left_out,
                         "rewinds": rewinds, "documents": documents})  # fmt: skip
        self._restore(checkpoint)
        self._open_logs()
        self.terminal.warn(
            f"step {step:,} went wrong ({trouble.detail}): back to step {checkpoint.step:,}, "
            f"and the {sequences:,} sequences since are left out"
        )

    def _last_checkpoint(self) -> Checkpoint | None:
        self.writer.finish()
        return self.world.from_main(lambda: find_checkpoint(self.out, self.terminal))

    def _log_event(self, event: dict[str, Any]) -> None:
        if self.world.is_main:
            log_event(self.out, event)
        self.world.barrier()  # `_restore` reads it on all

    def _note(self, row: dict[str, Any], seconds: float, progress: Progress) -> None:
        """Log a step, look at held-out text when it is time, and show the live line."""
        self.elapsed_s += seconds
        self.pace.add(seconds)
        self.energy.add()
        tokens = self.task.tokens_after(self.step) - self.task.tokens_after(self.step - 1)
        rate = tokens / seconds
        row |= {"tokens_per_s": round(rate, 1), "mfu": self._mfu(rate), "elapsed_s": round(self.elapsed_s, 3)}
        if self.energy.kwh is not None:
            row["energy_kwh"] = round(self.energy.kwh, 6)
        if self.setting.validate is not None and (self.step % self.eval_every == 0 or self.step == self.steps):
            row |= self._validate(self.setting.validate)
        if self.log is not None and self.trackers is not None:
            self.log.write(row)
            self.trackers.write(row)
        if self.step % self.eval_every == 0 or self.step == self.steps:
            self.table.add(row, self.steps)
        rate = tokens / self.pace.step_s
        progress.show(
            progress_line(
                step=self.step,
                steps=self.steps,
                loss=row["loss"],
                bytes_per_token=self.setting.bytes_per_token,
                tokens_per_s=rate,
                mfu=self._mfu(rate),
                left_s=(self.total - self.task.tokens_after(self.step)) / rate,
            )
        )

    def _validate(self, look: Callable[[Decoder], dict[str, float]]) -> dict[str, float]:
        self.model.eval()
        # Held-out batches have other shapes; compiling for them too would cost more than it saves.
        with torch.compiler.set_stance("force_eager"):
            self.validation = look(self.model)
        self.model.train()
        return self.validation

    def _mfu(self, tokens_per_s: float) -> float | None:
        if self.setting.peak_flops is None:
            return None
        return round(tokens_per_s * self.setting.flops_per_token / self.setting.peak_flops, 4)

    def _to_device(self, batch: MicroBatch) -> MicroBatch:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def _require_room(self, checkpoints: int) -> None:
        noun = "a checkpoint" if checkpoints == 1 else "training, with its checkpoints,"
        self.world.from_main(lambda: require_space(self.out, checkpoints * self._checkpoint_bytes(), purpose=noun))

    def _checkpoint_bytes(self) -> int:
        return self.model.cfg.parameters() * STATE_BYTES[self.cfg.optimizer]

    def _save(self, first: bool = False) -> None:
        if self.saved_step == self.step and not first:
            return
        self._require_room(1)
        if self.log is not None:
            self.log.sync()
        facts = {"seed": self.cfg.seed, "elapsed_s": self.elapsed_s, "joules": self.energy.joules,
                 "validation": self.validation, "stability": self.watch.state(), "left_out": self.task.left_out,
                 "identity": self.setting.identity, "machine": self.machine.as_dict(),
                 "micro_batch": self.task.micro_batch}  # fmt: skip
        self.writer.save(self.step, facts)
        self.saved_step = self.step

    def _interrupted(self, number: int) -> None:
        self._save()
        self.writer.finish()
        raise Interrupted(
            f"stopped after step {self.step:,} of {self.steps:,}; a checkpoint is in {self.out}",
            todo=self.setting.resume_hint, signal_number=number,
        )  # fmt: skip

    def _broke_down(self, step: int, detail: str) -> UserError:
        kept = f"the checkpoint of step {self.saved_step:,} is kept" if self.saved_step else "no checkpoint was written yet"
        return UserError(
            f"training broke down at step {step:,}: {detail}; {kept}",
            where=self.out, todo="lower lr or lengthen warmup, in another folder; events.jsonl here names the documents",
        )  # fmt: skip

    def _outcome(self) -> Outcome:
        rows = read_metrics(self.out / METRICS) if self.world.is_main else []
        last = [row["loss"] for row in rows[-min(50, max(1, self.steps // 10)) :] if row["loss"] is not None]
        rate = self.total / self.elapsed_s if self.elapsed_s else 0.0
        return Outcome(
            steps=self.steps,
            tokens=self.total,
            final_loss=sum(last) / len(last) if last else None,
            train_s=round(self.elapsed_s, 3),
            tokens_per_s=round(rate, 1),
            mfu=self._mfu(rate),
            skipped=self.watch.skipped,
            rewinds=self.watch.rewinds,
            energy_kwh=self.energy.kwh,
            validation=self.validation,
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a computation failed because memory ran out, of the device or of the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)


def step_seed(seed: int, step: int) -> int:
    """The seed of dropout and the like in one step: another for each (seed, step), the same on every machine."""
    return (seed * 1_000_003 + step * 7_919 + 0x5EED) % 2**63
