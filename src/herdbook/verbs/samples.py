"""The end of the quickstart: what the model says, and what to type next."""

from __future__ import annotations

import os
import shutil
import sys
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
    me = command()
    terminal.say(
        f"  open {folder / 'report.html'} in a browser\n"
        f"  {me} chat {folder}    talk with it\n"
        f'  {me} generate {folder / "pretrain"} "The history of"\n'
        f"  {me} pedigree {folder} --verify    what went in, and that it still is what it was\n"
        f"  {me} run quickstart train.tokens=10M name=longer    train four times as long\n"
        f"  {me} init mine.yaml --source DIR    a recipe for your own pages"
    )


def command() -> str:
    """How to type `herdbook` here: by its name if that is on the path, else by the path it was started with."""
    if shutil.which("herdbook"):
        return "herdbook"
    started = Path(sys.argv[0])
    return os.path.relpath(started) if started.name == "herdbook" else f"{sys.executable} -m herdbook"
