"""Text to look at and to measure on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Trained
from tokenizers import decoders, models, pre_tokenizers

from herdbook.documents import DocumentWriter
from herdbook.errors import UserError
from herdbook.quantize.text import corpus_near, read_texts, token_rows
from herdbook.tokenizer import Tokenizer


@pytest.fixture
def words() -> Tokenizer:
    """A token a byte; 256 stands between documents."""
    letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    trained = Trained(models.BPE(vocab=letters, merges=[]))
    trained.pre_tokenizer, trained.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trained.add_special_tokens(["<|end|>"])
    return Tokenizer(trained.to_str(), {"eos_token": "<|end|>"})


def write_corpus(folder: Path, prefix: str, texts: list[str]) -> None:
    with DocumentWriter(folder, prefix) as writer:
        for number, text in enumerate(texts):
            writer.write({"id": f"{prefix}{number}", "text": text, "source": "x", "license": "CC0-1.0"})


def test_every_kind_of_text(tmp_path: Path) -> None:
    texts = ["one", "two\nlines", "drei: ß"]
    write_corpus(tmp_path / "corpus", "documents", ["to train on"])
    write_corpus(tmp_path / "corpus", "heldout", texts)
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (tmp_path / "a.txt").write_text("\n".join(texts * 300), encoding="utf-8")
    assert list(read_texts(tmp_path / "corpus")) == texts
    assert list(read_texts(tmp_path / "corpus" / "heldout-00000.parquet")) == texts
    assert list(read_texts(tmp_path / "a.jsonl")) == texts
    assert "".join(read_texts(tmp_path / "a.txt")) == "\n".join(texts * 300)
    (tmp_path / "sft").mkdir()
    assert corpus_near(tmp_path) == corpus_near(tmp_path / "sft") == tmp_path / "corpus"
    assert corpus_near(tmp_path / "corpus" / "x") is None


def test_rows_hold_documents_one_behind_the_other(words: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "abcd<|end|>"}\n{"text": "ef"}\n{"text": "ghijklmn"}\n')
    rows = token_rows(tmp_path / "a.jsonl", words, tokens=1000, row=8)
    end = words.eos_id
    assert rows.shape == (3, 8)
    assert rows.flatten()[:5].tolist() == [end, *words.encode("abcd")]
    assert rows.flatten().tolist().count(end) == 3  # what is written out in the text is no end
    assert token_rows(tmp_path / "a.jsonl", words, tokens=8, row=8).tolist() == rows[:1].tolist()
    assert token_rows(tmp_path / "a.jsonl", words, tokens=8, row=8, skip=1).tolist() == rows[1:2].tolist()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"too short", "there are only 10 tokens, and a row takes 64"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"words": 1}', r"a\.jsonl:2: this line is no JSON object"),
        ("a.jsonl", b"[" * 5000, r"a\.jsonl:1"),
        ("a.parquet", b"PAR1", "not a whole parquet file"),
        ("none.txt", None, "there is no such text"),
    ],
)
def test_what_is_no_text_is_one_error(name: str, content: bytes | None, message: str, words: Tokenizer, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        token_rows(tmp_path / name, words, tokens=64, row=64)


def test_what_is_left_when_some_is_taken(words: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 100)
    with pytest.raises(UserError, match="101 tokens, of which 96 are for something else, and a row takes 32"):
        token_rows(tmp_path / "a.txt", words, tokens=64, row=32, skip=3)
