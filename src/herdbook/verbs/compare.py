"""`herdbook models compare`: facts of several models side by side, differences marked, and what was measured of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from herdbook.console import Terminal, emit
from herdbook.errors import UserError
from herdbook.facts.results import ResultTable, tables_with
from herdbook.verbs.catalogue import heading
from herdbook.verbs.portrait import facts_of, rows_of
from herdbook.verbs.subject import find_subject

DIFFERENT = "≠"


def compare(names: Sequence[str], terminal: Terminal) -> None:
    """Print the comparison. Raises UserError for fewer than two models, and for a name that is none."""
    if len(set(names)) < 2:
        raise UserError("a comparison needs two models", todo="`herdbook models compare llama2-7b falcon-7b`")
    subjects = [find_subject(name) for name in dict.fromkeys(names)]
    shown = [subject.name for subject in subjects]
    cells = [{row.what: row.marked() for row in rows_of(subject)} for subject in subjects]
    rows = [
        (what, [column.get(what, "") for column in cells])
        for what in dict.fromkeys(what for column in cells for what in column)
    ]
    tables = tables_with(shown, at_least=2)
    if terminal.as_json:
        emit({
            "models": [facts_of(subject) for subject in subjects],
            "rows": [{"what": what, "values": dict(zip(shown, values, strict=True)), "differs": differs(values)}
                     for what, values in rows],
            "results": {table.name: table.of(shown) for table in tables},
        })  # fmt: skip
        return
    terminal.table(["", "", *shown], [[DIFFERENT if differs(values) else "", what, *values] for what, values in rows])
    for table in tables:
        heading(table, terminal)
        terminal.table(["", *shown], _side_by_side(table, shown))
        terminal.say(" ".join(part for part in (table.source + ".", table.notes) if part), style="dim")
    if not tables:
        terminal.say()
        terminal.say("No published table in the catalogue has measured two of them side by side.")


def differs(values: Sequence[Any]) -> bool:
    """Whether not all values are the same."""
    return any(value != values[0] for value in values)


def _side_by_side(table: ResultTable, names: Sequence[str]) -> list[list[str]]:
    """A row a column of the published table, a column a model."""
    found = [table.rows.get(name) for name in names]
    return [
        [column, *("" if row is None or row[index] is None else str(row[index]) for row in found)]
        for index, column in enumerate(table.columns)
    ]
