"""The command line as a user meets it: exit codes, one clear sentence, JSON where it is promised."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def herdbook(*words: str, cwd: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "herdbook", *words], capture_output=True, text=True, cwd=cwd, input=stdin, timeout=120
    )


VERBS = ["run", "quickstart", "init", "curate", "tokenizer", "tokens", "pretrain", "sft", "eval", "generate", "chat", "bench",
         "serve", "report", "pedigree", "plan", "doctor", "models"]  # fmt: skip


def test_help_lists_the_verbs(tmp_path: Path) -> None:
    done = herdbook("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(f"  {verb} " in done.stdout for verb in VERBS)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "absent.yaml"], ["absent.yaml", "no such recipe", "herdbook init"]),
        (["run", "typo.yaml"], ["typo.yaml:3", "train.tokns", "did you mean train.tokens", "typo.yaml:5", "2 mistakes"]),
        (["run", "quickstart", "train.lr=-1"], ["command line", "train.lr", "greater than 0"]),
        (["run", "quickstart", "--from"], ["requires an argument"]),
        (["curate", "absent.warc.gz"], ["absent.warc.gz"]),
        (["curate", "empty.warc.gz"], ["empty.warc.gz"]),
        (["curate", "truncated.warc.gz"], ["truncated.warc.gz"]),
        (["curate", "binaries.warc"], ["binaries.warc"]),
        (["tokens", "absent"], ["absent", "no such recipe or folder"]),
        (["generate", "absent", "hello"], ["absent"]),
        (["chat", "."], ["config.json"]),
        (["report", "."], ["."]),
        (["pedigree", "."], ["no pedigree"]),
        (["models", "show", "llama2-7c"], ["llama2-7c", "did you mean", "llama2-7b"]),
        (["frobnicate"], ["frobnicate"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_wrong_input_is_one_clear_sentence_and_code_2(tmp_path: Path, words: list[str], says: list[str]) -> None:
    (tmp_path / "typo.yaml").write_text("name: x\ntrain:\n  tokns: 5\ncorpus:\n  sources: []\n")
    (tmp_path / "empty.warc.gz").write_bytes(b"")
    (tmp_path / "truncated.warc.gz").write_bytes(bytes.fromhex("1f8b08000000000000ff") + b"\x00\x01\x02")
    head = b"WARC/1.0\r\nWARC-Type: resource\r\nWARC-Target-URI: http://a.example/x\r\n"
    record = head + b"Content-Type: image/png\r\nContent-Length: 4\r\n\r\n"
    (tmp_path / "binaries.warc").write_bytes((record + b"\x89PNG\r\n\r\n") * 3)
    done = herdbook(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in says), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix not in (".yaml", ".gz", ".warc")) in (
        [], ["corpus"], ["runs"],
    )  # fmt: skip


def test_init_writes_a_recipe_that_loads(tmp_path: Path) -> None:
    (tmp_path / "pages.jsonl").write_text('{"text": "hello"}\n')
    assert herdbook("init", "mine.yaml", "-s", "pages.jsonl", "--license", "cc by", cwd=tmp_path).returncode == 0
    text = (tmp_path / "mine.yaml").read_text()
    assert "path: pages.jsonl" in text
    assert "license: CC-BY-4.0" in text
    assert "name: mine" in text
    done = herdbook("run", "mine.yaml", "--dry-run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["plan"]["parameters"] > 1e6
    assert [row["state"] for row in facts["stations"]] == ["run"] * 5
    assert not (tmp_path / "runs").exists()
    again = herdbook("init", "mine.yaml", cwd=tmp_path)
    assert again.returncode == 2
    assert "--force" in again.stderr


def test_facts_as_json(tmp_path: Path) -> None:
    rows = json.loads(herdbook("models", "ls", "--json", cwd=tmp_path).stdout)
    assert {"llama2-7b", "gpt3-175b"} <= {row["name"] for row in rows}
    shown = json.loads(herdbook("models", "show", "llama2-7b", "--json", cwd=tmp_path).stdout)
    assert shown["parameters"] == 6_738_415_616
    findings = json.loads(herdbook("doctor", "--json", cwd=tmp_path).stdout)
    assert {"python", "torch", "matrix peak"} <= {row["what"] for row in findings}


def test_standing_alone_on_a_file(tmp_path: Path) -> None:
    text = "The herd of cows and the ewes that have been to the market with a lamb go to the hill. " * 8
    rows = [{"text": f"{text}Number {number} is {number * 7919 % 1000}."} for number in range(40)]
    (tmp_path / "herd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "curate",
        "herd.jsonl",
        "corpus.sources.0.filters=false",
        "corpus.dedup.minhash.enabled=false",
        "corpus.heldout=0.2",
    ]
    done = herdbook(*words, "--out", "docs", "--json", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["station"] == "corpus"
    done = herdbook("tokenizer", "docs", "tokenizer.vocab_size=300", "--out", "tok", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = herdbook("tokens", "docs", "--quiet", cwd=tmp_path)
    assert done.returncode == 2
    assert "--tokenizer" in done.stderr
    done = herdbook("tokens", "docs", "--tokenizer", "tok", "--out", "shards", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "shards" / "index.json").is_file()
    done = herdbook("pedigree", "shards", "--verify", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stderr


def test_version(tmp_path: Path) -> None:
    assert herdbook("--version", cwd=tmp_path).stdout.strip().count(".") == 2
