from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.corpus.ledger import CUTS_A_SAMPLE, LedgerWriter, Lowest, Sample, assemble, hash_id, part_files


def removed(number: int, rule: str) -> dict[str, Any]:
    return {"id": f"d{number}", "text": f"text {number}", "source": "s", "license": "MIT", "removed_by": rule, "value": 1.0,
            "threshold": 2.0, "detail": None, "duplicate_of": None}  # fmt: skip


def cut(number: int, rule: str) -> dict[str, Any]:
    return {"id": f"d{number % 7}", "number": number, "rule": rule, "text": "x" * 1000, "words": 3}


def ledger(
    folder: Path, documents: list[tuple[int, str]], cuts: list[tuple[int, str]], parts: int, sample: Sample
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    files = []
    for part in range(parts):
        writer = LedgerWriter(folder, f"part{part}", sample, seed=3)
        for number, rule in documents[part * len(documents) // parts : (part + 1) * len(documents) // parts]:
            writer.remove(removed(number, rule))
        for number, rule in cuts[part * len(cuts) // parts : (part + 1) * len(cuts) // parts]:
            writer.cut(cut(number, rule))
        writer.close()
        files.append(part_files(folder, f"part{part}"))
    out = folder / "out"
    assemble(files, out, sample, seed=3)
    tables = [
        [row for path in sorted(out.glob(f"{name}-*.parquet")) for row in pq.read_table(path).to_pylist()]
        for name in ("removed", "cuts")
    ]
    return tables[0], tables[1]


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.sampled_from("abc"), max_size=60),
    st.lists(st.sampled_from("pq"), max_size=90),
    st.integers(1, 4),
    st.sampled_from([0, 1, 3, "all"]),
)
def test_the_sample_does_not_depend_on_parts(
    tmp_path_factory: pytest.TempPathFactory, rules: list[str], cut_rules: list[str], parts: int, sample: Sample
) -> None:
    documents, cuts = list(enumerate(rules)), list(enumerate(cut_rules))
    rows, passages = ledger(tmp_path_factory.mktemp("ledger"), documents, cuts, parts, sample)
    assert [row["id"] for row in rows] == [f"d{number}" for number, _ in documents]  # every one, in order
    for rule in set(rules):
        ids = [f"d{number}" for number, name in documents if name == rule]
        lowest = sorted(ids, key=lambda id_: hash_id(id_, 3, "removed"))[: None if sample == "all" else sample]
        assert {row["id"] for row in rows if row["removed_by"] == rule and row["text"] is not None} == set(lowest)
    for rule in set(cut_rules):
        count = cut_rules.count(rule)
        expected = count if sample == "all" else min(count, CUTS_A_SAMPLE * sample)
        assert sum(row["rule"] == rule for row in passages) == expected
    assert all(len(row["text"]) == 300 for row in passages)


def test_cuts_of_documents_that_went_are_marked_and_hits_told_in_full(tmp_path: Path) -> None:
    files = []
    for part in range(2):
        writer = LedgerWriter(tmp_path, f"part{part}", 0, seed=3)
        for number in range(4):
            row = {**cut(number, "contamination"), "decision": ("cut", "kept")[number % 2], "document": number}
            writer.cut(row)
            writer.cut({**cut(number, "passage"), "document": number})
        writer.close()
        files.append(part_files(tmp_path, f"part{part}"))
    assemble(files, tmp_path / "out", 0, 3, [np.array([True, False, True, False]), None])
    rows = pq.read_table(tmp_path / "out" / "cuts-00000.parquet").to_pylist()
    assert [row["decision"] for row in rows] == ["cut", "removed", "cut", "removed", "cut", "kept", "cut", "kept"]
    assert {(row["rule"], row["text"]) for row in rows} == {("contamination", None)}


def test_of_the_same_id_one_is_enough() -> None:
    lowest = Lowest(2)
    assert [lowest.offer("r", 5, "a"), lowest.offer("r", 5, "a"), lowest.offer("r", 3, "b"), lowest.offer("r", 9, "c")] == [
        True, False, True, False,
    ]  # fmt: skip
    assert lowest.offer("r", 1, "d") and lowest.chosen() == {("r", "b", 0), ("r", "d", 0)}
