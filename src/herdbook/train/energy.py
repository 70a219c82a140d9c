"""What a run takes from the socket: measured where the machine says it, else estimated from watts that a person states.

Processors: Intel's and AMD's running average power limit counters, as Linux shows them; GPUs: the driver's power reading times
time. Both are the device's share alone, without memory of the host, disks, fans and cooling.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import torch

POWERCAP = Path("/sys/class/powercap")
JOULES_PER_KWH = 3.6e6

Source = Literal["measured", "estimated"]


class EnergyMeter:
    """Adds up energy between calls of `add`.

    Args:
        device: "cpu" or "cuda".
        watts: of one device under load, used where nothing is measured; None estimates nothing.
        devices: how many work like this one.
    """

    def __init__(self, device: str, watts: float | None, devices: int = 1, joules: float = 0.0) -> None:
        self.device, self.watts, self.devices, self.joules = device, watts, devices, joules
        self._counters = _counters() if device == "cpu" else []
        self._before = [_read(path) for path in self._counters]
        self._at = time.monotonic()
        self.source: Source | None = "measured" if self._counters or _gpu_watts(device) else "estimated" if watts else None

    @property
    def kwh(self) -> float | None:
        """Kilowatt-hours so far; None where nothing is known."""
        return None if self.source is None else self.joules / JOULES_PER_KWH

    def add(self) -> None:
        """Count what was taken since the last call."""
        now = time.monotonic()
        seconds, self._at = now - self._at, now
        if self._counters:
            after = [_read(path) for path in self._counters]
            # A counter that fell has gone round: what it counted since is lost, a minute's worth at most.
            self.joules += sum(max(0, new - old) for new, old in zip(after, self._before, strict=True)) / 1e6
            self._before = after
        else:
            self.joules += (_gpu_watts(self.device) or self.watts or 0.0) * seconds * self.devices


def _counters() -> list[Path]:
    """The counters of whole packages that may be read."""
    found = []
    for path in sorted(POWERCAP.glob("*-rapl:[0-9]*/energy_uj")):
        if path.parent.name.count(":") == 1:
            try:
                _read(path)
            except (OSError, ValueError):  # for the system's own eyes
                continue
            found.append(path)
    return found


def _read(path: Path) -> int:
    return int(path.read_text())


def _gpu_watts(device: str) -> float | None:
    if device != "cuda":
        return None
    try:
        return torch.cuda.power_draw() / 1000
    except (RuntimeError, ImportError, AttributeError):  # without the driver's library for Python
        return None
