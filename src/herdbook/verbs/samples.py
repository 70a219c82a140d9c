"""The end of the quickstart: what the model says, and what to type next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from herdbook.console import Terminal
from herdbook.files import read_json

SHOWN = 3


def read(folder: Path) -> list[dict[str, Any]]:
    """The sample generations of a run: those of the fine-tuned model first, then the base model's, each prompt once."""
    rows: list[dict[str, Any]] = read_json(folder / "eval" / "generations.json", what="generations")
    chosen: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["kind"] != "chat"):
        chosen.setdefault(row["prompt"], row)
    return list(chosen.values())[:SHOWN]


def show(rows: list[dict[str, Any]], folder: Path, terminal: Terminal) -> None:
    """Print the samples and the next commands."""
    terminal.say()
    for row in rows:
        terminal.step(row["prompt"].strip(), f"{row['model']}, {row['kind']}")
        terminal.say("  " + row["text"].strip().replace("\n", "\n  ") + "\n")
    terminal.step("Next")
    terminal.say(
        f"  open {folder / 'report.html'} in a browser\n"
        f"  herdbook chat {folder}                     talk with it\n"
        f'  herdbook generate {folder / "pretrain"} "The history of"\n'
        f"  herdbook pedigree {folder} --verify        what went in, and that it still is what it was\n"
        f"  herdbook run quickstart train.tokens=10M name=longer    train four times as long\n"
        f"  herdbook init mine.yaml --source DIR       a recipe for your own pages"
    )
