from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herdbook.corpus.config_dedup import ContaminationConfig
from herdbook.corpus.contamination import Item
from herdbook.corpus.evaluation_items import evaluation_files, read_items
from herdbook.errors import UserError


def test_reading_evaluation_sets(tmp_path: Path) -> None:
    rows = [{"id": 7, "question": "Why?", "choices": {"text": ["so", "or"], "n": [1, 2]}}, {"question": "How?"}]
    path = tmp_path / "quiz.test.jsonl.gz"
    path.write_bytes(gzip.compress("\n\n".join(map(json.dumps, rows)).encode()))
    assert list(read_items(path)) == [Item("quiz", "7", ["Why?", "so", "or"]), Item("quiz", "3", ["How?"])]
    assert list(read_items(path, "q", "question"))[1] == Item("q", "3", ["How?"])
    with pytest.raises(UserError, match="'choices'"):
        list(read_items(path, text_key="choices"))
    path.write_text("[1]\n")
    with pytest.raises(UserError, match="not a JSON object"):
        list(read_items(path))


def test_reading_parquet(tmp_path: Path) -> None:
    table = pa.table({"question": ["Why?", "How?"], "choices": [{"text": ["so", "or"]}, {"text": []}], "hint": [None, "by"]})
    pq.write_table(table, tmp_path / "quiz.parquet")
    assert list(read_items(tmp_path / "quiz.parquet")) == [
        Item("quiz", "1", ["Why?", "so", "or"]),
        Item("quiz", "2", ["How?", "by"]),
    ]
    (tmp_path / "quiz.parquet").write_bytes(b"PAR1 not so")
    with pytest.raises(UserError, match="not a whole parquet file"):
        list(read_items(tmp_path / "quiz.parquet"))


def test_sets_by_name_and_by_file(tmp_path: Path, samples: ModuleType) -> None:
    (tmp_path / "sets" / "gsm8k").mkdir(parents=True)
    for name in ("sets/gsm8k/test.jsonl", "sets/gsm8k/train.jsonl", "own.jsonl"):
        samples.jsonl(tmp_path / name, [name])
    cfg = ContaminationConfig(sets=["gsm8k", str(tmp_path / "own.jsonl")], folder=tmp_path / "sets")
    assert evaluation_files(cfg) == [("gsm8k", tmp_path / "sets/gsm8k/test.jsonl"), ("own", tmp_path / "own.jsonl")]


@pytest.mark.parametrize(
    ("name", "folder", "message"),
    [
        ("gms8k", "sets", "did you mean gsm8k"),
        ("gsm8k", None, "no folder is said"),
        ("gsm8k", "sets", "what is scored is test"),
        ("piqa", "sets", "no files of the evaluation set piqa"),
    ],
)
def test_what_cannot_be_found(tmp_path: Path, samples: ModuleType, name: str, folder: str | None, message: str) -> None:
    (tmp_path / "sets" / "gsm8k").mkdir(parents=True)
    samples.jsonl(tmp_path / "sets" / "gsm8k" / "train.jsonl", ["a"])
    with pytest.raises(UserError, match=message):
        evaluation_files(ContaminationConfig(sets=[name], folder=tmp_path / folder if folder else None))
