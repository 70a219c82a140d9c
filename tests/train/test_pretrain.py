from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from herdbook import pedigree
from herdbook.console import Terminal
from herdbook.documents import read_documents
from herdbook.errors import UserError
from herdbook.interop.hf import load_folder
from herdbook.model.config import ModelConfig
from herdbook.tokenizer import Tokenizer
from herdbook.train.config import TrainConfig
from herdbook.train.metrics import read_metrics
from herdbook.train.pretrain import pretrain
from herdbook.train.validation import load_validation

SHAPE = ModelConfig(d_model=32, n_layers=2, n_heads=2, context=32)


@pytest.fixture(autouse=True)
def quick_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the machine takes a second; the tests need only a number."""
    monkeypatch.setattr("herdbook.train.machine._peak", lambda *_: 1e11)


def go(road: Path, out: Path, terminal: Terminal, *, model: ModelConfig = SHAPE, corpus: bool = True, **config: Any) -> None:
    settings: dict[str, Any] = {"tokens": 256 * 20, "tokens_per_step": 256, "lr": 1e-2, "threads": 1, "device": "cpu"}
    cfg = TrainConfig(**settings | config)
    pretrain(cfg, model, road / "tokens", road / "tokenizer", out, terminal, corpus=road / "corpus" if corpus else None)


def test_the_station_leaves_what_the_contract_says(road: Path, tmp_path: Path, terminal: Terminal) -> None:
    out = tmp_path / "pretrain"
    go(road, out, terminal, eval_every=10)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
                 "metrics.jsonl", "plan.json", "latest", "checkpoint-000020", "pedigree.json"):  # fmt: skip
        assert (out / name).exists(), name
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    assert [row["step"] for row in rows if "val_bits_per_byte" in row] == [10, 20]
    manifest = pedigree.read(out)
    counts = manifest["counts"]
    assert counts["parameters"] == load_folder(out).cfg.parameters()
    assert counts["tokens"] == 5120
    assert counts["flops"] == pytest.approx(5120 * load_folder(out).cfg.flops_per_token(32))
    assert {"steps", "final_loss", "train_s", "peak_flops_per_s", "mfu"} <= set(counts)
    assert manifest["license"]["id"] == "CC0-1.0"
    assert {item["role"] for item in manifest["inputs"]} == {"tokens", "tokenizer", "corpus"}
    plan = json.loads((out / "plan.json").read_text())
    assert (plan["steps"], plan["tokens"]) == (20, 5120)
    assert "sums" in plan["epochs"]


def test_the_saved_model_is_the_trained_one(road: Path, tmp_path: Path, terminal: Terminal) -> None:
    out = tmp_path / "pretrain"
    go(road, out, terminal, precision="float32")
    words = Tokenizer.load(out)
    look = load_validation(road / "corpus", words, separator_id=0, context=32, sequences=64)
    assert look is not None
    measured = look(load_folder(out))
    logged = read_metrics(out / "metrics.jsonl")[-1]
    assert measured["val_loss"] == pytest.approx(logged["val_loss"], rel=1e-4)


def test_run_again_it_does_nothing_and_without_its_pedigree_it_only_finishes(
    road: Path, tmp_path: Path, terminal: Terminal
) -> None:
    out = tmp_path / "pretrain"
    go(road, out, terminal)
    first = (out / "pedigree.json").read_bytes()
    go(road, out, terminal)
    assert (out / "pedigree.json").read_bytes() == first
    weights = (out / "model.safetensors").read_bytes()
    (out / "pedigree.json").unlink()
    (out / "model.safetensors").unlink()
    go(road, out, terminal)
    assert (out / "model.safetensors").read_bytes() == weights
    assert pedigree.exists(out)


def test_another_setting_is_refused_and_the_finished_model_stays(road: Path, tmp_path: Path, terminal: Terminal) -> None:
    out = tmp_path / "pretrain"
    go(road, out, terminal)
    with pytest.raises(UserError, match=r"model\.d_model: 32 → 64"):
        go(road, out, terminal, model=SHAPE.model_copy(update={"d_model": 64}))
    assert pedigree.exists(out)


def test_the_same_seed_gives_the_same_model_and_another_another(road: Path, tmp_path: Path, terminal: Terminal) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        go(road, tmp_path / name, terminal, seed=seed, tokens=1024)
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    assert weights["a"] == weights["b"] != weights["c"]


def test_documents_can_be_kept_apart(road: Path, tmp_path: Path, terminal: Terminal) -> None:
    go(road, tmp_path / "a", terminal, document_mask=True, tokens=1024)
    go(road, tmp_path / "b", terminal, document_mask=False, tokens=1024)
    losses = [read_metrics(tmp_path / name / "metrics.jsonl")[-1]["loss"] for name in "ab"]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("config", "message"),
    [({"context": 64}, "longer than the model's context"), ({"tokens_per_step": 100}, "multiple of the context")],
)
def test_shapes_that_do_not_fit_are_refused(
    road: Path, tmp_path: Path, terminal: Terminal, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        go(road, tmp_path / "out", terminal, **{"tokens_per_step": 256, **config})


def test_tokens_of_another_tokenizer_are_refused(road: Path, tmp_path: Path, terminal: Terminal) -> None:
    shutil.copytree(road, tmp_path / "road")
    path = tmp_path / "road" / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(UserError, match="another tokenizer"):
        go(tmp_path / "road", tmp_path / "out", terminal)


def test_without_held_out_text_nothing_is_looked_at(road: Path, tmp_path: Path, terminal: Terminal) -> None:
    go(road, tmp_path / "a", terminal, corpus=False, tokens=512)
    go(road, tmp_path / "b", terminal, eval_sequences=0, tokens=512)
    for name in "ab":
        assert "val_loss" not in read_metrics(tmp_path / name / "metrics.jsonl")[-1]


def test_bits_per_byte_counts_exactly_the_text_that_was_seen(road: Path) -> None:
    words = Tokenizer.load(road / "tokenizer")
    for context in (8, 32, 4096):
        look = load_validation(road / "corpus", words, separator_id=0, context=context, sequences=1000)
        assert look is not None
        seen = [words.decode(row[row >= 0].tolist()) for row in look.targets_BT]
        assert look.text_bytes == sum(len(text.encode()) for text in seen)
        texts = [row["text"] for row in read_documents(road / "corpus", "heldout")]
        assert all(any(text.startswith(part) for text in texts) for part in seen)
        if context == 4096:
            assert sorted(seen) == sorted(texts)
        assert torch.equal(look.tokens_BT[:, 0], torch.zeros(30, dtype=torch.int64))
        assert look.tokens_BT.shape[1] <= context
