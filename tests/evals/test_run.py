"""The station: results in lm-eval's layout, samples, generations, pedigree; and what it does when something is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from herdbook import pedigree
from herdbook.config import ConfigError, build, parse_yaml
from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.evals.config import EvalConfig
from herdbook.evals.run import evaluate
from herdbook.files import read_json

ALL = ["bits_per_byte", "docstring_choice", "continuation_choice"]


def config(**values: object) -> EvalConfig:
    return EvalConfig.model_validate({"tasks": ALL, "documents": 4, "document_bytes": 200, "limit": 12, **values})


@pytest.fixture
def done(folders: dict[str, Path], corpus: Path, tmp_path: Path, terminal: Terminal) -> Path:
    prompts = [
        "Return the",
        {"text": "What does `f` do?", "mode": "chat", "max_tokens": 5},
        {"text": "x", "mode": "completion"},
    ]
    evaluate(config(prompts=prompts), folders, tmp_path / "eval", terminal, corpus=corpus)
    return tmp_path / "eval"


def test_results_have_lm_evals_layout(done: Path) -> None:
    models = read_json(done / "results.json")["models"]
    assert list(models) == ["pretrain", "sft"]
    for name, found in models.items():
        tasks = set(found["results"])
        assert tasks == {*ALL, "bits_per_byte_docstrings", "bits_per_byte_wikipedia"}
        assert found["group_subtasks"] == {"bits_per_byte": ["bits_per_byte_docstrings", "bits_per_byte_wikipedia"]}
        for key in ("configs", "versions", "n-shot", "higher_is_better", "n-samples"):
            assert set(found[key]) == tasks
        assert found["n-samples"]["docstring_choice"]["effective"] == 12
        assert found["config"]["prompts"] == {"pretrain": "base", "sft": "chat"}[name]
        assert found["configs"]["docstring_choice"]["metadata"]["chance"] == 0.25
        assert found["results"]["bits_per_byte"]["bits_per_byte,none"] > 0
        assert 0 <= found["results"]["docstring_choice"]["acc_norm,none"] <= 1
        assert found["results"]["docstring_choice"]["acc_stderr,none"] != "N/A"


def test_both_models_answer_the_same_questions_in_their_own_form(done: Path) -> None:
    rows = [json.loads(line) for line in (done / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    asked = {
        name: [row for row in rows if row["model"] == name and row["task"] == "docstring_choice"]
        for name in ("pretrain", "sft")
    }
    assert [row["doc_id"] for row in asked["pretrain"]] == [row["doc_id"] for row in asked["sft"]]
    assert [row["choices"] for row in asked["pretrain"]] == [row["choices"] for row in asked["sft"]]
    assert asked["sft"][0]["question"].startswith("What does `pkg")
    assert asked["pretrain"][0]["question"].startswith("pkg")
    assert {row["task"] for row in rows} >= {"bits_per_byte_docstrings", "continuation_choice"}


def test_prompts_go_to_the_models_they_are_meant_for(done: Path) -> None:
    rows = read_json(done / "generations.json")
    assert [(row["model"], row["kind"], row["prompt"]) for row in rows] == [
        ("pretrain", "completion", "Return the"), ("pretrain", "completion", "x"),
        ("sft", "chat", "Return the"), ("sft", "chat", "What does `f` do?"),
    ]  # fmt: skip
    assert rows[3]["sampling"]["max_tokens"] == 5


def test_the_same_again_gives_the_same_files(done: Path, folders: dict[str, Path], corpus: Path, terminal: Terminal) -> None:
    cfg = EvalConfig.model_validate(pedigree.read(done)["config"])
    evaluate(cfg, folders, done.parent / "again", terminal, corpus=corpus)
    for name in ("results.json", "samples.jsonl", "generations.json"):
        assert (done.parent / "again" / name).read_bytes() == (done / name).read_bytes()


def test_pedigree_names_models_and_corpus(done: Path) -> None:
    assert [item["role"] for item in pedigree.read(done)["inputs"]] == ["pretrain", "sft", "corpus"]


def test_tasks_without_their_source_are_skipped_and_said_so(folders: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    console = Console(record=True, stderr=True)
    cfg = config(docstring_source="elsewhere", prompts=[])
    evaluate(cfg, {"pretrain": folders["pretrain"]}, tmp_path / "eval", Terminal(console=console), corpus=corpus)
    skipped = read_json(tmp_path / "eval" / "results.json")["skipped"]
    assert list(skipped) == ["docstring_choice"]
    assert "docstring_choice is skipped" in console.export_text()


def test_without_a_corpus_only_prompts_are_answered(folders: dict[str, Path], tmp_path: Path, terminal: Terminal) -> None:
    evaluate(config(), folders, tmp_path / "eval", terminal)
    assert read_json(tmp_path / "eval" / "results.json")["models"]["sft"]["results"] == {}
    assert read_json(tmp_path / "eval" / "generations.json")


def test_nothing_to_measure_is_an_error_and_leaves_no_pedigree(
    folders: dict[str, Path], tmp_path: Path, terminal: Terminal
) -> None:
    with pytest.raises(UserError, match="nothing is left to measure"):
        evaluate(config(prompts=[]), folders, tmp_path / "eval", terminal)
    assert not pedigree.exists(tmp_path / "eval")
    with pytest.raises(UserError, match="no model"):
        evaluate(config(), {}, tmp_path / "eval", terminal)
    with pytest.raises(UserError):
        evaluate(config(), {"x": tmp_path / "nowhere"}, tmp_path / "eval", terminal)


@pytest.mark.parametrize(
    ("text", "message"),
    [("tasks: [bits_per_byte, bits_per_byte]", "listed twice"), ("task: [x]", "did you mean tasks"),
     ("shots: -1", "shots"), ("overlap: 1", "overlap"),
     ("prompts: [{mode: chat}]", "prompts.0.text: this key is needed")],
)  # fmt: skip
def test_mistakes_in_the_config_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(EvalConfig, parse_yaml(text, "recipe.yaml"))
