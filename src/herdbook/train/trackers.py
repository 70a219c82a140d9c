"""Metrics for the eyes of other tools, beside `metrics.jsonl`: TensorBoard, Weights & Biases, trackio.

Each is a package of its own. One that fails while training is let go with a warning: no curve is worth a run.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from herdbook.console import Terminal
from herdbook.errors import UserError

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


class Trackers:
    """The trackers that are asked for.

    Args:
        names: of `PACKAGES`.
        out: the run's folder; its name is the run's.

    Raises UserError when one is not installed.
    """

    def __init__(self, names: Sequence[str], out: Path, facts: dict[str, Any], terminal: Terminal) -> None:
        self._terminal = terminal
        self._open: dict[str, tuple[Callable[[dict[str, float], int], Any], Callable[[], Any]]] = {}
        for name in dict.fromkeys(names):
            try:
                importlib.import_module(PACKAGES[name])
            except ImportError:
                raise UserError(f"{name} is not installed", where="trackers", todo=f"pip install {PACKAGES[name]}") from None
            self._open[name] = _tensorboard(out) if name == "tensorboard" else _like_wandb(name, out, facts)

    def write(self, row: dict[str, Any]) -> None:
        """Hand on the numbers of a step; nested ones get names like `source_loss/wikipedia`."""
        numbers = dict(_numbers(row))
        for name, (write, _) in list(self._open.items()):
            try:
                write(numbers, row["step"])
            except Exception as error:  # theirs, of any kind
                self._terminal.warn(f"{name} failed and gets no more metrics ({error})")
                del self._open[name]

    def close(self) -> None:
        """Let them finish."""
        for name, (_, close) in self._open.items():
            try:
                close()
            except Exception as error:
                self._terminal.warn(f"{name} failed at the end ({error})")
        self._open = {}


def _numbers(row: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for key, value in row.items():
        if isinstance(value, dict):
            found += _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((prefix + key, float(value)))
    return found


def _tensorboard(out: Path) -> tuple[Callable[[dict[str, float], int], Any], Callable[[], Any]]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(out / "tensorboard"))

    def write(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return write, writer.close


def _like_wandb(
    name: str, out: Path, facts: dict[str, Any]
) -> tuple[Callable[[dict[str, float], int], Any], Callable[[], Any]]:
    """trackio has the same calls as wandb."""
    module = importlib.import_module(name)
    label = "-".join(out.resolve().parts[-2:])
    run = module.init(project="herdbook", name=label, config=facts, **({"dir": str(out)} if name == "wandb" else {}))

    def write(numbers: dict[str, float], step: int) -> None:
        run.log(numbers, step=step)

    return write, run.finish
