"""Reads a run folder into plain data. What is absent is None; what is broken is a UserError that names the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from herdbook import pedigree
from herdbook.errors import UserError
from herdbook.files import read_json

STATIONS = ("corpus", "tokenizer", "tokens", "pretrain", "sft", "eval")
Json = dict[str, Any]


@dataclass
class Run:
    """What the stations of a run left behind.

    Attributes:
        name: the folder's name.
        recipe: the resolved recipe.
        pedigrees: by station; a station without one has not ended.
        plans, metrics: of the training stations.
    """

    folder: Path
    name: str
    recipe: Json | None = None
    pedigrees: dict[str, Json] = field(default_factory=dict)
    funnel: Json | None = None
    tokenizer: Json | None = None
    tokens: Json | None = None
    plans: dict[str, Json] = field(default_factory=dict)
    metrics: dict[str, list[Json]] = field(default_factory=dict)
    results: Json | None = None
    generations: list[Json] = field(default_factory=list)

    @property
    def model(self) -> str | None:
        """The last model station that has ended."""
        return next((station for station in ("sft", "pretrain") if station in self.pedigrees), None)

    @property
    def source_tokens(self) -> dict[str, int]:
        """Tokens by source. Raises UserError when the index of the tokens is broken."""
        with blame(self.folder / "tokens" / "index.json"):
            return {name: int(source["tokens"]) for name, source in (self.tokens or {"sources": {}})["sources"].items()}

    def count(self, station: str, key: str) -> Any:
        """A count in a station's pedigree, or None."""
        return self.pedigrees.get(station, {}).get("counts", {}).get(key)


def read_run(folder: Path) -> Run:
    """Read what there is of a run. Raises UserError when the folder is no run, or a file in it is broken."""
    if not folder.is_dir():
        raise UserError("there is no such run", where=folder, todo="give the folder of a run, such as runs/quickstart")
    run = Run(folder, folder.resolve().name)
    run.recipe = _read_recipe(folder / "recipe.yaml")
    for station in STATIONS:
        if pedigree.exists(folder / station):
            run.pedigrees[station] = pedigree.read(folder / station)
    run.funnel = _optional(folder / "corpus" / "funnel.json")
    run.tokenizer = _optional(folder / "tokenizer" / "report.json")
    run.tokens = _optional(folder / "tokens" / "index.json")
    for station in ("pretrain", "sft"):
        plan = _optional(folder / station / "plan.json")
        rows = _read_metrics(folder / station / "metrics.jsonl")
        run.plans |= {station: plan} if plan else {}
        run.metrics |= {station: rows} if rows else {}
    run.results = _optional(folder / "eval" / "results.json")
    if (folder / "eval" / "generations.json").is_file():
        run.generations = read_json(folder / "eval" / "generations.json", what="file of generations")
    if not any((run.recipe, run.pedigrees, run.funnel, run.tokenizer, run.metrics, run.results)):
        raise UserError("no station has left anything here", where=folder, todo="`herdbook run RECIPE` fills a run's folder")
    return run


@contextmanager
def blame(path: Path) -> Iterator[None]:
    """Turn what goes wrong over the contents of `path` into a UserError that names it."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, ZeroDivisionError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else f"it does not have the expected form ({error})"
        raise UserError(f"this file cannot be reported on: {what}", where=path, todo="run its station again") from error


def _optional(path: Path) -> Json | None:
    if not path.is_file():
        return None
    value = read_json(path, what="file", todo="run its station again")
    if not isinstance(value, dict):
        raise UserError("this file should hold a JSON object", where=path, todo="run its station again")
    return value


def _read_recipe(path: Path) -> Json | None:
    if not path.is_file():
        return None
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError("this recipe is not valid YAML", where=path) from error
    return value if isinstance(value, dict) else None


def _read_metrics(path: Path) -> list[Json]:
    """The steps of a metrics file; a last line that was cut off is left out, a broken one before it is an error."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            if number >= len(lines):
                break
            raise UserError("this line is not valid JSON", where=f"{path}:{number}", todo="run its station again") from None
        if not isinstance(row, dict) or not {"step", "tokens", "loss"} <= row.keys():
            raise UserError("this line lacks step, tokens or loss", where=f"{path}:{number}", todo="run its station again")
        rows.append(row)
    return rows
