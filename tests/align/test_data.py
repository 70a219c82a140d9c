from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from herdbook.align.chat import ChatFormat
from herdbook.align.config import ChatData, SftConfig
from herdbook.align.data import Skipped, read_conversations, tokenize
from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.tokenizer import Tokenizer

GOOD = [
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    {"prompt": "q", "completion": "a"},
    {"instruction": "q", "output": "a"},
    {"instruction": "q", "input": "", "output": "a"},
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_all_forms_are_read_and_named_by_line(tmp_path: Path) -> None:
    skipped = Skipped()
    found = list(read_conversations(write(tmp_path / "a.jsonl", [*GOOD, ""]), skipped, license_id="MIT"))
    assert [one.messages for one in found] == [GOOD[0]["messages"]] * 4
    assert [one.origin for one in found] == [f"a.jsonl:{line}" for line in (1, 2, 3, 4)]
    assert {one.license for one in found} == {"MIT"}
    assert not skipped.counts


def test_alpacas_input_follows_its_instruction(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"instruction": "Sum up.", "input": "Long text.", "output": "Short."}])
    assert next(read_conversations(path, Skipped())).messages[0]["content"] == "Sum up.\n\nLong text."


def test_what_is_malformed_is_counted_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["{broken", "[1]", {"text": "x"}, {"messages": "x"}, {"instruction": 1, "output": "a"}, *["{"] * 7, GOOD[0]]
    skipped = Skipped()
    assert len(list(read_conversations(write(tmp_path / "a.jsonl", rows), skipped))) == 1
    assert skipped.counts["not valid JSON"] == 8
    assert skipped.where["not valid JSON"] == ["a.jsonl:1", *(f"a.jsonl:{line}" for line in range(6, 10))]
    assert skipped.where["not a JSON object"] == ["a.jsonl:2"]
    assert sum(skipped.counts.values()) == 12
    skipped.warn(Terminal())
    said = capsys.readouterr().err
    assert "12 samples are left out" in said
    assert "8 × not valid JSON (a.jsonl:1, a.jsonl:6" in said


def test_folders_and_lists_are_read(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", GOOD[:1])
    (tmp_path / "a.json").write_text(json.dumps(GOOD[1:3]))
    assert [one.origin for one in read_conversations(tmp_path, Skipped())] == ["a.json:item 1", "a.json:item 2", "b.jsonl:1"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "not valid JSON"),
        ("a.json", "{}", "holds a list"),
        (None, None, "no such file"),
        ("a.txt", "", "no .jsonl"),
    ],
)
def test_files_that_cannot_be_read_are_errors(tmp_path: Path, name: str | None, content: str | None, message: str) -> None:
    path = tmp_path / (name or "absent.jsonl")
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        list(read_conversations(tmp_path if name == "a.txt" else path, Skipped()))


def test_samples_too_long_or_with_nothing_to_learn_are_counted(words: Tokenizer, tmp_path: Path) -> None:
    rows = [
        *GOOD[:2],
        {"prompt": "q " * 99, "completion": "a"},
        {"prompt": "q", "completion": ""},
        {"prompt": 3, "completion": "a"},
    ]
    skipped = Skipped()
    found = read_conversations(write(tmp_path / "a.jsonl", rows), skipped)
    kept = tokenize(found, ChatFormat(words, "chatml"), skipped, system=None, longest=41)
    assert len(kept) == 2
    assert all(any(one.sample.trained) for one in kept)
    assert skipped.where == {"longer than the context of 40 tokens": ["a.jsonl:3"], "an empty answer": ["a.jsonl:4"],
                             "a message without text": ["a.jsonl:5"]}  # fmt: skip


def test_paths_are_short_for_sources_of_data() -> None:
    assert SftConfig(data="a.jsonl").data == [ChatData(path=Path("a.jsonl"))]
    assert SftConfig(data=["a", {"path": "b", "license": "MIT"}]).data[1].license == "MIT"
    with pytest.raises(ValidationError, match="data"):
        SftConfig(data=3)
