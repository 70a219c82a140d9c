"""The processes of a run: who am I, and how do we agree.

`torchrun` starts the processes and tells each its number in the environment; `joined` reads it. Without torchrun there is one
process, and everything here works and costs nothing. Decisions (stop, save, give up) are made from numbers that are the
same on every process, because one that went another way would leave the others waiting for it.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.launched import launched

T = TypeVar("T")
TIMEOUT_S = 1800.0  # of a collective: longer than compiling, validation or one slow checkpoint may take


@dataclass(frozen=True)
class World:
    """One process among the processes of a run.

    Attributes:
        rank, size: its number, and how many there are.
        local_rank: its number on its machine.
        device: "cpu", or "cuda" (its own GPU is the current one).
        background: a group of its own for what goes on beside training (checkpoints); None with one process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: str = "cpu"
    background: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that speaks, logs and renames."""
        return self.rank == 0

    def quiet(self, terminal: Terminal) -> Terminal:
        """The terminal for the main process, one that only warns for the others."""
        return terminal if self.is_main else Terminal(quiet=True)

    def total(self, *numbers: float, counted: bool = True) -> list[float]:
        """Sums over all processes, the same on each, in float64.

        Args:
            counted: False on a process whose numbers another one gives already (the parts of one matrix share a loss).
        """
        return self._reduce([number if counted else 0.0 for number in numbers], dist.ReduceOp.SUM)

    def most(self, *numbers: float) -> list[float]:
        """The largest of each number over all processes, the same on each: what one has met, all act on."""
        return self._reduce(list(numbers), dist.ReduceOp.MAX)

    def _reduce(self, numbers: list[float], how: dist.ReduceOp.RedOpType) -> list[float]:
        if self.size == 1:
            return numbers
        sums = torch.tensor(numbers, dtype=torch.float64)  # on the CPU, where gloo carries it beside what GPUs compute
        dist.all_reduce(sums, how)
        result: list[float] = sums.tolist()
        return result

    def from_main(self, work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
        """What `work` gives on the main process, on all of them. An error of it is raised on all."""
        if self.size == 1:
            return work()
        box: list[Any] = [None, None]
        if self.is_main:
            try:
                box[0] = work()
            except Exception as error:
                box[1] = _portable(error)
        dist.broadcast_object_list(box, src=0, group=group, device=torch.device("cpu"))
        if box[1] is not None:
            raise box[1]
        result: T = box[0]
        return result

    def gather(self, value: T, group: dist.ProcessGroup | None = None) -> list[T]:
        """The values of all processes, in their order, on all of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=group)
        return values

    def require_all(self, error: Exception | None, group: dist.ProcessGroup | None = None) -> None:
        """Raise the first error that any process has met, on all of them; None: this one has met none."""
        met = self.gather(None if error is None else _portable(error), group)
        for rank, other in enumerate(met):
            if other is not None:
                if error is None:
                    other.add_note(f"(met by process {rank})")
                raise error or other

    def barrier(self) -> None:
        """Wait until all are here. Raises RuntimeError, which names who is missing, when that takes too long."""
        if self.size > 1:
            dist.monitored_barrier(group=self.background, timeout=timedelta(seconds=TIMEOUT_S), wait_all_ranks=True)


def _portable(error: Exception) -> Exception:
    """An error that can be sent: itself when pickle takes it there and back, else its words."""
    import pickle

    if isinstance(error, UserError):
        return error
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@contextmanager
def joined(device: str | None = None, *, timeout_s: float = TIMEOUT_S) -> Iterator[World]:
    """Join the processes that torchrun started; they part when the block ends. One process without torchrun.

    Args:
        device: "cpu" or "cuda"; None: "cuda" where there is one.
        timeout_s: how long a process may be waited for before the run gives up.

    Raises UserError when there are more processes on this machine than GPUs.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not launched():
        yield World(device=device)
        return
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(f"process {local + 1} of this machine has no GPU: there are {torch.cuda.device_count()}",
                            todo="start as many processes as there are GPUs (torchrun --nproc-per-node)")  # fmt: skip
        torch.cuda.set_device(local)
    _hush()
    patience = timedelta(seconds=timeout_s)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=patience)
    try:
        background = dist.new_group(backend="gloo", timeout=patience) if size > 1 else None
        yield World(rank, size, local, device, background)
    finally:
        dist.destroy_process_group()


def _hush() -> None:
    """Keep torch from warning, once a process, of what we know and do right."""
    # Views that a block gives out: nothing of ours changes them in place.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
    # Weights cut both ways are collected in two goes, when a whole model is written.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    # Compiled code in which processes talk to each other is not kept for the next run.
    for name in ("torch._inductor.codecache", "torch._functorch._aot_autograd.autograd_cache"):
        logging.getLogger(name).setLevel(logging.ERROR)
