"""The bytes of tokens, joined, are the text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Trained
from tokenizers import decoders, models

from herdbook.serve.pieces import Offsets, Pieces
from herdbook.tokenizer import Tokenizer

from .conftest import byte_tokenizer

BYTES = byte_tokenizer()
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(TEXTS)
def test_bytes_joined_are_the_text(text: str) -> None:
    pieces, ids = Pieces(BYTES), BYTES.encode_document(text)
    assert b"".join(map(pieces.bytes_of, ids)) == text.encode()


@given(TEXTS)
def test_offsets_are_places_of_characters(text: str) -> None:
    ids = BYTES.encode_document(text)
    offsets = Offsets(Pieces(BYTES), 3)
    places = [offsets.next(index) for index in ids]
    expected = [3 + len(text.encode()[:end].decode("utf-8", errors="ignore")) for end in range(len(ids))]
    assert places == expected


def test_sentencepiece_style() -> None:
    trained = Trained(models.BPE({"▁a": 0, "b": 1, "<0xC3>": 2, "<0xA9>": 3, "<s>": 4}, [], byte_fallback=True))
    trained.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trained.add_special_tokens(["<s>"])
    pieces = Pieces(Tokenizer(trained.to_str(), {}))
    assert b"".join(map(pieces.bytes_of, [4, 0, 1, 2, 3])) == "<s> abé".encode()
    assert pieces.shown(2) == "bytes:\\xc3"
    assert pieces.bytes_of(99) == b""
