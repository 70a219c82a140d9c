"""What every benchmark shares: timing, the table for people, the JSON line for programs.

A case and its peer are timed in turns within one run, because the machine's speed drifts; what counts is the median.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from herdbook import pedigree


def arguments(description: str) -> argparse.Namespace:
    """`--quick` and `--device`, which every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer cases and turns, within two minutes")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    return parser.parse_args()


def in_turns(cases: Mapping[str, Callable[[], object]], turns: int, device: str = "cpu") -> dict[str, float]:
    """Median milliseconds of each case, run one after the other `turns` times after a warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(turns + 1):
        for name, run in cases.items():
            began = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                times[name].append((time.perf_counter() - began) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A table for people, on stderr."""
    drawn = Table(*header, title=title, title_justify="left")
    for row in rows:
        drawn.add_row(*row)
    Console(stderr=True, width=None if sys.stderr.isatty() else 140).print(drawn)


def finish(name: str, results: Any, ratios: Mapping[str, float], goals: Mapping[str, float], device: str = "cpu") -> None:
    """The JSON line on stdout; a goal is met when its ratio is at least that."""
    machine = dict(pedigree.machine())
    if device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    line = {
        "benchmark": name, "commit": pedigree.code_version().get("commit"), "torch": torch.__version__, "machine": machine,
        "results": results, "ratios": {key: round(value, 3) for key, value in ratios.items()}, "goals": dict(goals),
        "met": all(ratios[key] >= goal for key, goal in goals.items()),
    }  # fmt: skip
    print(json.dumps(line))
    sys.exit(0)
