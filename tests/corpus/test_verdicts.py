from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from herdbook.cli import app
from herdbook.console import Terminal
from herdbook.corpus.config import CorpusConfig
from herdbook.corpus.curate import curate
from herdbook.corpus.verdicts import NOT_READ, diff, find, replay
from herdbook.errors import UserError


@pytest.fixture
def pages(tmp_path: Path, samples: ModuleType) -> Path:
    """A WARC: five pages, one twice, a short one, a picture; and a page that has a menu's lines in it."""
    texts = [samples.prose(n, 150) for n in range(5)]
    texts += [texts[2].title(), "Too short for anybody."]
    bodies = [samples.page(text) for text in texts]
    bodies.append(samples.page(samples.prose(9, 400)).replace("</article>", "<p>THIS LINE IS IN CAPITALS.</p></article>"))
    records = [samples.warc_record(samples.http(body.encode()), f"http://site/{n}", n) for n, body in enumerate(bodies)]
    records.append(samples.warc_record(samples.http(b"\x89PNG", "image/png"), "http://site/picture", 99))
    return Path(samples.warc_gz(tmp_path / "pages.warc.gz", records))


def make(tmp_path: Path, pages: Path, terminal: Terminal, name: str, **more: Any) -> Path:
    settings = {"sources": [{"name": "web", "path": str(pages)}], "heldout": 0, "lines": {"enabled": True}, **more}
    curate(CorpusConfig.model_validate(settings), tmp_path / name, terminal, workers=1)
    return tmp_path / name


def test_why(tmp_path: Path, pages: Path, terminal: Terminal) -> None:
    corpus = make(tmp_path, pages, terminal, "a")
    for address in ("http://site/0", "https://SITE/0#there", "site/0", "web/00000000-0000-4000-8000-000000000000"):
        (verdict,) = find(corpus, address)
        assert (verdict.kind, verdict.row["file"], verdict.row["offset"]) == ("kept", str(pages), 0), address
    (short,) = find(corpus, "http://site/6")
    assert (short.kind, short.row["removed_by"], short.row["threshold"]) == ("removed", "few_words", 50)
    (copy,) = find(corpus, "http://site/5")
    assert copy.row["removed_by"] == "exact_duplicate" and copy.row["duplicate_of"].endswith("2")
    (liked,) = find(corpus, "http://site/7")
    assert [(cut["rule"], cut["text"]) for cut in liked.cuts] == [("upper_case", "THIS LINE IS IN CAPITALS.")]
    assert find(corpus, "http://site/picture")[0].row["removed_by"] == "not_html"
    assert find(corpus, "http://elsewhere/") == []
    with pytest.raises(UserError, match="no finished corpus"):
        find(tmp_path, "x")


def test_what_could_not_be_read_has_its_place(tmp_path: Path, samples: ModuleType, terminal: Terminal) -> None:
    good = [json.dumps({"id": str(n), "text": samples.prose(n, 150)}) for n in range(3)]
    (tmp_path / "a.jsonl").write_text("\n".join([good[0], '{"text": broken', good[1], '{"body": 1}', "x" * 9000]) + "\n")
    lines = {"text": [samples.prose(8, 150), None], "id": ["p0", "p1"]}
    pq.write_table(pa.table(lines), tmp_path / "b.parquet")
    (tmp_path / "html").mkdir()
    (tmp_path / "html" / "empty.html").write_text(" ")
    page = samples.warc_record(samples.http(samples.page(samples.prose(5, 150)).encode()), "http://a/0", 0)
    (tmp_path / "c.warc").write_bytes(page + b"WARC/1.0\r\nWARC-Type response\r\n\r\n" + page.replace(b"//a/0", b"//a/1"))
    picture = samples.warc_record(samples.http(b"\x89PNG", "image/png"), "http://a/p.png", 3)
    samples.warc_gz(tmp_path / "d.warc.gz", [picture])
    names = {"a": "a.jsonl", "b": "b.parquet", "html": "html", "c": "c.warc", "d": "d.warc.gz"}
    sources = [{"name": name, "path": str(tmp_path / path), "filters": False, **({"format": "html"} if name == "html" else {})}
               for name, path in names.items()]  # fmt: skip
    settings = {"sources": sources, "heldout": 0, "limits": {"max_record_bytes": 8000}}
    curate(CorpusConfig.model_validate(settings), tmp_path / "out", terminal, workers=1)
    second = len(good[0]) + 1
    fourth = second + len('{"text": broken') + 1 + len(good[1]) + 1
    fifth = fourth + len('{"body": 1}') + 1
    expected = {
        f"{tmp_path}/a.jsonl@{second}": "bad_json",
        f"{tmp_path}/a.jsonl@{fourth}": "no_text",
        f"{tmp_path}/a.jsonl@{fifth}": "too_large",
        f"{tmp_path}/b.parquet@1": "no_text",
        f"{tmp_path}/html/empty.html@0": "empty_file",
        f"{tmp_path}/c.warc@{len(page)}": "broken_record",
        "http://a/p.png": "not_html",
    }
    for name, reason in expected.items():
        (verdict,) = find(tmp_path / "out", name)
        assert (verdict.kind, verdict.row["removed_by"]) == ("removed", reason), name
        assert verdict.row["file"] is not None and Path(verdict.row["file"]).exists(), name
    (verdict,) = find(tmp_path / "out", f"{tmp_path}/a.jsonl@{second}")
    assert verdict.row["id"] == f"{tmp_path}/a.jsonl:2"
    assert replay(tmp_path / "out", verdict.row) == "it cannot be read: lines that are not JSON objects"
    (kept,) = find(tmp_path / "out", f"{tmp_path}/a.jsonl@0")
    assert (kept.kind, kept.row["id"]) == ("kept", "0")
    relative = os.path.relpath(tmp_path / "a.jsonl")
    assert find(tmp_path / "out", f"{relative}@0")[0].row["id"] == "0"
    assert find(tmp_path / "out", f"{tmp_path}/a.jsonl@7") == []


def test_a_verdict_can_be_reached_again(tmp_path: Path, pages: Path, terminal: Terminal) -> None:
    corpus = make(tmp_path, pages, terminal, "a")
    trace = replay(corpus, find(corpus, "http://site/6")[0].row)
    assert not isinstance(trace, str)
    assert [step.step for step in trace] == ["read", "extract", "language", "repetition", "quality"]
    assert trace[-1].removal is not None and trace[-1].removal.reason == "few_words"
    trace = replay(corpus, find(corpus, "http://site/7")[0].row)
    assert not isinstance(trace, str) and trace[-1].removal is None and trace[-1].cuts == ("upper_case",)
    row = find(corpus, "http://site/0")[0].row
    pages.unlink()
    assert "cannot be read" in str(replay(corpus, row))


def test_diff(tmp_path: Path, pages: Path, terminal: Terminal) -> None:
    a = make(tmp_path, pages, terminal, "a")
    b = make(tmp_path, pages, terminal, "b", quality={"min_words": 1, "min_stop_words": 0}, lines={"enabled": False},
             sources=[{"name": "web", "path": str(pages), "limit": 8}])  # fmt: skip
    c = make(tmp_path, pages, terminal, "c", sources=[{"name": "web", "path": str(pages), "limit": 4}])
    facts = diff(a, b)
    assert (facts["kept_in_both"], facts["with_another_text"]) == (6, 1)
    assert facts["kept_only_in_b"] == {"few_words": 1} and facts["kept_only_in_a"] == {}
    assert facts["examples"]["with_another_text"] == ["http://site/7"]
    assert facts["settings"]["quality.min_words"] == [50, 1]
    assert diff(a, c)["kept_only_in_a"] == {NOT_READ: 2}
    same = diff(a, a)
    assert same["settings"] == {} and same["kept_in_both"] == same["a"]["kept"] and same["with_another_text"] == 0


def test_on_the_command_line(tmp_path: Path, pages: Path, terminal: Terminal) -> None:
    make(tmp_path, pages, terminal, "a")
    make(tmp_path, pages, terminal, "b", quality={"min_words": 1, "min_stop_words": 0})

    def ask(*words: str) -> Any:
        done = CliRunner().invoke(app, ["corpus", *words, "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    (found,) = ask("why", "http://site/6", str(tmp_path / "a"), "--again")
    assert found["removed_by"] == "few_words" and found["again"][-1]["removal"]["value"] == 6
    assert ask("diff", str(tmp_path / "a"), str(tmp_path / "b"))["kept_only_in_b"] == {"few_words": 1}
    for words in (["why", "http://site/5", str(tmp_path / "a"), "--again"], ["diff", str(tmp_path / "a"), str(tmp_path / "b")]):
        done = CliRunner().invoke(app, ["corpus", *words])
        assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["corpus", "why", "http://nowhere/", str(tmp_path / "a")])
    assert isinstance(done.exception, UserError) and "neither kept nor removed" in str(done.exception)
