from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import herdbook as hb
from herdbook import pedigree
from herdbook.align.chat import PRESETS, ChatFormat
from herdbook.align.config import SftConfig
from herdbook.align.data import Skipped, read_conversations, tokenize
from herdbook.align.sft import FineTuning, choose_format, sft
from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.interop.hf import load_folder
from herdbook.tokenizer import Tokenizer
from herdbook.train.losses import IGNORED, HeadLoss
from herdbook.train.metrics import read_metrics


@pytest.fixture(autouse=True)
def quick_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the machine takes a second; the tests need only a number."""
    monkeypatch.setattr("herdbook.train.machine._peak", lambda *_: 1e11)


def go(base: Path, out: Path, terminal: Terminal, corpus: Path | None = None, **config: Any) -> None:
    settings: dict[str, Any] = {"tokens_per_step": 512, "lr": 1e-2, "threads": 1, "device": "cpu", "epochs": 1}
    sft(SftConfig(**settings | config), base, out, terminal, corpus=corpus)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_the_station_teaches_and_leaves_what_the_contract_says(
    base: Path, corpus: Path, tmp_path: Path, terminal: Terminal
) -> None:
    out = tmp_path / "sft"
    go(base, out, terminal, corpus, epochs=2, heldout=0.1)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
                 "metrics.jsonl", "plan.json", "latest", "pairs.jsonl", "pedigree.json"):  # fmt: skip
        assert (out / name).exists(), name
    rows = read_metrics(out / "metrics.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"] - 1
    assert "val_bits_per_byte" in rows[-1]
    manifest = pedigree.read(out)
    assert {row["id"] for row in manifest["licenses"]} == {"Apache-2.0", "PSF-2.0", "CC-BY-SA-4.0"}
    counts = manifest["counts"]
    assert set(counts["samples_by_kind"]) == {"does", "which", "signature", "docstring", "what is"}
    assert 0 < counts["trained_tokens"] < counts["tokens"]
    assert manifest["chat_format"] == "chatml"
    pairs = [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]
    assert len(pairs) == counts["samples"]
    assert all(pair["document"] for pair in pairs)


def test_the_model_folder_carries_the_format_it_was_taught(
    base: Path, corpus: Path, tmp_path: Path, terminal: Terminal
) -> None:
    for name in PRESETS:
        go(base, tmp_path / name, terminal, corpus, tokens=512, chat=name)
        words = Tokenizer.load(tmp_path / name)
        assert words.chat_template == PRESETS[name]
        assert ChatFormat(words).name == name
        assert words.turn_end_id in words.end_ids
        ends = json.loads((tmp_path / name / "generation_config.json").read_text())["eos_token_id"]
        assert words.turn_end_id in (ends if isinstance(ends, list) else [ends])
    go(tmp_path / "llama2", tmp_path / "again", terminal, corpus, tokens=512)
    assert ChatFormat(Tokenizer.load(tmp_path / "again")).name == "llama2"


def test_tiny_data_is_learned_by_heart_and_answers_end(base: Path, tmp_path: Path, terminal: Terminal) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "What is up?", "completion": "The sky."},
                                        {"prompt": "What is down?", "completion": "The ground."}])  # fmt: skip
    out = tmp_path / "sft"
    go(base, out, terminal, data=str(path), epochs=60, heldout=0, tokens_per_step=128, precision="float32")
    model, words = load_folder(out), Tokenizer.load(out)
    for question, answer in (("What is up?", "The sky."), ("What is down?", "The ground.")):
        ids = words.encode_chat([{"role": "user", "content": question}])
        for _ in range(20):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
            if ids[-1] in words.end_ids:
                break
        assert words.decode(ids, skip_special=False).endswith(f"assistant\n{answer}<|im_end|>")


def test_the_loss_is_on_the_answers_only(base: Path, words: Tokenizer, tmp_path: Path) -> None:
    rows = [{"prompt": f"Count to {n}.", "completion": " ".join(map(str, range(n)))} for n in range(2, 9)]
    found = read_conversations(write(tmp_path / "a.jsonl", rows), Skipped())
    samples = tokenize(found, ChatFormat(words, "chatml"), Skipped(), system=None, longest=129)
    task = FineTuning(samples, [[0, 1], [2], [3, 4], [5, 6]], 2, 2, 129, 1, 1)
    model = load_folder(base)
    assert [len(task.micro_batches(step)) for step in (0, 1)] == [2, 2]
    decoded: list[str] = []
    for step in (0, 1):
        for batch in task.micro_batches(step):
            total, count, _ = task.loss(model, batch)
            x_BTD = model.hidden(batch["tokens"], documents_BT=batch["documents"])
            everywhere = HeadLoss()(model, x_BTD, batch["targets"])[0].sum()
            assert total.item() == pytest.approx(everywhere.item(), rel=1e-5)
            learned = batch["targets"][batch["targets"] != IGNORED]
            assert count == len(learned)
            decoded.append(words.decode(learned.tolist(), skip_special=False))
    assert "".join(decoded) == "".join(f"{row['completion']}<|im_end|>" for row in rows)


def test_the_last_step_is_filled_up(words: Tokenizer, tmp_path: Path) -> None:
    found = read_conversations(write(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "a"}]), Skipped())
    samples = tokenize(found, ChatFormat(words, "chatml"), Skipped(), system=None, longest=33)
    task = FineTuning(samples, [[0]], 1, 4, 33, 4, 1)
    (batch,) = task.micro_batches(0)
    assert batch["tokens"].shape == (4, 32)
    assert (batch["targets"][1:] == IGNORED).all()
    assert task.describe()["samples_seen"] == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no data is named"),
        ([{"prompt": "q", "completion": ""}], r"1 × an empty answer \(a.jsonl:1\)"),
        ([{"prompt": "q " * 500, "completion": "a"}], "1 × longer than the context"),
    ],
)
def test_nothing_to_train_on_is_an_error(
    base: Path, tmp_path: Path, terminal: Terminal, rows: list[dict[str, Any]], message: str
) -> None:
    data = {"data": str(write(tmp_path / "a.jsonl", rows))} if rows else {}
    with pytest.raises(UserError, match=f"nothing to fine-tune on: {message}"):
        go(base, tmp_path / "out", terminal, **data)
    assert not pedigree.exists(tmp_path / "out")


def test_licences_of_files_count_and_unknown_ones_are_unknown(base: Path, tmp_path: Path, terminal: Terminal) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "q", "completion": f"a{n}"} for n in range(9)])
    go(base, tmp_path / "known", terminal, data=[{"path": str(path), "license": "CC-BY-4.0"}])
    assert {row["id"] for row in pedigree.read(tmp_path / "known")["licenses"]} == {"Apache-2.0", "CC-BY-4.0"}
    go(base, tmp_path / "unknown", terminal, data=str(path))
    assert "LicenseRef-unknown" in {row["id"] for row in pedigree.read(tmp_path / "unknown")["licenses"]}
    roles = {item["role"] for item in pedigree.read(tmp_path / "known")["inputs"]}
    assert roles == {"pretrain", "conversations"}


def test_cut_off_it_goes_on_and_ends_the_same(
    base: Path, corpus: Path, tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"tokens": 512 * 6, "checkpoint_every": 2, "keep_checkpoints": 9}
    go(base, tmp_path / "whole", terminal, corpus, **settings)
    go(base, tmp_path / "parts", terminal, corpus, **settings)
    (tmp_path / "parts" / "pedigree.json").unlink()
    for step in (4, 6):
        (tmp_path / "parts" / f"checkpoint-{step:06d}" / "checkpoint.json").unlink()
    go(base, tmp_path / "parts", terminal, corpus, **settings)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]
    losses = [[row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("whole", "parts")]
    assert losses[0] == losses[1]
    before = (tmp_path / "parts" / "pedigree.json").read_bytes()
    go(base, tmp_path / "parts", terminal, corpus, **settings)
    assert (tmp_path / "parts" / "pedigree.json").read_bytes() == before


@pytest.mark.parametrize(
    ("config", "message"),
    [({"context": 256}, "longer than the model's"), ({"tokens_per_step": 100, "context": 64}, "multiple of the context")],
)
def test_shapes_that_do_not_fit_are_refused(
    base: Path, corpus: Path, tmp_path: Path, terminal: Terminal, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        go(base, tmp_path / "out", terminal, corpus, **config)


def test_the_format_follows_wish_then_model_then_tokenizer(words: Tokenizer) -> None:
    assert choose_format(words, None).name == "chatml"
    assert choose_format(words, "plain").name == "plain"
    assert choose_format(words.with_chat_template(PRESETS["llama2"]), None).name == "llama2"


def test_a_model_made_from_llama_is_for_research_only(base: Path, tmp_path: Path, terminal: Terminal) -> None:
    """Its card says MIT, and which model it was made of: the stricter licence counts, goes along, and can be refused."""
    model = tmp_path / "llama"
    shutil.copytree(base, model, ignore=shutil.ignore_patterns("pedigree.json", "README.md"))
    (model / "README.md").write_text("---\nlicense: mit\nbase_model: huggyllama/llama-7b\n---\n")
    data = write(tmp_path / "a.jsonl", [{"prompt": f"say {i}", "completion": f"it is {i}"} for i in range(8)])
    files: dict[str, Any] = {"data": [{"path": data, "license": "CC0-1.0"}]}
    go(model, tmp_path / "sft", terminal, **files)
    assert not pedigree.read(tmp_path / "sft")["license"]["commercial"]
    assert "LicenseRef-llama-1" in (tmp_path / "sft" / "README.md").read_text()
    with pytest.raises(UserError, match="no commercial use"):
        go(model, tmp_path / "not", terminal, commercial=True, **files)
    assert not pedigree.exists(tmp_path / "not")
    with pytest.raises(UserError, match=r"a\.jsonl.*no commercial use"):
        go(base, tmp_path / "not", terminal, commercial=True, data=[data])


def test_a_gguf_file_can_be_fine_tuned(base: Path, tmp_path: Path, terminal: Terminal) -> None:
    hb.load(base).save(tmp_path / "base.gguf", dtype="float32")
    data = write(tmp_path / "a.jsonl", [{"prompt": f"say {i}", "completion": f"it is {i}"} for i in range(8)])
    go(tmp_path / "base.gguf", tmp_path / "sft", terminal, data=[{"path": data, "license": "CC0-1.0"}])
    assert {row["id"] for row in pedigree.read(tmp_path / "sft")["licenses"]} == {"Apache-2.0", "CC0-1.0"}
