from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.documents import DocumentWriter, count_documents, read_documents
from herdbook.errors import UserError


def row(number: int, text: str = "text") -> dict[str, Any]:
    return {"id": f"s/{number}", "text": text, "source": "s", "license": "MIT", "language": "en", "language_score": 0.5}


def write(folder: Path, rows: list[dict[str, Any]], **options: Any) -> None:
    with DocumentWriter(folder, "documents", **options) as writer:
        for item in rows:
            writer.write(item)


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.text(), max_size=12), rows_per_file=st.integers(1, 5))
def test_what_is_written_is_read_in_order(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], rows_per_file: int
) -> None:
    folder = tmp_path_factory.mktemp("docs")
    write(folder, [row(number, text) for number, text in enumerate(texts)], rows_per_file=rows_per_file)
    assert [item["text"] for item in read_documents(folder)] == texts
    assert count_documents(folder) == len(texts)
    assert len(list(folder.glob("*.parquet"))) == max(1, -(-len(texts) // rows_per_file))


def test_columns_and_splits(tmp_path: Path) -> None:
    write(tmp_path, [row(1)])
    with DocumentWriter(tmp_path, "heldout") as writer:
        writer.write(row(2))
    assert list(read_documents(tmp_path, columns=["id"])) == [{"id": "s/1"}]
    assert [item["id"] for item in read_documents(tmp_path, "heldout")] == ["s/2"]
    with pytest.raises(UserError, match="the column 'nope' is missing"):
        list(read_documents(tmp_path, columns=["nope"]))


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), DocumentWriter(tmp_path, "documents") as writer:
        for number in range(3000):
            writer.write(row(number))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_no_documents_and_broken_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no train documents here"):
        list(read_documents(tmp_path))
    (tmp_path / "documents-00000.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="not a whole parquet file"):
        list(read_documents(tmp_path))
