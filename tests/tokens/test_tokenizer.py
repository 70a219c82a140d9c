from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from herdbook import pedigree
from herdbook.console import Terminal
from herdbook.documents import read_documents
from herdbook.errors import UserError
from herdbook.tokenizer import Tokenizer
from herdbook.tokens.build import build_tokens
from herdbook.tokens.config import SPECIAL_TOKENS, TokenizerConfig, TokensConfig
from herdbook.tokens.tokenizer import load_encoder, separator_id, tokenizer_file, train_tokenizer

TRICKY = ["", " ", "\n\n  \t", "2024 + 31 = 2055", "don't  I'LL", "naïve Σίσυφος 羊 🐑👩‍🌾", "<|endoftext|>", "\r\n", "=" * 100]


def test_special_tokens_have_fixed_ids(tokenizer: Path) -> None:
    encoder = load_encoder(tokenizer)
    assert [encoder.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3]
    assert separator_id(tokenizer) == 0
    assert sorted(encoder.get_vocab().values()) == list(range(600))


def test_digits_stand_alone(tokenizer: Path) -> None:
    assert load_encoder(tokenizer).encode("x=1234").tokens[-4:] == ["1", "2", "3", "4"]


def test_text_cannot_forge_special_tokens(tokenizer: Path) -> None:
    assert 0 not in load_encoder(tokenizer).encode("<|endoftext|>", add_special_tokens=False).ids


def test_a_prompt_begins_as_training_documents_do(tokenizer: Path) -> None:
    assert load_encoder(tokenizer).encode("hello").ids[0] == separator_id(tokenizer)


@pytest.mark.parametrize("config", [None, {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}])
def test_transformers_opens_it_and_encodes_the_same(tokenizer: Path, tmp_path: Path, config: dict[str, Any] | None) -> None:
    transformers = pytest.importorskip("transformers")
    shutil.copytree(tokenizer, tmp_path / "model")
    if config is not None:
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    ours = load_encoder(tokenizer)
    ours.encode_special_tokens = False
    for text in [*TRICKY, (Path(__file__)).read_text(encoding="utf-8")]:
        ids = theirs(text).input_ids
        assert ids == ours.encode(text).ids
        assert theirs.decode(ids) == SPECIAL_TOKENS[0] + text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 0, 1)
    assert len(theirs) == 600
    assert theirs.decode([2, *theirs("hi", add_special_tokens=False).input_ids, 3], skip_special_tokens=True) == "hi"
    assert {"<|im_start|>", "<|im_end|>"} <= set(theirs.all_special_tokens)


def test_training_again_gives_the_same_files(corpus: Path, tokenizer: Path, tmp_path: Path, terminal: Terminal) -> None:
    train_tokenizer(TokenizerConfig(vocab_size=600), corpus, tmp_path, terminal)
    for name in ("tokenizer.json", "tokenizer_config.json", "report.json"):
        assert (tmp_path / name).read_bytes() == (tokenizer / name).read_bytes()


def test_report(tokenizer: Path) -> None:
    report = json.loads((tokenizer / "report.json").read_text())
    assert report["vocab_size"] == 600
    assert set(report["by_source"]) == {"code", "stdlib", "tales"}
    assert set(report["by_language"]) == {"en", "fr"}
    assert report["measured_on"]["split"] == "heldout"
    assert report["round_trip"] == 1.0
    assert 1.5 < report["bytes_per_token"] < 5
    assert 0.2 < report["vocabulary_used"] <= 1
    assert report["byte_fallback"] < 0.05
    assert report["compare"] == []
    assert report["special_tokens"] == {"<|endoftext|>": 0, "<|pad|>": 1, "<|im_start|>": 2, "<|im_end|>": 3}
    assert sum(row["tokens"] for row in report["by_source"].values()) == sum(
        row["tokens"] for row in report["by_language"].values()
    )


def test_pedigree_names_corpus_and_licences(tokenizer: Path, corpus: Path) -> None:
    manifest = pedigree.read(tokenizer)
    assert [item["role"] for item in manifest["inputs"]] == ["corpus"]
    assert {row["id"] for row in manifest["licenses"]} == {"Apache-2.0", "PSF-2.0", "CC0-1.0"}
    assert manifest["counts"]["trained_on_bytes"] == sum(manifest["sample_bytes_by_source"].values())
    assert pedigree.is_current(tokenizer, TokenizerConfig(vocab_size=600).model_dump(mode="json"), [(corpus, "corpus")])


def test_a_sample_of_one_source(corpus: Path, tmp_path: Path, terminal: Terminal) -> None:
    train_tokenizer(TokenizerConfig(vocab_size=300, sources={"tales": 1}, sample_bytes=5000), corpus, tmp_path, terminal)
    manifest = pedigree.read(tmp_path)
    assert set(manifest["sample_bytes_by_source"]) == {"tales"}
    assert manifest["counts"]["trained_on_bytes"] <= 5000


def test_a_vocabulary_larger_than_the_text_allows(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = TokenizerConfig(vocab_size=60_000, sample_bytes=20_000)
    train_tokenizer(cfg, corpus, tmp_path, Terminal(quiet=True))
    assert "nothing else occurs often enough" in " ".join(capsys.readouterr().err.split())
    assert json.loads((tmp_path / "report.json").read_text())["vocab_size"] < 60_000


def test_taking_a_tokenizer_that_exists(corpus: Path, tokenizer: Path, tmp_path: Path, terminal: Terminal) -> None:
    train_tokenizer(TokenizerConfig(path=tokenizer), corpus, tmp_path / "taken", terminal)
    assert (tmp_path / "taken" / "tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()
    manifest = pedigree.read(tmp_path / "taken")
    assert {item["role"] for item in manifest["inputs"]} == {"corpus", "tokenizer"}
    assert manifest["counts"]["trained_on_bytes"] == 0
    assert "Apache-2.0" in {row["id"] for row in manifest["licenses"]}


def test_taking_sentencepieces_file(corpus: Path, tmp_path: Path, terminal: Terminal) -> None:
    """A folder as LLaMA was published, with `tokenizer.model` and nothing else."""
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "theirs").mkdir()
    lines = [line for row in read_documents(corpus, columns=["text"]) for line in row["text"].split("\n") if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / "theirs" / "tokenizer"), model_type="bpe", vocab_size=800,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        minloglevel=2,
    )  # fmt: skip
    cfg = TokenizerConfig(path=tmp_path / "theirs", license="MIT")
    train_tokenizer(cfg, corpus, tmp_path / "taken", terminal)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "theirs" / "tokenizer.model"))
    assert load_encoder(tmp_path / "taken").encode(lines[0], add_special_tokens=False).ids == theirs.encode(lines[0])
    assert separator_id(tmp_path / "taken") == theirs.eos_id()
    report = json.loads((tmp_path / "taken" / "report.json").read_text())
    assert (report["vocab_size"], report["round_trip"]) == (800, 1.0)
    inputs = [(corpus, "corpus"), (tokenizer_file(cfg.path or tmp_path), "tokenizer")]
    assert pedigree.is_current(tmp_path / "taken", cfg.model_dump(mode="json"), inputs)


@pytest.mark.parametrize("kind", ["llama", "unigram"])
def test_other_kinds_go_down_the_road(corpus: Path, tmp_path: Path, terminal: Terminal, kind: str) -> None:
    cfg = TokenizerConfig.model_validate({"kind": kind, "vocab_size": 800})
    train_tokenizer(cfg, corpus, tmp_path / "tokenizer", terminal)
    report = json.loads((tmp_path / "tokenizer" / "report.json").read_text())
    assert (report["vocab_size"], report["round_trip"]) == (800, 1.0)
    assert report["special_tokens"] == {token: index for index, token in enumerate([*SPECIAL_TOKENS, "<unk>"])}
    assert 1.5 < report["bytes_per_token"] < 5
    build_tokens(TokensConfig(), corpus, tmp_path / "tokenizer", tmp_path / "tokens", terminal, workers=1)
    words = Tokenizer.load(tmp_path / "tokenizer")
    shard = np.fromfile(tmp_path / "tokens" / "tales-00000.bin", dtype="<u2")
    ends = [*np.flatnonzero(shard == 0).tolist(), len(shard)]
    told = [words.decode(shard[start:end].tolist()) for start, end in pairwise(ends)]
    assert told == [row["text"] for row in read_documents(corpus, columns=["text", "source"]) if row["source"] == "tales"]


def test_others_beside_it(corpus: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = TokenizerConfig(kind="llama", vocab_size=600, compare=[tokenizer, tokenizer / "tokenizer.json"])
    train_tokenizer(cfg, corpus, tmp_path, Terminal())
    compared = json.loads((tmp_path / "report.json").read_text())["compare"]
    alone = json.loads((tokenizer / "report.json").read_text())
    assert [row["tokenizer"] for row in compared] == [str(tokenizer), str(tokenizer / "tokenizer.json")]
    for row in compared:
        assert {key: alone[key] for key in row if key != "tokenizer"} == {key: row[key] for key in row if key != "tokenizer"}
    shown = capsys.readouterr().err
    assert "this one" in shown
    assert "come back unchanged" in " ".join(shown.split())


def test_one_to_compare_with_that_is_not_there(corpus: Path, tmp_path: Path, terminal: Terminal) -> None:
    cfg = TokenizerConfig(vocab_size=300, compare=[tmp_path / "nowhere"])
    with pytest.raises(UserError, match="no such file or folder"):
        train_tokenizer(cfg, corpus, tmp_path / "out", terminal)
    assert not (tmp_path / "out" / "tokenizer.json").exists()  # said before the work begins


def test_taking_one_without_a_licence_says_so(
    corpus: Path, tokenizer: Path, tmp_path: Path, terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tokenizer, tmp_path / "theirs")
    (tmp_path / "theirs" / "pedigree.json").unlink()
    train_tokenizer(TokenizerConfig(path=tmp_path / "theirs"), corpus, tmp_path / "a", terminal)
    assert "tokenizer.license=" in capsys.readouterr().err
    assert pedigree.read(tmp_path / "a")["license"]["id"] == "LicenseRef-unknown"
    train_tokenizer(TokenizerConfig(path=tmp_path / "theirs", license="MIT"), corpus, tmp_path / "b", terminal)
    assert pedigree.read(tmp_path / "b")["license"]["id"] == "MIT"


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer here"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "not a tokenizer that can be read"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{}"), "names no eos_token"),
        (lambda folder: (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}'), "names no eos_token"),
        (lambda folder: (folder / "tokenizer_config.json").unlink(), "no tokenizer's settings"),
        (shutil.rmtree, "no such file or folder"),
    ],
)
def test_taking_a_broken_one(
    corpus: Path, tokenizer: Path, tmp_path: Path, terminal: Terminal, break_it: Any, says: str
) -> None:
    shutil.copytree(tokenizer, tmp_path / "broken")
    break_it(tmp_path / "broken")
    with pytest.raises(UserError, match=says):
        train_tokenizer(TokenizerConfig(path=tmp_path / "broken"), corpus, tmp_path / "out", terminal)
    assert not pedigree.exists(tmp_path / "out")


def test_no_corpus(tmp_path: Path, terminal: Terminal) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no train documents here"):
        train_tokenizer(TokenizerConfig(), tmp_path / "empty", tmp_path / "out", terminal)


def test_a_source_that_is_not_in_the_corpus(corpus: Path, tmp_path: Path, terminal: Terminal) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.sources: the source 'wiki' is not in the corpus"):
        train_tokenizer(TokenizerConfig(sources={"wiki": 1}), corpus, tmp_path, terminal)
