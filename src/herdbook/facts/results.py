"""Published results as tables: which models were measured side by side, by whom, and what came out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml


@dataclass(frozen=True)
class ResultTable:
    """One published table. Its numbers may be compared with each other, not with those of another table.

    Attributes:
        name: key of the table.
        source: the paper or page, and the table in it.
        unit: of every column, where they share one; else empty.
        rows: name of a model of the catalogue, or a name as people write it → a value a column, None where there is a gap.
        notes: what to know before believing it.
    """

    name: str
    title: str
    source: str
    columns: tuple[str, ...]
    rows: Mapping[str, tuple[float | None, ...]]
    unit: str = ""
    notes: str = ""

    def of(self, models: Iterable[str]) -> dict[str, Any]:
        """The rows of these models as plain JSON."""
        rows = {name: dict(zip(self.columns, self.rows[name], strict=True)) for name in models if name in self.rows}
        return {"title": self.title, "source": self.source, "unit": self.unit, "rows": rows, "notes": self.notes}


@cache
def _tables() -> tuple[ResultTable, ...]:
    raw = yaml.safe_load(resources.files("herdbook.facts").joinpath("results.yaml").read_text(encoding="utf-8"))
    return tuple(
        ResultTable(
            name=name, title=row["title"], source=row["source"], columns=tuple(row["columns"]), unit=row.get("unit", ""),
            rows={model: tuple(values) for model, values in row["rows"].items()}, notes=row.get("notes", ""),
        )
        for name, row in raw["tables"].items()
    )  # fmt: skip


def list_tables() -> list[ResultTable]:
    """All published tables."""
    return list(_tables())


def tables_with(models: Iterable[str], *, at_least: int = 1) -> list[ResultTable]:
    """The tables that hold at least so many of these models of the catalogue."""
    wanted = set(models)
    return [table for table in _tables() if len(wanted & set(table.rows)) >= at_least]
