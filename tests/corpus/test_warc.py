from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from types import ModuleType

import numpy
import pytest

from herdbook.corpus import ahead
from herdbook.corpus.records import Record, Skip
from herdbook.corpus.warc import read_warc

LIMIT = 1 << 20


def read(path: Path, limit: int = LIMIT) -> tuple[list[Record], list[Skip]]:
    items = list(read_warc(path, "s", limit))
    return [item for item in items if isinstance(item, Record)], [item for item in items if isinstance(item, Skip)]


@pytest.fixture
def three(samples: ModuleType) -> list[bytes]:
    return [samples.warc_record(samples.http(b"<html>" + b"%d" % n * 400), f"http://a.org/{n}", n) for n in range(3)]


def test_pages_with_what_is_known_about_them(tmp_path: Path, three: list[bytes], samples: ModuleType) -> None:
    records, skips = read(samples.warc_gz(tmp_path / "a.warc.gz", three))
    assert not skips
    first = records[0]
    assert first.id == "s/00000000-0000-4000-8000-000000000000"
    assert (first.url, first.date, first.charset, first.kind) == ("http://a.org/0", "2024-05-01T00:00:00Z", "utf-8", "html")


def test_uncompressed_and_single_member(tmp_path: Path, three: list[bytes]) -> None:
    (tmp_path / "a.warc").write_bytes(b"".join(three))
    (tmp_path / "b.warc.gz").write_bytes(gzip.compress(b"".join(three)))
    for name in ("a.warc", "b.warc.gz"):
        records, skips = read(tmp_path / name)
        assert len(records) == 3 and not skips


@pytest.mark.parametrize("member", [0, 1, 2])
def test_a_damaged_member_costs_only_itself(tmp_path: Path, three: list[bytes], member: int) -> None:
    members = [bytearray(gzip.compress(record, mtime=0)) for record in three]
    at = len(members[member]) // 2
    members[member][at : at + 8] = b"\xff" * 8
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join(members))
    records, skips = read(path)
    whole = {f"http://a.org/{n}" for n in range(3) if n != member}
    assert whole <= {record.url for record in records}
    assert skips and all(skip.reason in ("broken_record", "not_warc") for skip in skips)


def test_a_damaged_record_in_plain_text(tmp_path: Path, three: list[bytes]) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(three[0] + b"garbage in between\r\n\r\n" + three[1] + three[2])
    records, skips = read(path)
    assert [record.url for record in records] == ["http://a.org/0", "http://a.org/1", "http://a.org/2"]
    assert [skip.reason for skip in skips] == ["broken_record"]


@pytest.mark.parametrize("cut", [1, 20, 60, 200])
def test_a_file_cut_off_is_noticed(tmp_path: Path, three: list[bytes], cut: int, samples: ModuleType) -> None:
    path = samples.warc_gz(tmp_path / "a.warc.gz", three)
    path.write_bytes(path.read_bytes()[:-cut])
    records, skips = read(path)
    assert len(records) >= 1
    assert any(skip.reason == "truncated_record" for skip in skips)


def test_what_is_no_page_is_counted_by_reason(tmp_path: Path, samples: ModuleType) -> None:
    http, record = samples.http, samples.warc_record
    path = samples.warc_gz(
        tmp_path / "a.warc.gz",
        [
            record(http(b"\x89PNG....", "image/png"), "http://a/1.png", 1),
            record(http(b"<html>gone", status="404 Not Found"), "http://a/2", 2),
            record(http(b""), "http://a/3", 3),
            record(http(b"<html>" + b"x" * 5000), "http://a/4", 4),
            record(b"not http at all", "http://a/5", 5),
            record(http(b"plain words", "text/plain"), "http://a/6", 6),
            record(http(b"<!DOCTYPE html><html>", "application/octet-stream"), "http://a/7", 7),
            record(b"<html>resource", "http://a/8", 8, "resource", "text/html"),
            record(b"GET / HTTP/1.1\r\n\r\n", "http://a/9", 9, "request", "application/http; msgtype=request"),
        ],
    )
    records, skips = read(path, 4096)
    assert [(record.url, record.kind) for record in records] == [
        ("http://a/6", "text"), ("http://a/7", "html"), ("http://a/8", "html")]  # fmt: skip
    assert [skip.reason for skip in skips] == ["not_html", "http_status", "empty_record", "too_large", "broken_record"]


def test_wet(tmp_path: Path, samples: ModuleType) -> None:
    body = "Ein Text über Berge.".encode()
    path = samples.warc_gz(tmp_path / "a.wet.gz", [samples.warc_record(body, "http://a/1", 1, "conversion", "text/plain")])
    records, skips = read(path)
    assert (records[0].kind, records[0].payload) == ("text", body) and not skips


def test_no_warc(tmp_path: Path) -> None:
    for content, reason in ((b"", "empty_file"), (bytes(range(256)) * 10, "not_warc"), (gzip.compress(b"hello"), "not_warc")):
        path = tmp_path / "a.warc"
        path.write_bytes(content)
        records, skips = read(path)
        assert not records and [skip.reason for skip in skips] == [reason]


def test_real_and_odd_warcs(shared_data: Path) -> None:
    folder = shared_data / "warc"
    expected = {
        "commoncrawl-dolma/sample-0000.warc.gz": 24,
        "commoncrawl-whirlwind/whirlwind.warc.wet.gz": 1,
        "warcio/example-iana.org-chunked.warc": 1,
        "warcio/example-bad-non-chunked.warc.gz": 1,
        "warcio/example-trunc.warc": 1,
        "aut/example.docs.warc.gz": 0,
    }
    assert {name: len(read(folder / name, 16 << 20)[0]) for name in expected} == expected


def _empty_blocks(record: bytes, count: int) -> bytes:
    """A gzip member whose content follows on blocks of nothing."""
    trailer = zlib.crc32(record).to_bytes(4, "little") + len(record).to_bytes(4, "little")
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    return ahead.GZIP + b"\0\0\0\0\0\0\3" + b"\0\0\0\xff\xff" * count + packed.compress(record) + packed.flush() + trailer


def test_what_is_read_does_not_depend_on_the_way(tmp_path: Path, samples: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    body = bytes(numpy.random.default_rng(1).integers(32, 127, 4000, numpy.uint8))
    pages = [samples.warc_record(samples.http(b"<html>%d " % n + body), f"http://a.org/{n}", n) for n in range(8)]
    members = [gzip.compress(page, mtime=0) for page in pages]
    flipped = [bytearray(members[3]) for _ in range(3)]
    for copy, at in zip(flipped, (-1, -8, len(members[3]) // 2), strict=True):  # its length, its checksum, its content
        copy[at] ^= 1
    odd = [
        *flipped,
        members[3][:-1],
        members[3] + b"\0" * 20,
        members[3] + b"\x1f\x8b\x08garbage",
        members[3] + gzip.compress(b""),
        gzip.compress(pages[3][:300], mtime=0) + gzip.compress(pages[3][300:], mtime=0),
        _empty_blocks(pages[3], 3),
        _empty_blocks(pages[3], 2000),
        b"",
    ]
    found, units = [], []
    unit = ahead.Ahead.unit

    def counted(self: ahead.Ahead, start: int) -> ahead.Member | None:
        units.append(unit(self, start))
        return units[-1]

    monkeypatch.setattr(ahead.Ahead, "unit", counted)
    for block in (1 << 20, 9000, 0):
        monkeypatch.setattr(ahead, "BLOCK", block or 1 << 20)
        if not block:
            monkeypatch.setattr(ahead, "_reader_type", lambda: None)
        units.clear()
        for member in odd:
            path = tmp_path / "a.warc.gz"
            path.write_bytes(b"".join([*members[:3], member, *members[4:]]))
            found.append(read(path))
        assert any(units) == (block > 0)
    assert found[: len(odd)] == found[len(odd) : 2 * len(odd)] == found[2 * len(odd) :]
    assert [len(records) for records, _ in found[: len(odd)]] == [7, 7, 7, 7, 8, 8, 8, 8, 8, 8, 7]
