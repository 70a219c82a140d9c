"""The measured peak: how many FLOP/s this machine's matrix product reaches, about a second's worth of trying.

A share of this peak says how well a training step uses the machine. A datasheet's figure is not used: for a laptop there often
is none, and a container may have been given two of a hundred cores. float32 is measured as torch is set at that moment
(`torch.set_float32_matmul_precision`), so measure under the settings that are trained with.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from herdbook.facts.devices import HERE, Device

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

BUDGET_S = 1.0
HERE_MFU = 0.45
SIDES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}


# What the system calls the instructions that make bfloat16 products faster than float32: x86, then ARM.
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def training_dtype(device: str = "cpu") -> Literal["float32", "bfloat16"]:
    """The type whose matrix products are fastest on a device and good enough to train in."""
    if device != "cpu":
        return "bfloat16"
    return "bfloat16" if BFLOAT16_FLAGS & cpu_flags() else "float32"


def cpu_flags() -> frozenset[str]:
    """The features this processor announces; none where the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return frozenset()
    flags = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(flags, []))


def measure_peak(dtype: torch.dtype | str, threads: int | None = None, *, device: str = "cpu") -> float:
    """The best FLOP/s of square matrix products, in the form linear layers use (x · Wᵀ).

    Args:
        dtype: torch dtype or its name, "float32" or "bfloat16".
        threads: how many torch may use (default: as many as it does now); set back afterwards.
        device: "cpu" or "cuda".

    Raises ValueError for a name that is no dtype.
    """
    import torch

    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(kind, torch.dtype):
        raise ValueError(f"{dtype!r} is not a torch dtype")
    sides = SIDES.get(torch.device(device).type, SIDES["cpu"])
    with _threads(threads), torch.no_grad():
        return max(_rate(side, kind, device, BUDGET_S / len(sides)) for side in sides)


def _rate(side: int, dtype: torch.dtype, device: str, budget_s: float) -> float:
    """The best FLOP/s of products of `side` by `side` matrices tried for `budget_s` seconds, at least twice."""
    import torch

    x = torch.randn(side, side, device=device).to(dtype)
    w = torch.randn(side, side, device=device).to(dtype)
    best, tries, started = 0.0, 0, time.perf_counter()
    while tries < 3 or time.perf_counter() - started < budget_s:
        begun = time.perf_counter()
        torch.nn.functional.linear(x, w)
        if x.device.type != "cpu":
            torch.cuda.synchronize()
        if tries:  # the first one pays for start-up
            best = max(best, 2 * side**3 / (time.perf_counter() - begun))
        tries += 1
    return best


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Use `count` threads in torch while the block runs."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_bandwidth(device: str = "cpu") -> float:
    """The best bytes/s at which memory is read, by looking for the largest of more values than caches hold: 256 MB of them, on
    GPUs 2 GB. torch's product of a matrix and a vector, which is what writing a text does, reaches less."""
    import torch

    count = 2**26 if torch.device(device).type == "cpu" else 2**29
    with torch.no_grad():
        x = torch.ones(count, device=device)
        best, tries, started = 0.0, 0, time.perf_counter()
        while tries < 3 or time.perf_counter() - started < BUDGET_S / 2:
            begun = time.perf_counter()
            x.max()
            if device != "cpu":
                torch.cuda.synchronize()
            if tries:
                best = max(best, 4 * count / (time.perf_counter() - begun))
            tries += 1
        return best


def measure_here() -> Device:
    """The machine this runs on as a device: memory as the system states it, peak and bandwidth measured, about two seconds."""
    import torch

    from herdbook import pedigree

    facts = pedigree.machine()
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    title, memory = f"{facts['cpu']}, {facts['cores']} cores", facts["memory_bytes"] or 0
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(0)
        title, memory = properties.name, properties.total_memory
    dtype = training_dtype(kind)
    rates = {"fp32": measure_peak("float32", device=kind)}
    if dtype == "bfloat16":
        rates["bf16"] = measure_peak(dtype, device=kind)
    return Device(
        name=HERE, title=f"this machine ({title})", memory=int(memory), flops=rates, bandwidth=measure_bandwidth(kind),
        source="measured now", node=torch.cuda.device_count() if kind == "cuda" else 1, mfu=HERE_MFU,
        mfu_source="what compiled training of small models reaches here; a run's own is in its metrics.jsonl",
        measured=True,
    )  # fmt: skip
