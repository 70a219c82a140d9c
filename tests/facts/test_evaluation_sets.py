from __future__ import annotations

from pathlib import Path

import pytest

from herdbook.errors import UserError
from herdbook.facts.evaluation_sets import evaluation_sets, files_of


def place(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def found(name: str, folder: Path) -> dict[str, list[str]]:
    files = files_of(evaluation_sets()[name], folder)
    return {split: [str(path.relative_to(folder)) for path in paths] for split, paths in files.items()}


def test_no_two_sets_go_by_one_name() -> None:
    names = [name for each in evaluation_sets().values() for name in each.names]
    assert len(names) == len(set(names))


def test_finds_the_layout_of_the_hub(tmp_path: Path) -> None:
    place(
        tmp_path,
        *(
            f"ai2_arc/ARC-{level}/{split}-00000-of-00001.parquet"
            for level in ("Easy", "Challenge")
            for split in ("test", "train")
        ),
    )
    assert found("arc_easy", tmp_path) == {
        "test": ["ai2_arc/ARC-Easy/test-00000-of-00001.parquet"],
        "train": ["ai2_arc/ARC-Easy/train-00000-of-00001.parquet"],
    }


def test_finds_the_layout_of_llm_foundry(tmp_path: Path) -> None:
    place(tmp_path, "world_knowledge/arc_easy.jsonl", "world_knowledge/arc_challenge.jsonl", "language/lambada_openai.jsonl")
    assert found("arc_easy", tmp_path) == {"test": ["world_knowledge/arc_easy.jsonl"]}
    assert found("lambada", tmp_path) == {"test": ["language/lambada_openai.jsonl"]}


def test_finds_splits_by_the_names_people_give_them(tmp_path: Path) -> None:
    place(
        tmp_path,
        "gsm8k/test.jsonl",
        "gsm8k/train-first600.jsonl",
        "gsm8k/README.md",
        "lambada_test.jsonl.gz",
        "mmlu/anatomy/dev.parquet",
    )
    assert found("gsm8k", tmp_path) == {"test": ["gsm8k/test.jsonl"], "train": ["gsm8k/train-first600.jsonl"]}
    assert found("lambada", tmp_path) == {"test": ["lambada_test.jsonl.gz"]}
    assert found("mmlu", tmp_path) == {"validation": ["mmlu/anatomy/dev.parquet"]}


def test_a_word_within_a_name_is_no_split(tmp_path: Path) -> None:
    place(tmp_path, "math/contest.jsonl", "other/aftermath.jsonl")
    assert found("math", tmp_path) == {"test": ["math/contest.jsonl"]}


def test_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no files of the evaluation set hellaswag.*Rowan/hellaswag"):
        files_of(evaluation_sets()["hellaswag"], tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        files_of(evaluation_sets()["hellaswag"], tmp_path / "none")
