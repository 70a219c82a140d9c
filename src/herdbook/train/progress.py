"""The live line of a run, and the rates in it.

Rates are means over the last steps, so that one slow step (a checkpoint, a busy neighbour) does not make the line jump.
"""

from __future__ import annotations

import math
from collections import deque

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
    *, step: int, steps: int, loss: float, bytes_per_token: float | None, tokens_per_s: float, mfu: float | None, left_s: float
) -> str:
    """`step 120/244  loss 4.21  1.85 bits/byte  15.2K tokens/s  52% of peak  1m05s left`."""
    parts = [f"step {step:,}/{steps:,}", f"loss {loss:.3f}"]
    if bytes_per_token:
        parts.append(f"{bits_per_byte(loss, bytes_per_token):.3f} bits/byte")
    parts.append(f"{human_count(tokens_per_s)} tokens/s")
    if mfu is not None:
        parts.append(f"{mfu:.0%} of peak")
    parts.append(f"{human_seconds(left_s)} left")
    return "  ".join(parts)


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
    return ", ".join(parts)
