"""Published tables: whole, sourced, and about models we know."""

from __future__ import annotations

import pytest

from herdbook.facts.models import list_models
from herdbook.facts.results import ResultTable, list_tables, tables_with


@pytest.mark.parametrize("table", list_tables(), ids=lambda table: table.name)
def test_each_table_is_whole(table: ResultTable) -> None:
    assert table.title
    assert table.source
    assert len(set(table.columns)) == len(table.columns)
    assert all(len(row) == len(table.columns) for row in table.rows.values())
    assert all(any(value is not None for value in row) for row in table.rows.values())


def test_rows_name_presets_where_there_are_such() -> None:
    """A row that looks like a preset's name and is none is a slip of the pen."""
    names = {preset.name for preset in list_models()}
    rows = {row for table in list_tables() for row in table.rows}
    assert {"llama-65b", "gpt3-175b", "palm-540b", "gpt-neox-20b", "falcon-7b", "llama2-34b"} <= rows & names
    assert {row for row in rows - names if row.islower()} == {
        "falcon-40b-instruct", "falcon-7b-instruct", "multi-head", "multi-query", "multi-head local", "multi-query local",
    }  # fmt: skip


def test_tables_with_several() -> None:
    side_by_side = [table.name for table in tables_with(["llama2-7b", "falcon-7b"], at_least=2)]
    assert side_by_side == ["llama2-overview"]
    assert len(tables_with(["llama-7b"])) > 5
    table = next(table for table in list_tables() if table.name == "llama-mmlu")
    assert table.of(["llama-65b", "absent"])["rows"] == {
        "llama-65b": {"humanities": 61.8, "STEM": 51.7, "social sciences": 72.9, "other": 67.4, "average": 63.4}
    }
