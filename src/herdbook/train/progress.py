"""The live line of a run, and the rates in it.

Rates are means over the last steps, so that one slow step (a checkpoint, a busy neighbour) does not make the line jump.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from herdbook.console import Terminal
from herdbook.train.task import Outcome
from herdbook.units import human_count, human_seconds

WINDOW = 20  # steps that rates are averaged over


class Pace:
    """How fast steps go, from the seconds each took."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=WINDOW)

    def add(self, seconds: float) -> None:
        """Note one step."""
        self._seconds.append(seconds)

    @property
    def step_s(self) -> float:
        """Seconds a step, of late."""
        return sum(self._seconds) / len(self._seconds) if self._seconds else 0.0


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Loss in nats a token as bits a byte of text, comparable across tokenizers."""
    return loss / math.log(2) / bytes_per_token


def progress_line(
    *,
    step: int,
    steps: int,
    loss: float | None,
    bytes_per_token: float | None,
    tokens_per_s: float,
    mfu: float | None,
    left_s: float,
) -> str:
    """`step 120/244  loss 4.21  1.85 bits/byte  15.2K tokens/s  52% of peak  1m05s left`."""
    parts = [f"step {step:,}/{steps:,}", "skipped" if loss is None else f"loss {loss:.3f}"]
    if bytes_per_token and loss is not None:
        parts.append(f"{bits_per_byte(loss, bytes_per_token):.3f} bits/byte")
    parts.append(f"{human_count(tokens_per_s)} tokens/s")
    if mfu is not None:
        parts.append(f"{mfu:.0%} of peak")
    parts.append(f"{human_seconds(left_s)} left")
    return "  ".join(parts)


class Table:
    """A line for each look at held-out text, which stays on the screen: how the run has gone so far."""

    def __init__(self, terminal: Terminal, bytes_per_token: float | None) -> None:
        self._terminal, self._bytes_per_token, self._begun = terminal, bytes_per_token, False

    def add(self, row: dict[str, Any], steps: int) -> None:
        """One line of a step's row, below the headings."""
        if not self._begun:
            heads = ("step", "tokens", "loss", "bits/byte", "held-out", "grad norm", "lr", "tokens/s", "peak")
            self._terminal.say("  " + " ".join(f"{head:>10}" for head in heads), style="dim")
            self._begun = True
        loss = row["loss"]
        byte = bits_per_byte(loss, self._bytes_per_token) if loss is not None and self._bytes_per_token else None
        cells = [
            f"{row['step']:,}", human_count(row["tokens"]), _cell(loss, ".4f"), _cell(byte, ".4f"),
            _cell(row.get("val_bits_per_byte"), ".4f"), _cell(row["grad_norm"], ".3f"), f"{row['lr']:.2e}",
            human_count(row["tokens_per_s"]), _cell(row["mfu"], ".0%"),
        ]  # fmt: skip
        self._terminal.say("  " + " ".join(f"{cell:>10}" for cell in cells))
        worst = sorted(row.get("source_loss", {}).items(), key=lambda pair: -pair[1])
        if len(worst) > 1:
            shown = ", ".join(f"{name} {value:.3f}" for name, value in worst)
            self._terminal.say(f"             loss by source: {shown}", style="dim")


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def summary(outcome: Outcome) -> str:
    """How a run ended, in one line for a person."""
    parts = [f"{human_count(outcome.tokens)} tokens in {human_seconds(outcome.train_s)}"]
    parts.append(f"{human_count(outcome.tokens_per_s)} tokens/s")
    if outcome.mfu is not None:
        parts.append(f"{outcome.mfu:.0%} of peak")
    if outcome.final_loss is not None:
        parts.append(f"loss {outcome.final_loss:.3f}")
    if "val_bits_per_byte" in outcome.validation:
        parts.append(f"held-out {outcome.validation['val_bits_per_byte']:.3f} bits/byte")
    if outcome.energy_kwh is not None:
        parts.append(f"{outcome.energy_kwh:.3g} kWh")
    for count, noun in ((outcome.skipped, "skipped steps"), (outcome.rewinds, "rewinds")):
        if count:
            parts.append(f"{count} {noun}")
    return ", ".join(parts)
