"""SentencePiece models: the ids and texts of the library itself, and files that are not in order."""

from __future__ import annotations

import io
import struct
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from herdbook.errors import UserError
from herdbook.interop.gguf.vocabulary import gguf_metadata_of, tokenizer_from_gguf
from herdbook.interop.sentencepiece import load_sentencepiece, read_model
from herdbook.tokenizer import Tokenizer

LINES = [
    "the cat sat on the mat, and naïve cafés looked on; it's 3.14 o'clock and 1234 more!",
    "she said: <s> is no word, nor is <0x41> or </s>, and a<b>c is not",
    "½ of the ﬁsh in Ⅳ boxes, 漢字かな кирилл 😀, e\u0301 and é, a\u00a0space",
    "a dog barked at the moon all night long; nobody in the house slept, least of all the cat",
]
SAMPLES = [
    *LINES, "", " ", "   ", "\n\n", "a", " a ", "  the  cat  ", "\tthe\ncat\n", "<s>", "<s>the</s>", "<0x41>", "<unk>", "▁",
    "a▁b ", "🦙 unseen 한글", "the<sep>cat <sep> sat<sep><sep>", " <sep>", "ababab", "12 345", "ﬁ①…。、", "a\x7fb",
]  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "like LLaMA": {
        "model_type": "bpe", "byte_fallback": True, "split_digits": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
    "like Mistral": {
        "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
        "user_defined_symbols": ["<sep>", "[x]"], "control_symbols": ["[INST]"],
    },
    "usual BPE": {"model_type": "bpe"},
    "BPE without prefix": {
        "model_type": "bpe", "add_dummy_prefix": False, "user_defined_symbols": ["<sep>"], "normalization_rule_name": "nfkc",
    },
    "usual Unigram": {"model_type": "unigram"},
    "Unigram with bytes": {
        "model_type": "unigram", "byte_fallback": True, "split_digits": True, "normalization_rule_name": "identity",
    },
    "Unigram with more": {
        "model_type": "unigram", "user_defined_symbols": ["<sep>"], "control_symbols": ["<ctl>"], "pad_id": 3,
        "normalization_rule_name": "nmt_nfkc_cf", "remove_extra_whitespaces": False,
    },
}  # fmt: skip


@cache
def trained(kind: str) -> tuple[bytes, Any]:
    """A model of this kind, its bytes and the library's processor of it."""
    sentencepiece = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 5), model_writer=out, vocab_size=420, hard_vocab_limit=False, minloglevel=2,
        num_threads=1, **KINDS[kind],
    )  # fmt: skip
    return out.getvalue(), sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())


def loaded(kind: str, folder: Path) -> Tokenizer:
    (folder / "tokenizer.model").write_bytes(trained(kind)[0])
    return load_sentencepiece(folder / "tokenizer.model")


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_of_the_library(kind: str, tmp_path: Path) -> None:
    theirs, ours = trained(kind)[1], loaded(kind, tmp_path)
    for text in SAMPLES:
        ids = theirs.encode(text)
        assert ours.encode_document(text) == ids, text
        if theirs.unk_id() not in ids:  # the library writes ⁇ for it
            assert ours.decode(ids) == theirs.decode(ids), text
    assert (ours.vocab_size, ours.bos_id, ours.eos_id) == (theirs.vocab_size(), theirs.bos_id(), theirs.eos_id())
    assert (ours.pad_id or -1, ours.token_id(ours.special_token("unk_token"))) == (theirs.pad_id(), theirs.unk_id())
    assert ours.encode_prompt("the cat") == [theirs.bos_id(), *theirs.encode("the cat")]
    assert ours.encode("the</s>")[-1] == theirs.eos_id()


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_any_text(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    theirs, ours = trained(kind)[1], loaded(kind, tmp_path_factory.mktemp("model"))

    @settings(max_examples=80)
    @given(st.text("thecas 12<sp>▁\nébl,é漢か😀ﬁ½Ⅳ\u00a0", max_size=40))
    def same(text: str) -> None:
        if text != "<sep>":  # alone it is the one text that goes without a prefix
            assert ours.encode_document(text) == theirs.encode(text)

    same()


@pytest.mark.parametrize("kind", ["like LLaMA", "like Mistral"])
def test_a_gguf_of_it(kind: str, tmp_path: Path) -> None:
    ours = loaded(kind, tmp_path)
    plain = [text for text in SAMPLES if "<sep>" not in text]
    if kind == "like Mistral":
        with pytest.warns(UserWarning, match="behind each user-defined piece"):
            metadata = gguf_metadata_of(ours, 512)
    else:
        metadata = gguf_metadata_of(ours, 512)
    again = tokenizer_from_gguf(metadata, "m.gguf")
    assert [again.encode(text) for text in plain] == [ours.encode(text) for text in plain]
    assert again.decode(ours.encode(LINES[0])) == LINES[0]


@pytest.mark.parametrize("kind", ["usual BPE", "usual Unigram"])
def test_what_gguf_cannot_express(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"this way to handle spaces|a model of type Unigram"):
        gguf_metadata_of(loaded(kind, tmp_path), 512)


# ---- files that are not in order ----


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | float | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def piece(text: str | bytes, score: float = 0.0, kind: int = 1) -> bytes:
    encoded = text.encode() if isinstance(text, str) else text
    return field(1, field(1, encoded) + field(2, score) + field(3, kind))


def charsmap(units: list[int], texts: bytes = b"x\0") -> bytes:
    padded = units + [0] * (-len(units) % 256)
    return struct.pack(f"<I{len(padded)}I", 4 * len(padded), *padded) + texts


UNK, BPE = piece("<unk>", kind=2), field(2, field(3, 2))


def one_letter(*, base: int = 256, onward: int = 512, value: int = 0) -> bytes:
    """A character map with "a" in it: the root leads to `base`, the unit of "a" to `onward`, where its value lies."""
    units = [0] * 768
    units[0], place = base << 10, 256 ^ ord("a")
    units[place] = ord("a") | 1 << 8 | (place ^ onward) << 10
    units[512] = 1 << 31 | value
    return charsmap(units)


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it has 0 pieces"),
    "no pieces": (BPE, "it has 0 pieces"),
    "text": (b"this is no protobuf", "cut off|no field"),
    "number without end": (b"\x08" + b"\xff" * 11, "there is no number"),
    "number cut off": (b"\x08\xff", "cut off"),
    "field cut off": (UNK[:-1], "cut off"),
    "long field": (b"\x0a" + varint(2**60), "cut off"),
    "group": (b"\x0b\x0c", "there is no field"),
    "pieces are numbers": (field(1, 7), "field 1 is of another type"),
    "piece is a number": (field(1, field(1, 7)), "field 1 is of another type"),
    "score is a text": (field(1, field(1, b"a") + field(2, b"b")), "field 2 is of another type"),
    "score is no number": (UNK + piece("a", float("nan")), "the score of piece 1 is no number"),
    "score is infinite": (UNK + piece("a", float("inf")), "the score of piece 1 is no number"),
    "unknown kind": (UNK + piece("a", kind=9), "piece 1 is of the unknown kind 9"),
    "piece twice": (UNK + piece("a") + piece("a"), "two of its pieces are the same"),
    "empty piece": (UNK + piece(""), "piece 1 has 0 characters"),
    "long piece": (UNK + piece("a" * 600), "piece 1 has 600 characters"),
    "piece not utf-8": (UNK + piece(b"\xff"), "piece 1 is not UTF-8"),
    "no unknown": (piece("a"), "it has 0 pieces for what is unknown"),
    "two unknown": (UNK + piece("u", kind=2), "it has 2 pieces for what is unknown"),
    "words": (UNK + field(2, field(3, 3)), "its type is WORD"),
    "characters": (UNK + field(2, field(3, 4)), "its type is CHAR"),
    "suffix": (UNK + field(2, field(24, 1)), "marks spaces in a way"),
    "spaces as they are": (UNK + field(3, field(5, 0)), "marks spaces in a way"),
    "settings are a number": (UNK + field(2, 3), "field 2 is of another type"),
    "map too short": (UNK + field(3, field(2, b"\0\0")), "character map has an impossible size"),
    "map of no size": (UNK + field(3, field(2, bytes(2000))), "character map has an impossible size"),
    "map larger than it is": (UNK + field(3, field(2, struct.pack("<I", 4096) + bytes(2000))), "impossible size"),
    "map not utf-8": (UNK + field(3, field(2, charsmap([0], b"\xff"))), "character map is not UTF-8"),
    "map leads out": (UNK + field(3, field(2, one_letter(base=1 << 20))), "leads out of the file"),
    "map leads out later": (UNK + field(3, field(2, one_letter(onward=1 << 20))), "leads out of the file"),
    "map without a text": (UNK + field(3, field(2, one_letter(value=99))), "no text for a character"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_models_are_one_clear_error(case: str, tmp_path: Path) -> None:
    content, message = BROKEN[case]
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load_sentencepiece(tmp_path / "tokenizer.model")
    assert str(tmp_path / "tokenizer.model") in str(error.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_sentencepiece(tmp_path / "tokenizer.model")


def test_written_by_hand(tmp_path: Path) -> None:
    rows = UNK + b"".join(piece(text, -float(rank)) for rank, text in enumerate(("ab", "▁ab", "▁", "a", "b")))
    (tmp_path / "tokenizer.model").write_bytes(rows + BPE + field(99, b"later") + field(98, 1) + field(97, 1.0))
    assert load_sentencepiece(tmp_path / "tokenizer.model").encode(" ab  abc") == [2, 2, 0]


def test_a_character_map(tmp_path: Path) -> None:
    rows = UNK + piece("x") + piece("a") + piece("▁") + BPE
    (tmp_path / "tokenizer.model").write_bytes(rows + field(3, field(2, one_letter())))
    assert load_sentencepiece(tmp_path / "tokenizer.model").encode("axa") == [3, 1, 1, 1]


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_models_are_read_or_said(data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(trained(data.draw(st.sampled_from(["like Mistral", "usual Unigram"])))[0])
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    (tmp_path / "tokenizer.model").write_bytes(content)
    try:
        tokenizer = load_sentencepiece(tmp_path / "tokenizer.model")
    except UserError:
        return
    for text in LINES:
        tokenizer.decode(tokenizer.encode(text))


@settings(max_examples=150)
@given(rest=st.binary(max_size=60))
def test_bytes_that_are_no_model(rest: bytes) -> None:
    for content in (rest, UNK + rest, UNK + field(2, rest) + field(3, rest), UNK + field(3, field(2, charsmap([0]) + rest))):
        try:
            read_model(content, "tokenizer.model")
        except UserError as error:
            assert str(error).startswith("tokenizer.model")
