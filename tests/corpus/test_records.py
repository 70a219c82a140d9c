from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdbook.corpus.records import Record, Unreadable, dechunk, decode_payload, decode_text, is_binary

TEXT = "Les élèves déjà là coûtent 5 € — n’est-ce pas ?"


def record(payload: bytes, charset: str | None = None, encodings: tuple[str, ...] = ()) -> Record:
    return Record("s/1", payload, "html", charset=charset, encodings=encodings)


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1", "windows-1252", "no-such-charset", None])
def test_utf8_is_seen_whatever_the_header_says(charset: str | None) -> None:
    assert decode_text(TEXT.encode(), charset) == TEXT


def test_order_of_charsets() -> None:
    russian = "Привет, мир"
    assert decode_text(russian.encode("koi8-r"), "koi8-r") == russian
    meta = b'<html><head><meta charset="windows-1251">' + russian.encode("cp1251")
    assert russian in decode_text(meta, None)
    assert decode_text(TEXT.encode("cp1252"), None) == TEXT
    assert decode_text(TEXT.encode("cp1252"), "iso-8859-1") == TEXT  # as browsers read Latin-1
    assert decode_text("日本語".encode("iso-2022-jp"), "iso-2022-jp") == "日本語"
    assert decode_text(TEXT.encode("utf-16"), None) == TEXT
    assert decode_text(b"\xef\xbb\xbfhey", None) == "hey"


@given(st.binary(max_size=300), st.sampled_from([None, "utf-8", "big5", "utf-16", "euc-kr", "x"]))
def test_any_bytes_become_text(body: bytes, charset: str | None) -> None:
    assert isinstance(decode_text(body, charset), str)


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [("gzip", gzip.compress(TEXT.encode())), ("deflate", zlib.compress(TEXT.encode())), ("gzip", TEXT.encode()),
     ("br", TEXT.encode()), ("gzip", gzip.compress(TEXT.encode())[:-4])],
)  # fmt: skip
def test_content_encodings(encoding: str, packed: bytes) -> None:
    assert decode_payload(record(packed, encodings=(encoding,)), 10_000)[0] == TEXT


def test_a_bomb_stops_at_the_limit() -> None:
    bomb = gzip.compress(b"a" * 50_000_000)
    with pytest.raises(Unreadable) as caught:
        decode_payload(record(bomb, encodings=("gzip",)), 100_000)
    assert (caught.value.reason, caught.value.threshold) == ("too_large", 100_000)


@given(st.binary(min_size=1, max_size=400), st.integers(1, 60))
def test_chunks_go_together(body: bytes, size: int) -> None:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    assert dechunk(chunked) == body


def test_what_is_not_chunked_stays() -> None:
    assert dechunk(b"<html>plain") == b"<html>plain"
    assert dechunk(b"5\r\nhello\r\nzz\r\nrest") == b"hello"


def test_binaries_are_no_text() -> None:
    for body in (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" * 20, b"%PDF-1.7 text", b"PK\x03\x04abc", bytes(range(256)) * 9):
        assert is_binary(body)
        with pytest.raises(Unreadable, match="not_text"):
            decode_payload(record(body), 10_000)
    assert not is_binary(TEXT.encode("utf-16"))
