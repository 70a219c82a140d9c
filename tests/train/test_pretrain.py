from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
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


def test_loss_by_source_adds_up_to_the_loss(road: Path, tmp_path: Path, terminal: Terminal) -> None:
    go(road, tmp_path / "out", terminal, precision="float32")
    for row in read_metrics(tmp_path / "out" / "metrics.jsonl"):
        losses = row["source_loss"].values()
        assert min(losses) - 1e-6 <= row["loss"] <= max(losses) + 1e-6


def test_a_growing_batch_trains_on_all_of_the_data_and_resumes(road: Path, tmp_path: Path, terminal: Terminal) -> None:
    ramp = {"batch_ramp": {"start": 64, "over": 2048}, "checkpoint_every": 7, "keep_checkpoints": 99, "precision": "float32"}
    go(road, tmp_path / "whole", terminal, **ramp)
    whole = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert whole[0]["tokens"] == 64 and whole[-1]["tokens"] >= 5120
    sizes = [after["tokens"] - before["tokens"] for before, after in itertools.pairwise(whole)]
    assert sizes == sorted(sizes) and sizes[-1] == 256
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "parts" / "pedigree.json").unlink()
    for path in (tmp_path / "parts").glob("checkpoint-*"):
        if int(path.name[-6:]) > 14:
            shutil.rmtree(path)
    go(road, tmp_path / "parts", terminal, **ramp)
    assert [row["loss"] for row in read_metrics(tmp_path / "parts" / "metrics.jsonl")] == [row["loss"] for row in whole]


def test_z_loss_pulls_the_logits_and_is_not_in_the_loss(road: Path, tmp_path: Path, terminal: Terminal) -> None:
    for name, z_loss in (("plain", 0.0), ("pulled", 1e-2)):
        go(road, tmp_path / name, terminal, z_loss=z_loss, precision="float32")
    plain, pulled = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("plain", "pulled"))
    assert pulled[0]["loss"] == pytest.approx(plain[0]["loss"]), "weights are the same before the first update"
    assert pulled[0]["grad_norm"] != plain[0]["grad_norm"]
    tokens = torch.arange(32)[None]
    sums = [load_folder(tmp_path / name)(tokens).logsumexp(-1).square().mean().item() for name in ("plain", "pulled")]
    assert sums[1] < sums[0]


TOGETHER = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from herdbook.console import Terminal
from herdbook.model.config import ModelConfig
from herdbook.train import machine
from herdbook.train.config import TrainConfig
from herdbook.train.pretrain import pretrain
machine._peak = lambda *_: 1e11
road, out, words = Path(sys.argv[1]), Path(sys.argv[2]), eval(sys.argv[3])
cfg = TrainConfig(**{**dict(tokens=5120, tokens_per_step=256, lr=1e-2, threads=1, device="cpu", precision="float32"), **words})
shape = ModelConfig(d_model=32, n_layers=2, n_heads=2, context=32)
pretrain(cfg, shape, road / "tokens", road / "tokenizer", out, Terminal(quiet=True), corpus=road / "corpus")
"""


def together(road: Path, out: Path, processes: int, **config: Any) -> list[dict[str, Any]]:
    """Pre-train with several processes under torchrun; the rows of its log."""
    script = out.with_suffix(".py")
    script.write_text(TOGETHER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run([*command, script, road, out, repr(config)], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return read_metrics(out / "metrics.jsonl")


@pytest.mark.parametrize("parallel", [{}, {"tensor": 2}])
def test_two_processes_learn_what_one_does(road: Path, tmp_path: Path, terminal: Terminal, parallel: dict[str, Any]) -> None:
    ramp = {"start": 128, "over": 1024, "increment": 64}
    go(road, tmp_path / "one", terminal, precision="float32", batch_ramp=ramp)
    alone = read_metrics(tmp_path / "one" / "metrics.jsonl")
    both = together(road, tmp_path / "two", 2, batch_ramp=ramp, parallel=parallel)
    for ours, theirs in zip(both, alone, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert ours["source_loss"] == pytest.approx(theirs["source_loss"], rel=1e-5)
    one, two = load_folder(tmp_path / "one"), load_folder(tmp_path / "two")
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)  # AdamW makes much of gradients near zero
    assert pedigree.read(tmp_path / "two")["counts"]["tokens"] == alone[-1]["tokens"]


def test_a_run_goes_from_two_processes_to_one_and_back(road: Path, tmp_path: Path, terminal: Terminal) -> None:
    go(road, tmp_path / "whole", terminal, precision="float32", checkpoint_every=5, keep_checkpoints=9)
    whole = read_metrics(tmp_path / "whole" / "metrics.jsonl")

    def cut_back(step: int) -> None:
        (tmp_path / "parts" / "pedigree.json").unlink()
        for path in (tmp_path / "parts").glob("checkpoint-*"):
            if int(path.name[-6:]) > step:
                shutil.rmtree(path)

    together(road, tmp_path / "parts", 2, checkpoint_every=5, keep_checkpoints=9)
    cut_back(10)
    go(road, tmp_path / "parts", terminal, precision="float32", checkpoint_every=5, keep_checkpoints=9)
    cut_back(15)
    rows = together(road, tmp_path / "parts", 2, checkpoint_every=5, keep_checkpoints=9)
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in whole], rel=1e-5)
