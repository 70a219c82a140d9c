"""How a run uses the machine it is on: device, precision, threads, and whether to compile.

What `auto` comes to is decided once, when a run begins, and kept in its checkpoints, because another precision or compiled
code rounds differently and a resumed run has to repeat the uninterrupted one bit for bit.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from torch import nn

from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.pedigree import cores
from herdbook.plan.peak import cpu_flags, measure_peak, training_dtype
from herdbook.train.config import LoopConfig
from herdbook.train.memory import keep_freed
from herdbook.units import human_seconds

# Compiling costs 10-40 s and makes a step about 1.4 times as fast: it wins time from about this much eager training on.
COMPILE_WORTH_S = 90.0
# The share of the measured matrix peak that training of small models reaches, as it is and compiled.
EAGER_MFU, COMPILED_MFU = 0.3, 0.45


@dataclass(frozen=True)
class Machine:
    """The decisions of a run.

    Attributes:
        device: "cpu" or "cuda".
        precision: "float32" or "bfloat16", of activations and products.
        threads: processor threads of torch.
        compiled: whether the task's parts are compiled.
    """

    device: str
    precision: Literal["float32", "bfloat16"]
    threads: int
    compiled: bool

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    def peak_flops(self) -> float:
        """The measured rate of matrix products for this precision and these threads, FLOP/s; takes a second, once."""
        with _products(self):
            return _peak(self.dtype, self.threads, self.device)

    def expected_flops(self) -> float:
        """The rate that training will come to, FLOP/s: the peak times the share of it that small models reach."""
        return self.peak_flops() * (COMPILED_MFU if self.compiled else EAGER_MFU)

    def as_dict(self) -> dict[str, Any]:
        """The decisions as plain JSON."""
        return asdict(self)


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> str:
    """ "cuda" when it is there or asked for, else "cpu". Raises UserError when it is asked for and absent."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "no CUDA device is usable here", where="device", todo="set device=cpu, or install a CUDA build of torch"
        )
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def compiler_at_hand(device: str) -> bool:
    """Whether torch.compile can work: Triton for GPUs, a C++ compiler for CPUs."""
    if device == "cuda":
        from torch.utils._triton import has_triton

        return bool(has_triton())
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "c++"))


def default_threads() -> int:
    """What OMP_NUM_THREADS says, as launchers of several processes set it, else all cores we may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) else cores()


def decide(cfg: LoopConfig, *, flops: float, before: dict[str, Any] | None = None) -> Machine:
    """The decisions for a run: what the config says, else what the run's checkpoint says, else what is best here.

    Args:
        flops: of the whole run; a long one is worth compiling.
        before: `Machine.as_dict()` of the run that is resumed.

    Raises UserError when a device is asked for that is not there.
    """
    before = before or {}
    device = choose_device(before.get("device", "auto") if cfg.device == "auto" else cfg.device)
    precision = cfg.precision if cfg.precision != "auto" else before.get("precision") or training_dtype(device)
    machine = Machine(device, precision, cfg.threads or before.get("threads") or default_threads(), compiled=False)
    if cfg.compile != "auto":
        machine = replace(machine, compiled=cfg.compile)
    elif "compiled" in before:
        machine = replace(machine, compiled=before["compiled"])
    else:
        worth = compiler_at_hand(device) and flops / (EAGER_MFU * machine.peak_flops()) > COMPILE_WORTH_S
        machine = replace(machine, compiled=worth)
    if machine.compiled and device == "cpu":
        threading.Thread(target=_try_compiler, name="compiler", daemon=True).start()
    return machine


def _try_compiler() -> None:
    """Have Inductor find out which vector instructions its compiler can use, while the model is made and data are opened.

    It compiles and runs a program for each kind, 8 s the first time, one after the other, and remembers on disk what it found.
    Here they run beside each other. Whatever is wrong shows, and is dealt with, when the model is compiled.
    """
    with suppress(Exception):
        from torch._inductor import cpu_vec_isa as inductor

        features = inductor.x86_isa_checker()
        kinds = [isa for isa in inductor.supported_vec_isa_list if set(str(isa).split()) <= set(features)]
        with ThreadPoolExecutor(max(1, len(kinds))) as pool:
            list(pool.map(bool, kinds))
        inductor.pick_vec_isa()


@cache
def _peak(dtype: torch.dtype, threads: int, device: str) -> float:
    return measure_peak(dtype, threads, device=device)


@contextmanager
def settings(machine: Machine) -> Iterator[None]:
    """Threads, kernels and memory for a run; as before when the block ends."""
    with _products(machine), keep_freed():
        yield


@contextmanager
def _products(machine: Machine) -> Iterator[None]:
    """Threads and float32 product kernels.

    On processors with AVX-512 but no AMX, "medium" makes oneDNN do float32 products twice as fast as the default library at
    the same accuracy (relative error 5e-7, measured on AMD Zen); with AMX it may round to bfloat16, so there it stays off.
    On GPUs "high" allows TF32.
    """
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(machine.threads)
    if machine.device == "cuda":
        torch.set_float32_matmul_precision("high")
    elif "avx512f" in cpu_flags() and not any(flag.startswith("amx") for flag in cpu_flags()):
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


def compile_parts(parts: list[nn.Module], probe: Callable[[], None], terminal: Terminal) -> bool:
    """Compile modules in place and try them with `probe` (a forward and a backward); False when that fails.

    On failure a warning is given and the modules run uncompiled, as before.
    """
    started = time.monotonic()
    try:
        for part in parts:
            part.compile()
        with terminal.progress("compiling (the first time takes up to a minute)") as progress:
            progress.advance(0)
            probe()
    except Exception as error:
        for part in parts:
            for module in part.modules():
                module._compiled_call_impl = None
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        terminal.warn(f"torch.compile did not work here ({reason[:200]}); training goes on without it, which is slower")
        return False
    terminal.say(f"  compiled in {human_seconds(time.monotonic() - started)}", style="dim")
    return True
