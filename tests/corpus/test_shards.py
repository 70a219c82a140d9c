from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from herdbook.corpus import warc
from herdbook.corpus.config import Source
from herdbook.corpus.located import Located
from herdbook.corpus.readers import Item, read_files
from herdbook.corpus.records import Record, Skip
from herdbook.corpus.shards import make_shards, read_at, read_shard, split_size

LIMIT = 1 << 13


def plain(items: Iterable[Item]) -> list[Item]:
    """Items without the line numbers that only the first piece of a file can know."""
    return [Skip(item.reason, "", item.bytes, item.detail) if isinstance(item, Skip) else item for item in items]


def check(path: Path, sizes: Iterable[int] = (17, 370, 4000, 1 << 30)) -> list[Item]:
    """Whatever the pieces, they give what the whole gives, and offsets lead back to their records."""
    source = Source(name="s", path=str(path))
    whole = list(read_files(source, LIMIT))
    for size in sizes:
        shards, missing = make_shards(source, size)
        pieces = [item for shard in shards for item in read_shard(pickle.loads(pickle.dumps(shard)), LIMIT)]
        assert plain([*missing, *pieces]) == plain(whole), size
    for item in whole:
        if isinstance(item, Record):
            assert item.file is not None and item.offset is not None
            assert read_at(item.file, str(path), "auto", source, item.offset, LIMIT) == item
    return whole


@pytest.fixture
def records(samples: ModuleType) -> list[bytes]:
    info = samples.warc_record(b"isPartOf: CC-MAIN-2024-10\r\n", "x", 99, "warcinfo", "application/warc-fields")
    pages = [samples.http(b"<html>" + bytes(range(65, 91)) * (n % 7 * 9 + 1), "text/html", "200 OK", "X-Robots-Tag: noai")
             for n in range(12)]  # fmt: skip
    return [info, *(samples.warc_record(page, f"http://a.org/{n}", n) for n, page in enumerate(pages))]


@pytest.mark.parametrize("packing", ["members", "one", "blocks", "plain", "zstd", "damaged", "stored", "cut", "garbage"])
def test_warc(tmp_path: Path, records: list[bytes], packing: str) -> None:
    members = [gzip.compress(record, mtime=0) for record in records]
    if packing == "damaged":
        members[3] = members[3][:40] + b"\xff" * 30 + members[3][70:]
        members[7] = members[7][:-8] + bytes(8)  # a wrong checksum
    joined = b"".join(records)
    content = {
        "members": b"".join(members), "damaged": b"".join(members), "one": gzip.compress(joined), "plain": joined,
        "blocks": b"".join(gzip.compress(joined[at : at + 700]) for at in range(0, len(joined), 700)),
        "zstd": zstandard.compress(joined), "stored": b"".join(gzip.compress(record, 0) for record in records),
        "cut": b"".join(members)[:-30], "garbage": b"".join(member + b"garbage" for member in members),
    }[packing]  # fmt: skip
    (tmp_path / "a.warc.gz").write_bytes(content)
    whole = check(tmp_path / "a.warc.gz")
    found = [item for item in whole if isinstance(item, Record)]
    assert len(found) >= 12 - 2 * (packing == "damaged") - (packing == "cut")
    assert {record.dump for record in found} == {"CC-MAIN-2024-10"}
    assert {record.headers for record in found} == {(("x-robots-tag", "noai"),)}


def test_an_archive_that_is_a_page_is_no_source_of_pages(
    tmp_path: Path, records: list[bytes], samples: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warc, "REACH", 5000)  # a few pieces' worth, so that looking back is put to the test
    inner = b"".join(gzip.compress(record, mtime=0) for record in records[1:5])
    outer = samples.warc_record(samples.http(inner, "application/gzip"), "http://evil.org/a.warc.gz", 50)
    members = [gzip.compress(record, 0, mtime=0) for record in (*records[:2], outer, *records[5:])]  # level 0 stores as is
    (tmp_path / "a.warc.gz").write_bytes(b"".join(members) * 3)
    whole = check(tmp_path / "a.warc.gz", (100, 333, 1000, 9000))
    pages = [f"http://a.org/{n}" for n in (0, *range(4, 12))]
    assert [item.url for item in whole if isinstance(item, Record)] == pages * 3


def test_jsonl(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"text {n} " + "é" * (n % 40)}, ensure_ascii=False) for n in range(60)]
    lines[7], lines[20], lines[30] = "", "not json", '{"text": "' + "x" * (LIMIT + 9) + '"}'
    content = "\n".join(lines).encode()
    for name, data in (("a.jsonl", content), ("b.jsonl", content + b"\n\n\n"), ("c.jsonl.gz", gzip.compress(content)),
                       ("d.json", zstandard.compress(content)), ("e.jsonl", b"\n\n{" + content)):  # fmt: skip
        (tmp_path / name).write_bytes(data)
        whole = check(tmp_path / name, (90 if name == "a.jsonl" else 400, 500, 4000, 1 << 30))
        assert [item.reason for item in whole if isinstance(item, Skip)][-2:] == ["bad_json", "too_large"]


def test_parquet_by_row_groups(tmp_path: Path) -> None:
    table = pa.table({"text": [f"text {n}" * (n % 9) for n in range(200)], "url": [f"u{n}" for n in range(200)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=17)
    whole = check(tmp_path / "a.parquet")
    assert [item.id for item in whole if isinstance(item, Record)] == [f"s/a.parquet:{n + 1}" for n in range(200)]


def test_small_files_go_together(tmp_path: Path, samples: ModuleType) -> None:
    for n in range(30):
        (tmp_path / f"{n:02}.html").write_text(samples.page("Some text."))
    size = (tmp_path / "00.html").stat().st_size
    check(tmp_path)
    shards, _ = make_shards(Source(name="s", path=str(tmp_path)), size * 10)
    assert [len(shard.places) for shard in shards] == [10, 10, 10]
    assert sum(shard.size for shard in shards) == 30 * size


def test_how_large_a_piece_is() -> None:
    assert split_size([]) == split_size([1 << 20]) == 1 << 20
    assert split_size([1 << 30] * 5) == 5 << 20
    assert split_size([1 << 40, 1 << 42]) == 1 << 30


def test_a_file_that_is_gone_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n' * 100)
    shards, _ = make_shards(Source(name="s", path=str(path)), 100)
    path.unlink()
    assert len(shards) > 10
    assert [item for shard in shards for item in read_shard(shard, LIMIT)] == [
        Located("missing_path", str(path), file=str(path))
    ]


def test_real_archives(shared_data: Path) -> None:
    for name in ("commoncrawl-dolma/sample-0000.warc.gz", "aut/example.arc.gz", "warcio/example-wrong-chunks.warc.gz"):
        source = Source(name="s", path=str(shared_data / "warc" / name))
        whole = list(read_files(source, LIMIT))
        for size in (200_000, 700_000):
            assert [item for shard in make_shards(source, size)[0] for item in read_shard(shard, LIMIT)] == whole
