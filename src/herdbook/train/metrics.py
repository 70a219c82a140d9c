"""`metrics.jsonl`: one line a step, flushed at once, and cut back on resume so that it never holds a step twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from herdbook.files import atomic_path

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends steps to `OUT/metrics.jsonl`.

    Args:
        out: the folder of the run.
        step: the step the run goes on from; lines after it, and a line that was cut off, are dropped.
    """

    def __init__(self, out: Path, step: int) -> None:
        self.path = out / METRICS
        kept = [row for row in read_metrics(self.path) if row["step"] <= step]
        with atomic_path(self.path) as aside:
            aside.write_text("".join(_line(row) for row in kept), encoding="utf-8")
        self._stream = self.path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """Add the line of one step; it is in the system's hands when this returns."""
        self._stream.write(_line(row))
        self._stream.flush()

    def sync(self) -> None:
        """Make sure that what was written outlasts a power cut; called before a checkpoint that relies on it."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The steps in a `metrics.jsonl`, up to the first line that is not whole; none when there is no file."""
    rows: list[dict[str, Any]] = []
    if not path.is_file():
        return rows
    for line in path.read_bytes().split(b"\n"):
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict) or "step" not in row:
            break
        rows.append(row)
    return rows
