"""Steps that go wrong: what counts as one, and what is done about it.

A loss or gradient that is no finite number, or a loss that leaps above the late ones, would spoil the weights for thousands of
steps. Large runs were saved by going back to a checkpoint and leaving out the data since: PaLM some twenty times
(arXiv:2204.02311, section 5.1), OPT by hand (arXiv:2205.01068, section 2.5). Skipping the one step is milder and mostly enough
(OLMo 2, arXiv:2501.00656, section 3). What was decided, and which documents it concerned, is written to `events.jsonl`.

What is known of late losses is part of a checkpoint, so a resumed run decides as the uninterrupted one.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from herdbook.train.config import StabilityConfig

EVENTS = "events.jsonl"


class Trouble(NamedTuple):
    """What is wrong with a step, and what the settings say to do."""

    kind: Literal["nonfinite", "spike"]
    action: Literal["stop", "skip", "rewind"]
    detail: str


class Watch:
    """Judges each step by its loss and the norm of its gradient.

    Attributes:
        losses: of the last good steps, at most a window of them.
        skipped, in_a_row, rewinds: how often each was done; `in_a_row` since the last good step.
    """

    def __init__(self, cfg: StabilityConfig, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self.cfg = cfg
        self.losses: list[float] = list(state.get("losses", []))
        self.skipped, self.in_a_row = int(state.get("skipped", 0)), int(state.get("in_a_row", 0))
        self.rewinds = int(state.get("rewinds", 0))

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"losses": self.losses, "skipped": self.skipped, "in_a_row": self.in_a_row, "rewinds": self.rewinds}

    def judge(self, loss: float, norm: float) -> Trouble | None:
        """What is wrong with a step; None for a good one, which is remembered."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return self._bounded(Trouble("nonfinite", self.cfg.nonfinite, f"the loss is {loss} and the gradient's norm {norm}"))
        if self.cfg.spike != "keep" and (limit := self._limit()) is not None and loss > limit:
            return self._bounded(Trouble("spike", self.cfg.spike, f"the loss is {loss:.4f}, above {limit:.4f}"))
        self.in_a_row = 0
        self.losses = [*self.losses, loss][-self.cfg.spike_window :]
        return None

    def note(self, trouble: Trouble) -> None:
        """Count what is now done."""
        if trouble.action == "skip":
            self.skipped += 1
            self.in_a_row += 1
        else:
            self.rewinds += 1

    def _limit(self) -> float | None:
        """The loss above which a step leaps; None as long as half a window of losses is not known."""
        if len(self.losses) < self.cfg.spike_window // 2:
            return None
        return statistics.fmean(self.losses) + self.cfg.spike_sigma * statistics.stdev(self.losses)

    def _bounded(self, trouble: Trouble) -> Trouble:
        """The same, or the end of it when it has been tried too often."""
        if trouble.action == "skip" and self.in_a_row + 1 >= self.cfg.most_in_a_row:
            return trouble._replace(action="stop", detail=f"{trouble.detail}, as {self.in_a_row} steps before it were bad too")
        if trouble.action == "rewind" and self.rewinds >= self.cfg.most_rewinds:
            return trouble._replace(action="stop", detail=f"{trouble.detail}, after {self.rewinds} rewinds")
        return trouble


def log_event(out: Path, event: dict[str, Any]) -> None:
    """Add a line to `OUT/events.jsonl` and make sure it stays."""
    with (out / EVENTS).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(event, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def read_events(out: Path) -> list[dict[str, Any]]:
    """The whole lines of `OUT/events.jsonl`; none when there is no file."""
    path = out / EVENTS
    found: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:  # cut off by a power cut
            continue
    return found


def last_rewind(events: Sequence[dict[str, Any]], step: int, rewinds: int) -> dict[str, Any] | None:
    """The rewind to `step` that a checkpoint of that step, which knows of `rewinds`, was written too early to know of."""
    known = [event for event in events if event.get("event") == "rewind" and event["to_step"] == step]
    return next((event for event in reversed(known) if int(event["rewinds"]) > rewinds), None)
