from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest

from herdbook.console import Terminal
from herdbook.corpus.config import CorpusConfig
from herdbook.corpus.curate import curate
from herdbook.corpus.ledger import hash_id

QUESTION = "which of the two rivers of the old kingdom runs through the garden of the castle"


def rows(folder: Path, prefix: str) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob(f"{prefix}-*.parquet")) for row in pq.read_table(path).to_pylist()]


def lowest(ids: list[str]) -> list[str]:
    return sorted(ids, key=lambda id_: hash_id(id_, 0, "heldout"))


def make(tmp_path: Path, samples: ModuleType, taken: dict[str, int], *, count: int = 9, **more: Any) -> CorpusConfig:
    """Sources of `count` documents each, of which the `taken` ones of the lowest place fall to an evaluation set."""
    (tmp_path / "quiz.jsonl").write_text(json.dumps({"id": "q1", "question": QUESTION}))
    sources = []
    for start, (name, many) in enumerate(taken.items()):
        ids = [f"{name}-{n}" for n in range(count)]
        gone = lowest(ids)[:many]
        lines = [{"id": id_, "text": samples.prose(100 * start + n, 150) + (f" {QUESTION}" if id_ in gone else "")}
                 for n, id_ in enumerate(ids)]  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        sources.append({"name": name, "path": str(tmp_path / f"{name}.jsonl"), "filters": False})
    contamination = {"sets": [str(tmp_path / "quiz.jsonl")], "action": "drop", "max_documents": None}
    settings = {"sources": sources, "heldout": 1e-9, "dedup": {"contamination": contamination}, **more}
    return CorpusConfig.model_validate(settings)


def test_a_held_out_document_that_goes_is_replaced(tmp_path: Path, samples: ModuleType, terminal: Terminal) -> None:
    taken = {"none": 0, "one": 1, "some": 4, "most": 7, "all_but_one": 8}
    cfg = make(tmp_path, samples, taken)
    for workers in (1, 2):
        curate(cfg, tmp_path / f"w{workers}", terminal, workers=workers)
    out = tmp_path / "w1"
    expected = {name: lowest([f"{name}-{n}" for n in range(9)])[many] for name, many in taken.items() if many < 8}
    assert {row["source"]: row["id"] for row in rows(out, "heldout")} == expected
    kept = [row["id"] for row in rows(out, "documents")]
    assert len(kept) == sum(9 - many for many in taken.values()) - len(expected)
    assert kept == sorted(kept, key=lambda id_: (list(taken).index(id_.rsplit("-", 1)[0]), int(id_.rsplit("-", 1)[1])))
    funnel = json.loads((out / "funnel.json").read_text())
    for name, counts in funnel["sources"].items():
        train, held = ([row for row in rows(out, side) if row["source"] == name] for side in ("documents", "heldout"))
        assert (counts["documents_out"], counts["heldout_documents"]) == (len(train), len(held)), name
        assert counts["bytes_out"] == sum(len(row["text"].encode()) for row in train)
        assert counts["heldout_bytes"] == sum(len(row["text"].encode()) for row in held)
    for path in sorted(out.glob("*.parquet")):
        assert path.read_bytes() == (tmp_path / "w2" / path.name).read_bytes(), path.name


def test_blocks_do_not_change_what_is_held_out(
    tmp_path: Path, samples: ModuleType, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = make(tmp_path, samples, {"a": 2, "b": 3})
    curate(cfg, tmp_path / "large", terminal, workers=1)
    monkeypatch.setattr("herdbook.corpus.jobs.BATCH_RECORDS", 2)
    monkeypatch.setattr("herdbook.corpus.jobs.BLOCK_RECORDS", 2)
    curate(cfg, tmp_path / "small", terminal, workers=1)
    for side in ("documents", "heldout"):
        assert rows(tmp_path / "large", side) == rows(tmp_path / "small", side)


def test_none_is_held_out_when_none_is_asked_for(tmp_path: Path, samples: ModuleType, terminal: Terminal) -> None:
    curate(make(tmp_path, samples, {"a": 1}, heldout=0), tmp_path / "out", terminal, workers=1)
    assert rows(tmp_path / "out", "heldout") == [] and len(rows(tmp_path / "out", "documents")) == 8


def test_documents_of_one_place_are_not_all_held_out(tmp_path: Path, samples: ModuleType, terminal: Terminal) -> None:
    cfg = make(tmp_path, samples, {"a": 0})
    lines = [{"id": "same", "text": samples.prose(n, 150)} for n in range(4)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    curate(cfg, tmp_path / "out", terminal, workers=1)
    assert rows(tmp_path / "out", "heldout") == [] and len(rows(tmp_path / "out", "documents")) == 4
