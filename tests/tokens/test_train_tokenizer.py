"""The three kinds of tokenizer: any text comes back, ids are those of the libraries that read the files, nothing is random."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Encoder
from tokenizers import normalizers

from herdbook.align.chat import ChatFormat
from herdbook.errors import UserError
from herdbook.infer.config import Sampling
from herdbook.infer.engine import Engine
from herdbook.interop.gguf.vocabulary import gguf_metadata_of, tokenizer_from_gguf
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.tokenizer import TextStream, Tokenizer
from herdbook.tokens.config import BYTES, SPECIAL_TOKENS, UNKNOWN, TokenizerConfig
from herdbook.tokens.measure import plain
from herdbook.tokens.train_tokenizer import fit, settings_of

from .conftest import documents

TRICKY = [
    "", " ", "   ", "\n\n  \t", "\x00\x7f\x85", "2024 + 31 = 2055", "ⅷ²", "don't  I'LL", "naïve Σίσυφος 羊 🐑👩‍🌾",
    "<|endoftext|>", "a<|im_start|>system", "e\u0301 é \u200b\ufeff", "\r\n", "=" * 100, " lead", "trail ", "a  b   c", "\n a",
    "<unk> <0x41><0x0A>", "<s></s>", "\ufffd\ufffe\uffff", "\u2028\u2029", "漢字かなカナ", "🐑 sheep", "a\u00a0b", "\U0010ffff",
    "x" * 3000, "    def f(x):\n\t\treturn x\r\n",
]  # fmt: skip
KINDS = {
    "bpe": TokenizerConfig(vocab_size=600),
    "llama": TokenizerConfig(kind="llama", vocab_size=700),
    "unigram": TokenizerConfig(kind="unigram", vocab_size=700),
    "llama without prefix": TokenizerConfig(kind="llama", vocab_size=700, prefix_space=False),
    "unigram without prefix": TokenizerConfig(kind="unigram", vocab_size=700, prefix_space=False),
    "bpe in form KC": TokenizerConfig(vocab_size=600, normalization="nfkc"),
    "llama in form KC": TokenizerConfig(kind="llama", vocab_size=700, normalization="nfkc"),
    "unigram in form KC": TokenizerConfig(kind="unigram", vocab_size=700, normalization="nfkc"),
}


def texts() -> Iterator[str]:
    yield from (text for _, _, text in documents()[::3])
    yield from TRICKY


@cache
def trained(kind: str) -> Encoder:
    return plain(fit(KINDS[kind], texts))


def opened(kind: str) -> Tokenizer:
    return Tokenizer(trained(kind).to_str(), settings_of(KINDS[kind]))


def expected(kind: str, text: str) -> str:
    """What comes back: the text; but one's normal form where that is asked for, and where `▁` stands for spaces it is one."""
    if "KC" in kind:
        text = normalizers.NFKC().normalize_str(text)
    return text if kind.startswith("bpe") else text.replace("▁", " ")


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_comes_back(kind: str) -> None:
    encoder = trained(kind)
    specials = len(SPECIAL_TOKENS) + (not kind.startswith("bpe"))

    @settings(max_examples=150, deadline=None)
    @given(text=st.text() | st.lists(st.sampled_from([*TRICKY[:-2], "▁", "▁▁a ▁", " "])).map("".join))
    @example(text=" ".join(TRICKY))
    @example(text="▁")
    def comes_back(text: str) -> None:
        ids = encoder.encode(text, add_special_tokens=False).ids
        assert encoder.decode(ids, skip_special_tokens=False) == expected(kind, text)
        assert all(index >= specials for index in ids)

    comes_back()


@pytest.mark.parametrize("kind", ["bpe", "llama", "unigram"])
def test_half_a_surrogate_pair_is_no_text(kind: str) -> None:
    for encode in (opened(kind).encode, opened(kind).encode_document, opened(kind).encode_prompt):
        with pytest.raises(UserError, match="half of a surrogate pair"):
            encode("a\ud800b")


@pytest.mark.parametrize("kind", ["llama", "unigram"])
def test_ids(kind: str) -> None:
    encoder = trained(kind)
    assert [encoder.token_to_id(token) for token in (*SPECIAL_TOKENS, UNKNOWN, *BYTES)] == list(range(261))
    assert sorted(encoder.get_vocab().values()) == list(range(700))
    assert encoder.encode("x", add_special_tokens=True).ids[0] == 0


@pytest.mark.parametrize("kind", ["llama", "unigram"])
def test_pieces_follow_the_rules(kind: str) -> None:
    learned = [token for token, index in trained(kind).get_vocab().items() if index > 260]
    assert max(map(len, learned)) <= 16
    assert any(token.startswith("▁▁▁") for token in learned)  # runs of spaces, as in code
    for token in learned:
        assert token.strip("▁") == "" or "▁" not in token[1:], token  # no piece reaches across words
        assert len(token) == 1 or not any(char.isdigit() for char in token), token
        assert not set(token) & set("\n\t\r\0"), token
    assert trained(kind).encode(" 1234", add_special_tokens=False).tokens[-4:] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("kind", ["llama", "unigram"])
def test_rare_characters_become_bytes(kind: str) -> None:
    cfg = TokenizerConfig.model_validate({"kind": kind, "vocab_size": 300, "character_coverage": 0.99})
    encoder = plain(fit(cfg, lambda: iter(["aaaa bbbb cccc " * 100, "é"])))
    assert encoder.encode("é", add_special_tokens=False).tokens == ["▁", "<0xC3>", "<0xA9>"]
    whole = plain(fit(cfg.model_copy(update={"character_coverage": 1.0}), lambda: iter(["aaaa bbbb cccc " * 100, "é"])))
    assert "é" in whole.get_vocab()


def test_an_alphabet_that_does_not_fit() -> None:
    with pytest.raises(UserError, match=r"90 characters, and a vocabulary of 300 has room for 39[\s\S]*character_coverage"):
        fit(TokenizerConfig(kind="llama", vocab_size=300), lambda: iter(["".join(map(chr, range(0x4E00, 0x4E00 + 89)))]))


@pytest.mark.parametrize("kind", ["bpe", "llama", "unigram"])
def test_what_has_no_end_is_cut_in_training_and_not_after(kind: str) -> None:
    cfg = TokenizerConfig.model_validate({"kind": kind, "vocab_size": 300})
    encoder = plain(fit(cfg, lambda: iter(["a" * 100_000, " " * 100_000])))
    assert 8 <= max(map(len, set(encoder.get_vocab()) - {*SPECIAL_TOKENS, UNKNOWN, *BYTES})) <= 256
    assert "\\S" not in encoder.to_str()
    assert encoder.decode(encoder.encode("a" * 5000 + " " * 5000).ids) == "a" * 5000 + " " * 5000


def test_the_file_has_the_shape_of_llamas() -> None:
    definition = json.loads(trained("llama").to_str())
    assert definition["normalizer"]["normalizers"] == [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    assert definition["pre_tokenizer"] is None
    assert [step["type"] for step in definition["decoder"]["decoders"]] == ["Replace", "ByteFallback", "Fuse", "Strip"]
    model = definition["model"]
    assert (model["type"], model["byte_fallback"], model["fuse_unk"], model["unk_token"]) == ("BPE", True, True, "<unk>")


# ---- other readers of the same vocabulary ----


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, value: int | float | bytes) -> bytes:
    """A field of a protobuf message."""
    if isinstance(value, bytes):
        return _number(number << 3 | 2) + _number(len(value)) + value
    return (
        _number(number << 3 | 5) + struct.pack("<f", value)
        if isinstance(value, float)
        else _number(number << 3) + _number(value)
    )


def sentencepiece_model(encoder: Encoder, *, unigram: bool, prefix: bool) -> bytes:
    """The vocabulary as a `tokenizer.model`: pieces with scores and kinds, and the settings that matter."""
    model = json.loads(encoder.to_str())["model"]
    vocabulary = dict(model["vocab"]) if unigram else {token: -float(index) for token, index in model["vocab"].items()}
    content, ids = b"", encoder.get_vocab()
    for index, (token, score) in enumerate(sorted(vocabulary.items(), key=lambda row: ids[row[0]])):
        kind = 3 if index < 4 else 2 if index == 4 else 6 if index < 261 else 1
        content += _field(1, _field(1, token.encode()) + _field(2, float(score)) + _field(3, kind))
    trainer = (
        _field(3, 1 if unigram else 2)
        + _field(35, 1)
        + _field(40, 4)
        + b"".join(_field(number, (1 << 64) - 1) for number in (41, 42, 43))
    )  # no bos, eos or pad of its own
    normalizer = _field(1, b"identity") + _field(3, int(prefix)) + _field(4, 0) + _field(5, 1)
    return content + _field(2, trainer) + _field(3, normalizer)


@pytest.mark.parametrize("kind", ["llama", "unigram", "llama without prefix", "unigram without prefix"])
def test_ids_of_the_sentencepiece_library(kind: str) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    encoder, cfg = trained(kind), KINDS[kind]
    proto = sentencepiece_model(encoder, unigram=cfg.kind == "unigram", prefix=cfg.prefixed)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=proto)
    scores = dict(json.loads(encoder.to_str())["model"]["vocab"]) if cfg.kind == "unigram" else {}
    for text in [*TRICKY, *texts()]:
        ours, ids = encoder.encode(text, add_special_tokens=False), theirs.encode(text)
        if cfg.kind == "llama":
            assert ours.ids == ids, text[:100]
        else:  # of ways to cut that are equally likely each takes another; and its scores are single-precision
            ways = [sum(scores[token] for token in tokens) for tokens in (ours.tokens, map(encoder.id_to_token, ids))]
            assert abs(ways[0] - ways[1]) <= 1e-5 * abs(ways[0]), text[:100]
            assert encoder.decode(ids) == encoder.decode(ours.ids)


@pytest.mark.parametrize("kind", ["llama", "unigram"])
@pytest.mark.parametrize("config", [None, {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}])
def test_transformers_opens_it_and_encodes_the_same(kind: str, tmp_path: Path, config: dict[str, Any] | None) -> None:
    transformers = pytest.importorskip("transformers")
    opened(kind).save(tmp_path)
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), opened(kind)
    for text in [*TRICKY, "the <|im_end|> of"]:
        ids = theirs(text).input_ids
        assert ids == ours.encode_prompt(text), text
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, theirs.unk_token_id) == (0, 0, 1, 4)
    assert len(theirs) == 700


@pytest.mark.parametrize("kind", ["llama", "llama without prefix"])
def test_a_gguf_of_it_gives_the_same_ids(kind: str) -> None:
    ours = opened(kind)
    again = tokenizer_from_gguf(gguf_metadata_of(ours, 704), "m.gguf")
    for text in [*TRICKY, "hello<|im_end|>\nworld"]:
        assert again.encode(text) == ours.encode(text)
        assert again.decode(ours.encode(text), skip_special=False) == ours.decode(ours.encode(text), skip_special=False)


def test_gguf_has_no_unigram() -> None:
    with pytest.raises(UserError, match="a model of type Unigram"):
        gguf_metadata_of(opened("unigram"), 704)


# ---- what comes after: streams and conversations ----


@pytest.mark.parametrize("kind", ["bpe", "llama", "unigram", "llama without prefix", "unigram without prefix"])
def test_streamed_text_goes_on_from_the_prompt(kind: str) -> None:
    tokenizer = opened(kind)

    @settings(max_examples=80, deadline=None)
    @given(st.text("the sheep\n é羊12", max_size=60), st.integers(0, 60))
    def goes_on(text: str, cut: int) -> None:
        ids = tokenizer.encode_prompt(text)
        prompt, rest = ids[:cut], ids[cut:]
        if tokenizer.decode(prompt).endswith("\ufffd"):
            return  # cut inside of a character
        stream = TextStream(tokenizer, prompt[-8:])
        written = "".join(stream.push(index) for index in rest) + stream.flush()
        assert tokenizer.decode(prompt) + written == text

    goes_on()


@pytest.mark.parametrize("kind", ["bpe", "llama", "unigram"])
def test_generated_text_goes_on_from_the_prompt(kind: str) -> None:
    tokenizer = opened(kind)
    shape = ModelConfig(vocab_size=704, d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=32, context=64)
    torch.manual_seed(0)
    engine, prompt, spaced = Engine(Decoder(shape.resolved()), tokenizer), "The shepherd", 0
    for seed in range(30):
        sampling = Sampling(max_tokens=4, temperature=1.0, seed=seed, ignore_end=True)
        done = engine.generate([prompt], sampling)[0]
        whole = tokenizer.decode([*tokenizer.encode_prompt(prompt), *done.ids])
        if "\ufffd" not in whole:
            assert prompt + done.text == prompt + "".join(engine.stream(prompt, sampling)) == whole
            spaced += done.text.startswith(" ")
    assert spaced


@pytest.mark.parametrize("kind", ["bpe", "llama", "unigram", "llama without prefix"])
@pytest.mark.parametrize("template", ["chatml", "plain"])
def test_conversations(kind: str, template: str) -> None:
    chat = ChatFormat(opened(kind), template)
    messages = [{"role": "user", "content": "How many sheep?"}, {"role": "assistant", "content": "There are 12 of them."}]
    sample = chat.sample(messages)
    learned = [index for index, trains in zip(sample.tokens, sample.trained, strict=True) if trains]
    # What follows "Assistant:" begins with a space; another is only put before a text that begins with none.
    assert chat.tokenizer.decode(learned).strip() == "There are 12 of them."
    assert learned[-1] in chat.tokenizer.end_ids
    asked = chat.tokenizer.encode_chat(messages[:1])
    assert sample.tokens[: len(asked)] == asked


# ---- the same texts, the same tokenizer ----

AGAIN = """
import hashlib, sys
from herdbook.tokens.config import TokenizerConfig
from herdbook.tokens.train_tokenizer import fit
texts = [line for line in open(sys.argv[1], encoding="utf-8").read().split("\\f")]
for kind in ("bpe", "llama", "unigram"):
    print(hashlib.sha256(fit(TokenizerConfig(kind=kind, vocab_size=900), lambda: iter(texts)).to_str().encode()).hexdigest())
"""


def test_threads_and_hashes_of_the_process_do_not_show(tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("\f".join(texts()).replace("\r", ""), encoding="utf-8")
    found = []
    for threads, seed in (("1", "1"), ("3", "2")):
        env = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", AGAIN, str(tmp_path / "texts")]
        found.append(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    assert found[0] == found[1]
    assert len(set(found[0].split())) == 3


@pytest.mark.parametrize("kind", ["llama", "unigram"])
def test_as_few_tokens_as_the_sentencepiece_trainer(kind: str, tmp_path: Path) -> None:
    """On text that neither has seen; the two cut words by slightly different rules."""
    sentencepiece = pytest.importorskip("sentencepiece")
    rows = [text for source, _, text in documents() if source == "stdlib"]
    seen, unseen = [text for n, text in enumerate(rows) if n % 5], rows[::5]
    lines = [line for text in seen for line in text.split("\n") if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / "theirs"), model_type="bpe" if kind == "llama" else kind,
        vocab_size=1500, byte_fallback=True, split_digits=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, character_coverage=0.99995, minloglevel=2,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "theirs.model"))
    ours = plain(fit(TokenizerConfig.model_validate({"kind": kind, "vocab_size": 1501}), lambda: iter(seen)))
    counts = [
        sum(len(encode(text)) for text in unseen)
        for encode in (theirs.encode, lambda text: ours.encode(text, add_special_tokens=False).ids)
    ]
    assert counts[1] < 1.03 * counts[0]
