from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from herdbook import pedigree
from herdbook.cli import app
from herdbook.console import Terminal
from herdbook.documents import DocumentWriter
from herdbook.errors import UserError
from herdbook.files import write_json
from herdbook.model.config import ModelConfig
from herdbook.tokens.build import build_tokens, mix_again
from herdbook.tokens.config import TokenizerConfig, TokensConfig
from herdbook.tokens.loader import Mixture
from herdbook.tokens.tokenizer import train_tokenizer
from herdbook.train.config import TrainConfig
from herdbook.verbs import batch

TRAIN = TrainConfig(tokens=4096, tokens_per_step=256, seed=11)
MODEL = ModelConfig(vocab_size=300, d_model=16, n_layers=1, n_heads=1, d_ff=16, context=64)
MIXTURE = {"sources": {"tales": "1ep", "ledger": 1}, "packing": "best_fit"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of which only what pedigrees hold of pre-training is there."""
    quiet, run = Terminal(quiet=True), tmp_path / "run"
    with DocumentWriter(run / "corpus", "documents") as writer:
        for number in range(80):
            source = "tales" if number % 4 == 0 else "ledger"
            writer.write({"id": f"{source}/{number}", "text": f"The shepherd counted {number} sheep. " * (1 + number % 5),
                          "url": f"https://example.org/{number}", "source": source,
                          "license": "CC0-1.0" if source == "tales" else "MIT"})  # fmt: skip
    train_tokenizer(TokenizerConfig(vocab_size=300), run / "corpus", run / "tokenizer", quiet)
    build_tokens(TokensConfig.model_validate(MIXTURE), run / "corpus", run / "tokenizer", run / "tokens", quiet)
    config = {"train": TRAIN.identity(), "model": MODEL.model_dump(mode="json")}
    with pedigree.record(run / "pretrain", "pretrain", config) as record:
        record.add_input(run / "tokens", "tokens")
    return run


def asked(text: str) -> dict[str, object]:
    done = CliRunner().invoke(app, ["pedigree", "--batch", text, "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_step_leads_to_its_documents(run: Path) -> None:
    mixture = Mixture(run / "tokens", context=64, seed=11, length=4096)
    for step in (1, 7, 16):
        for folder in (run, run / "pretrain"):
            found = asked(f"{folder}@{step}")
            assert found["step"] == step
            rows = found["sequences"]
            assert isinstance(rows, list) and [row["sequence"] for row in rows] == list(range(4 * step - 4, 4 * step))
            for row in rows:
                origin = mixture.origin(row["sequence"])
                assert row["source"] == origin.source
                assert [(d["id"], d["tokens"]) for d in row["documents"]] == [(d.id, d.tokens) for d in origin.documents]
                for document in row["documents"]:
                    assert document["url"] == f"https://example.org/{document['id'].partition('/')[2]}"
                    assert document["license"] == {"tales": "CC0-1.0", "ledger": "MIT"}[row["source"]]


def test_for_people(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    batch.show(f"{run}@2", Terminal())
    assert "4 sequences of 64 tokens" in (text := capsys.readouterr().err) and "https://example.org/" in text


def test_what_was_left_out_moves_the_data(run: Path) -> None:
    """A rewind from step 9 to step 4: step 5 took what follows on the data of step 9."""
    before = asked(f"{run}@10")["sequences"]
    event = {"event": "rewind", "step": 9, "to_step": 4, "sequences": 20, "left_out": [[4, 20]], "rewinds": 1}
    (run / "pretrain" / "events.jsonl").write_text(json.dumps(event) + "\n")
    assert asked(f"{run}@5")["sequences"] == before
    rows = asked(f"{run}@4")["sequences"]
    assert isinstance(rows, list) and [row["sequence"] for row in rows] == [12, 13, 14, 15]


def test_a_run_that_has_not_ended(run: Path) -> None:
    whole = asked(f"{run}@3")["sequences"]
    (run / "pretrain" / "pedigree.json").unlink()
    with pytest.raises(UserError, match="neither a finished pre-training here nor a checkpoint"):
        batch.show(f"{run}@3", Terminal(quiet=True))
    inputs = {"tokens": pedigree.fingerprint(run / "tokens", "tokens", run / "pretrain").sha256}
    identity = {"train": TRAIN.identity(), "model": MODEL.model_dump(mode="json"), "inputs": inputs}
    write_json(run / "pretrain" / "checkpoint-000002" / "checkpoint.json", {"version": 1, "step": 2, "identity": identity})
    assert asked(f"{run}@3")["sequences"] == whole


def test_mistakes(run: Path) -> None:
    quiet = Terminal(quiet=True)
    for text, says in (
        (str(run), "names no step"), (f"{run}@", "names no step"), (f"{run}@last", "names no step"),
        (f"{run}@0", "there is no step 0: this run has 16"), (f"{run}@17", "there is no step 17"),
        (f"{run}-not@1", "no such run"), (f"{run / 'tokens'}@1", "a folder of tokens, not of pre-training"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=says):
            batch.show(text, quiet)
    other = TokensConfig.model_validate({**MIXTURE, "sources": {"tales": 1, "ledger": 1}})
    assert mix_again(other, run / "corpus", run / "tokenizer", run / "tokens", quiet)
    with pytest.raises(UserError, match="not what they were when this run was trained"):
        batch.show(f"{run}@1", quiet)
