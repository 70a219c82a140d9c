"""What the tests of parallel training run, in one process and under torchrun: shapes of the families, a small loop.

As a script: `torchrun … spread.py JOB OUT` does one of `JOBS` and leaves what the main process found in `OUT/JOB-SIZE.json`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter

from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.train import checkpoint
from herdbook.train.checkpoint import CheckpointWriter, find_checkpoint, load_checkpoint, save_checkpoint
from herdbook.train.config import LoopConfig
from herdbook.train.losses import HeadLoss, sum_loss
from herdbook.train.optim import build_optimizers
from herdbook.train.parallel.config import ParallelConfig
from herdbook.train.parallel.gradients import collect_gradients, gradient_norm, settle
from herdbook.train.parallel.shard import (
    Spread,
    collect_decoder,
    empty_decoder,
    held,
    materialize,
    parallelize,
    whole_parameters,
)
from herdbook.train.parallel.world import World, joined

CONTEXT, SEQUENCES, SEED, CLIP, STEPS = 16, 8, 3, 0.5, 3
MICRO_BATCHES = 2  # of each process
Z_LOSS = 1e-2  # large, so that a gradient without it would show
PASSED_ON = {"llama2-70b": "adamw", "falcon-7b": "muon"}  # muon is two optimizers
TINY = {"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 4, "context": CONTEXT}
SHAPES = {
    "llama2-70b": {"n_kv_heads": 2, "tied": False},
    "falcon-7b": {"n_kv_heads": 1, "block": "parallel_one_norm", "norm": "layernorm", "norm_bias": True, "activation": "gelu"},
    "bloom": {"positions": "alibi", "embed_norm": True, "norm": "layernorm", "bias": True, "activation": "gelu_tanh"},
    "mpt": {"positions": "alibi", "norm": "layernorm_low_precision", "activation": "gelu", "clip_qkv": 6.0},
    "opt-350m": {"positions": "learned", "position_offset": 2, "norm": "layernorm", "bias": True, "activation": "relu",
                 "norm_place": "post", "embed_dim": 16},
    "neox": {"block": "parallel_two_norms", "norm": "layernorm", "bias": True, "rope_fraction": 0.25, "tied": False,
             "n_kv_heads": 2, "qk_norm": True, "activation": "gelu"},
}  # fmt: skip
PLAIN = {"sequence_parallel": False, "loss_parallel": False}
# By the number of processes: layouts, and which shapes to try each with; the first two are for all else.
LAYOUTS: dict[int, dict[str, dict[str, Any]]] = {
    2: {"fsdp 2": {}, "tensor 2": {"tensor": 2}, "tensor 2, plain": {"tensor": 2, **PLAIN},
        "fsdp 2, kept": {"reshard_after_forward": False}, "copies 2": {"shard": "none", "replicate": 2}},
    4: {"hsdp 2x2": {"replicate": 2}, "tensor 2 x fsdp 2": {"tensor": 2}, "tensor 4": {"tensor": 4},
        "tensor 2 x copies 2, plain": {"tensor": 2, "replicate": 2, **PLAIN}},
}  # fmt: skip
TRIED = {
    "fsdp 2": [*SHAPES], "tensor 2": [*SHAPES], "tensor 2, plain": [*SHAPES],
    "fsdp 2, kept": ["llama2-70b"], "copies 2": ["llama2-70b"],
    "hsdp 2x2": ["llama2-70b", "bloom"], "tensor 2 x fsdp 2": ["llama2-70b", "falcon-7b", "bloom", "opt-350m"],
    "tensor 4": ["llama2-70b", "falcon-7b", "neox"], "tensor 2 x copies 2, plain": ["llama2-70b"],
}  # fmt: skip


def two_layouts(world: World) -> list[tuple[str, dict[str, Any]]]:
    return list(LAYOUTS[world.size].items())[:2]


def shape(name: str) -> ModelConfig:
    return ModelConfig(**{**TINY, **SHAPES[name]})


def whole_decoder(name: str) -> Decoder:
    model = Decoder(shape(name))
    model.init_weights(torch.Generator().manual_seed(SEED))
    return model


def step_tokens(step: int, data_ranks: int) -> list[Tensor]:
    """The micro-batches of a step, in the order of one process."""
    tokens_BT = torch.randint(0, 64, (SEQUENCES, CONTEXT + 1), generator=torch.Generator().manual_seed(step))
    return list(tokens_BT.chunk(MICRO_BATCHES * data_ranks))


@dataclass
class Run:
    """A model on its way: what the loop does with it, without what the loop shows and logs."""

    model: Decoder
    spread: Spread
    world: World
    optimizer: str = "adamw"
    step: int = 0

    def __post_init__(self) -> None:
        self.optimizers = build_optimizers(self.model, LoopConfig(lr=3e-3, optimizer=self.optimizer))
        self.head_loss = HeadLoss(z_loss=Z_LOSS)

    def steps(self, count: int) -> list[tuple[float, float]]:
        """Loss and gradient norm of each of the next steps."""
        return [self._update() for _ in range(count)]

    def _update(self) -> tuple[float, float]:
        summed, trained = 0.0, 0
        layout = self.spread.layout
        every = step_tokens(self.step, layout.data_ranks)
        size, first = len(every) // layout.data_ranks, layout.data_rank(self.spread.rank)
        mine = every[first * size : (first + 1) * size]
        for number, tokens_BT in enumerate(mine):
            collect_gradients(self.model, last=number == len(mine) - 1)
            with self.spread.step():
                x_BTD = self.model.hidden(tokens_BT[:, :-1])
                rows_B, z = (held(part) for part in self.head_loss(self.model, x_BTD, tokens_BT[:, 1:]))
                torch.autograd.backward(rows_B.sum() + z)
            summed, trained = summed + rows_B.sum().item(), trained + tokens_BT[:, 1:].numel()
        summed, tokens = self.world.total(summed, trained, counted=self.spread.counts)
        gradients = settle(self.model)
        norm = gradient_norm(self.model, gradients, self.world) / tokens
        torch._foreach_mul_(gradients, min(1.0, CLIP / norm) / tokens)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return summed / tokens, norm

    def save(self, out: Path) -> None:
        save_checkpoint(out, self.step, self.model, self.optimizers, {"seed": SEED}, keep=9, world=self.world)

    def load(self, out: Path) -> None:
        found = self.world.from_main(lambda: find_checkpoint(out, Terminal(quiet=True)))
        assert found is not None
        load_checkpoint(found, self.model, self.optimizers, self.world)
        self.step = found.step

    def weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in whole_parameters(self.model)}


def alone(name: str, optimizer: str = "adamw") -> Run:
    return Run(whole_decoder(name), Spread(), World(), optimizer)


def spread_out(
    name: str, world: World, layout: dict[str, Any], optimizer: str = "adamw", dtype: torch.dtype = torch.float32
) -> Run:
    cfg = ParallelConfig(**layout)
    places = cfg.layout(world.size)
    cfg.require_fit(places, shape(name), sequences=SEQUENCES)
    model = empty_decoder(shape(name))
    spread = parallelize(model, cfg, places, world, dtype)
    materialize(model, world.device, SEED)
    model.compute_dtype = dtype
    return Run(model, spread, world, optimizer)


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference between two sets of weights."""
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def torchrun(size: int, jobs: str, out: Path) -> subprocess.CompletedProcess[str]:
    """The jobs in `size` processes, or in one without torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"] if size > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"}
    command = [sys.executable, *launcher, __file__, jobs, out]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


# ---- jobs ----


def curves(world: World, out: Path) -> Iterator[tuple[str, Any]]:
    """Shapes in layouts: how far the weights they start from are off, and losses and norms of the first steps."""
    for layout, settings in LAYOUTS[world.size].items():
        for name in TRIED[layout]:
            run = spread_out(name, world, settings)
            start = apart(run.weights(), dict(whole_decoder(name).named_parameters()))
            yield f"{name}, {layout}", {"start": start, "steps": run.steps(STEPS)}


def precision(world: World, out: Path) -> Iterator[tuple[str, Any]]:
    for layout, settings in two_layouts(world):
        yield layout, spread_out("llama2-70b", world, settings, dtype=torch.bfloat16).steps(STEPS)


def optimizers(world: World, out: Path) -> Iterator[tuple[str, Any]]:
    for optimizer in ("lion", "muon"):
        for layout, settings in two_layouts(world):
            yield f"{optimizer}, {layout}", spread_out("llama2-70b", world, settings, optimizer).steps(STEPS)


def pass_on(world: World, out: Path) -> Iterator[tuple[str, Any]]:
    """Go on from what `out` holds, in one layout after the other, each from the checkpoint of the one before."""
    for name, optimizer in PASSED_ON.items():
        for layout, settings in two_layouts(world):
            run = spread_out(name, world, settings, optimizer)
            run.load(out / name)
            steps = run.steps(2)
            run.save(out / name)
            yield f"{name}, {layout}", {"from": run.step - 2, "steps": steps}


def looks(world: World, out: Path) -> Iterator[tuple[str, Any]]:
    """Held-out text of odd widths and in documents, and training after it; the whole model at the end."""
    for layout, settings in two_layouts(world):
        run = spread_out("bloom", world, settings)
        run.steps(1)
        run.model.eval()
        looked = [sum_loss(run.model, *held_out(width), documents_BT=documents(width))[0] for width in (5, 16)]
        run.model.train()
        after = run.steps(1)
        sum_loss(run.model, *held_out(7))
        whole = collect_decoder(run.model, world)
        assert (whole is None) == (world.rank > 0)
        gone_on = None
        if whole is not None:
            gone_on = [sum_loss(whole, *held_out(11))[0], apart(dict(whole.named_parameters()), run_alone("bloom", 2))]
        yield layout, {"looked": looked, "after": after, "whole": gone_on}


def held_out(width: int) -> tuple[Tensor, Tensor]:
    tokens_BT = torch.randint(0, 64, (3, width + 1), generator=torch.Generator().manual_seed(width))
    return tokens_BT[:, :-1], tokens_BT[:, 1:]


def documents(width: int) -> Tensor:
    return (torch.arange(width) // 3).expand(3, -1)


def run_alone(name: str, steps: int) -> dict[str, Tensor]:
    run = alone(name)
    run.steps(steps)
    return dict(run.model.named_parameters())


def agreement(world: World, out: Path) -> Iterator[tuple[str, Any]]:
    yield "total", world.total(world.rank + 1, 0.5, counted=world.rank > 0)
    yield "most", world.most(float(world.rank), -float(world.rank))
    yield "from main", world.gather(world.from_main(lambda: f"said by {world.rank}"))
    yield "told", world.gather(_refused(lambda: world.from_main(_broken)))
    mine = UserError("my disk is full", where=out) if world.rank == world.size - 1 else None
    yield "met", world.gather(_refused(lambda: world.require_all(mine)))
    world.barrier()


def _broken() -> None:
    raise UserError("it does not fit", where="here", todo="mend it")


def _refused(work: Callable[[], Any]) -> str:
    try:
        work()
    except UserError as error:
        return error.render()
    return "not refused"


def background(world: World, out: Path) -> Iterator[tuple[str, Any]]:
    """Training goes on while a checkpoint is written; what is in it is the moment it was asked for."""
    gate = threading.Event()
    written, asked = checkpoint._write_slices, []

    def slow(*given: Any) -> Any:
        asked.append(gate.wait(60))
        return written(*given)

    checkpoint._write_slices = slow
    run = spread_out("mpt", world, {})
    writer = CheckpointWriter(out / "background", run.model, run.optimizers, keep=2, world=world)
    run.steps(2)
    writer.save(2, {})
    after = run.steps(2)
    yield "before", [path.name for path in (out / "background").glob("checkpoint-*")]
    gate.set()
    writer.finish()
    checkpoint._write_slices = written
    again = spread_out("mpt", world, {})
    again.load(out / "background")
    yield "waited", asked
    yield "same", again.steps(2) == after
    writer.close()


def killed(world: World, out: Path) -> Iterator[tuple[str, Any]]:
    """Die, all of a sudden, while the second checkpoint is being written in the background."""
    run = spread_out("mpt", world, {})
    writer = CheckpointWriter(out / "killed", run.model, run.optimizers, keep=2, world=world)
    run.steps(2)
    writer.save(2, {})
    writer.finish()
    hashed = checkpoint._hash_file

    def die(path: Path) -> str:
        if world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return hashed(path)

    checkpoint._hash_file = die
    run.steps(2)
    writer.save(4, {})
    run.steps(50)
    writer.finish()
    yield "survived", True


def failing(world: World, out: Path) -> Iterator[tuple[str, Any]]:
    """A process that cannot write: all are told, at the next save, and the folder is as it was."""
    run = spread_out("mpt", world, {})
    writer = CheckpointWriter(out / "failing", run.model, run.optimizers, keep=2, world=world)
    writer.save(1, {})
    writer.finish()
    written = FileSystemWriter.write_data

    def full(*given: Any) -> Any:
        if world.rank == world.size - 1:
            raise OSError(28, "No space left on device")
        return written(*given)

    FileSystemWriter.write_data = full  # type: ignore[method-assign]
    writer.save(2, {})
    told = "nothing"
    try:
        writer.save(3, {})
    except OSError as error:
        told = str(error.strerror)
    yield "told", world.gather(told)
    FileSystemWriter.write_data = written  # type: ignore[method-assign]
    yield "kept", world.from_main(lambda: sorted(path.name for path in (out / "failing").iterdir()))
    writer.save(4, {})
    writer.finish()
    yield "there", sorted(path.name for path in (out / "failing").iterdir())
    writer.close()


JOBS: dict[str, Callable[[World, Path], Iterator[tuple[str, Any]]]] = {
    job.__name__: job
    for job in (curves, precision, optimizers, pass_on, looks, agreement, background, killed, failing)
}  # fmt: skip


def main(jobs: list[str], out: Path) -> None:
    with joined("cpu") as world:
        for job in jobs:
            began = time.perf_counter()
            found = dict(JOBS[job](world, out))
            if world.is_main:
                print(f"{job}: {time.perf_counter() - began:.1f} s", file=sys.stderr)
            if world.is_main:
                (out / f"{job}-{world.size}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1].split(","), Path(sys.argv[2]))
