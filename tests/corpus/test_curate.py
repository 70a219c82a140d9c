from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from herdbook import pedigree
from herdbook.console import Terminal
from herdbook.corpus.config import CorpusConfig, DedupConfig, MinHashConfig, Source
from herdbook.corpus.curate import curate, input_paths
from herdbook.corpus.ledger import REMOVED_SCHEMA
from herdbook.corpus.verdicts import find, replay
from herdbook.documents import SCHEMA, DocumentWriter, read_documents
from herdbook.errors import UserError


def rows(folder: Path, prefix: str = "documents") -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob(f"{prefix}-*.parquet")) for row in pq.read_table(path).to_pylist()]


def funnel(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "funnel.json").read_text()))


@pytest.fixture
def mixed(tmp_path: Path, samples: ModuleType) -> CorpusConfig:
    """Three sources: a WARC with duplicates, junk and near-duplicates; jsonl in two languages; a folder of HTML."""
    texts = [samples.prose(n, 150) for n in range(60)]
    near = f"{texts[3]} and so on"
    pages = [*texts, texts[5].upper(), near, "Too short to be of any use to anybody at all."]
    records = [
        samples.warc_record(samples.http(samples.page(text).encode()), f"http://a/{n}", n) for n, text in enumerate(pages)
    ]
    records.insert(7, samples.warc_record(samples.http(b"\x89PNG", "image/png"), "http://a/p.png", 900))
    samples.warc_gz(tmp_path / "a.warc.gz", records)
    french = "Le comité s'est réuni mardi pour parler du nouveau pont sur la rivière, et les élèves de la ville {} ont chanté. "
    german = "Der Ausschuss traf sich am Dienstag, um über die neue Brücke in der Stadt {} zu sprechen, und alle sangen. "
    lines = [(french if n % 2 else german).format(f"nummer{n}") * 1 + samples.prose(1000 + n, 6) for n in range(20)]
    samples.jsonl(tmp_path / "b.jsonl", lines, license="CC-BY-4.0")
    (tmp_path / "html").mkdir()
    for n in range(5):
        (tmp_path / "html" / f"{n}.html").write_text(samples.page(samples.prose(500 + n, 150)))
    return CorpusConfig(
        sources=[
            Source(name="web", path=str(tmp_path / "a.warc.gz"), license="CC0-1.0"),
            Source(name="lines", path=str(tmp_path / "b.jsonl"), filters=False),
            Source(name="html", path=str(tmp_path / "html"), license="MIT"),
        ],
        languages=["en", "fr"],
        min_score=0.2,
        heldout=0.2,
        # Stricter than the default, because the French lines are one sentence with few words changed.
        dedup=DedupConfig(minhash=MinHashConfig(bands=14, rows=12, multipliers=24)),
    )


def test_the_whole_road(mixed: CorpusConfig, tmp_path: Path, terminal: Terminal) -> None:
    out = tmp_path / "out"
    curate(mixed, out, terminal, workers=1)
    facts = funnel(out)
    by_step = {step["step"]: step for step in facts["steps"]}
    assert list(by_step) == ["read", "extract", "language", "repetition", "quality", "exact", "minhash"]
    assert by_step["read"]["reasons"] == {"not_html": 1}
    assert by_step["language"]["reasons"] == {"other_language": 10}
    assert by_step["quality"]["reasons"]["few_words"] == 1
    assert by_step["exact"]["reasons"] == {"exact_duplicate": 1}
    assert by_step["minhash"]["reasons"] == {"near_duplicate": 1}
    for earlier, later in zip(facts["steps"], facts["steps"][1:], strict=False):
        assert earlier["documents_out"] == later["documents_in"] and earlier["bytes_out"] == later["bytes_in"]
    for step in facts["steps"]:
        assert step["documents_in"] - step["documents_out"] == sum(step["reasons"].values())
        assert bool(step["examples"]) == bool(step["reasons"])
        assert all(len(shown["excerpt"]) <= 300 and shown["id"] for shown in step["examples"])
    assert facts["languages"]["de"]["documents"] == 10
    train, heldout = rows(out), rows(out, "heldout")
    assert facts["documents_out"] == len(train) + len(heldout) == 60 + 10 + 5
    assert facts["bytes_out"] == sum(len(row["text"].encode()) for row in train + heldout)
    assert facts["documents_in"] == 64 + 20 + 5
    for name, counts in facts["sources"].items():
        assert counts["documents_out"] == sum(row["source"] == name for row in train)
        assert counts["heldout_documents"] == sum(row["source"] == name for row in heldout) > 0
    assert facts["sources"]["html"]["license"] == "MIT"
    assert {row["license"] for row in train if row["source"] == "lines"} == {"CC-BY-4.0"}


def test_what_was_removed_can_be_seen(mixed: CorpusConfig, tmp_path: Path, terminal: Terminal) -> None:
    out = tmp_path / "out"
    curate(mixed.model_copy(update={"removed_sample": 3}), out, terminal, workers=1)
    removed = rows(out, "removed")
    assert pq.read_schema(out / "removed-00000.parquet").names == REMOVED_SCHEMA.names
    counts = dict(Counter(row["removed_by"] for row in removed))
    assert counts == {"not_html": 1, "other_language": 10, "few_words": 1, "exact_duplicate": 1, "near_duplicate": 1}
    with_text = dict(Counter(row["removed_by"] for row in removed if row["text"] is not None))
    assert with_text == {"other_language": 3, "few_words": 1, "exact_duplicate": 1, "near_duplicate": 1}
    few = next(row for row in removed if row["removed_by"] == "few_words")
    assert (few["threshold"], few["value"] < 50, "Too short" in few["text"]) == (50, True, True)
    kept = {row["id"] for row in rows(out) + rows(out, "heldout")}
    assert all(row["duplicate_of"] in kept for row in removed if row["duplicate_of"])
    assert len(kept) + len(removed) == funnel(out)["documents_in"]
    for sample, texts in (("all", 10), (0, 0)):
        again = tmp_path / str(sample)
        curate(mixed.model_copy(update={"removed_sample": sample}), again, terminal, workers=1)
        assert sum(row["removed_by"] == "other_language" and row["text"] is not None for row in rows(again, "removed")) == texts
        assert [row["id"] for row in rows(again, "removed")] == [row["id"] for row in removed]


@pytest.mark.parametrize("sample", [2, "all"])
def test_any_number_of_workers_writes_the_same_bytes(
    mixed: CorpusConfig, tmp_path: Path, terminal: Terminal, sample: int | str
) -> None:
    mixed = mixed.model_copy(update={"removed_sample": sample})
    for workers in (1, 2):
        curate(mixed, tmp_path / f"w{workers}", terminal, workers=workers)
    for path in sorted((tmp_path / "w1").glob("*.parquet")):
        assert path.read_bytes() == (tmp_path / "w2" / path.name).read_bytes(), path.name
    one, two = funnel(tmp_path / "w1"), funnel(tmp_path / "w2")
    for step in one["steps"] + two["steps"]:
        step.pop("cpu_s")
    assert one == two


def test_batches_and_blocks_do_not_matter(
    mixed: CorpusConfig, tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    curate(mixed, tmp_path / "large", terminal, workers=1)
    monkeypatch.setattr("herdbook.corpus.jobs.BATCH_RECORDS", 3)
    monkeypatch.setattr("herdbook.corpus.jobs.BLOCK_RECORDS", 7)
    curate(mixed, tmp_path / "small", terminal, workers=1)
    assert rows(tmp_path / "large") == rows(tmp_path / "small")
    assert rows(tmp_path / "large", "removed") == rows(tmp_path / "small", "removed")


def test_pedigree_and_what_it_says(mixed: CorpusConfig, tmp_path: Path, terminal: Terminal) -> None:
    out = tmp_path / "out"
    curate(mixed, out, terminal, workers=1)
    manifest = pedigree.read(out)
    assert {row["id"] for row in manifest["licenses"]} == {"CC0-1.0", "CC-BY-4.0", "MIT"}
    assert manifest["counts"]["documents_out"] == len(rows(out))
    assert pedigree.verify(pedigree.tree(out)) == []
    config = mixed.identity()
    assert pedigree.is_current(out, config, [(path, "source") for path in input_paths(mixed)])
    (tmp_path / "b.jsonl").write_text('{"text": "changed"}\n')
    assert not pedigree.is_current(out, config, [(path, "source") for path in input_paths(mixed)])


def test_a_run_over_an_old_one_leaves_nothing_of_it(mixed: CorpusConfig, tmp_path: Path, terminal: Terminal) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("documents-00007.parquet", "heldout-00003.parquet", "removed-00001.parquet"):
        (out / name).write_bytes(b"old")
    (out / "work").mkdir()
    (out / "work" / "plan.json").write_text('{"config": "of other settings"}')
    (out / ".documents-00001.parquet.partial").write_bytes(b"half")
    curate(mixed, out, terminal, workers=1)
    tables = {f"{name}-00000.parquet" for name in ("documents", "heldout", "removed", "cuts")}
    names = {*tables, "funnel.json", "pedigree.json"}
    assert {path.name for path in out.iterdir()} == names


def one(tmp_path: Path, path: Path | str, terminal: Terminal, **fields: Any) -> Path:
    source = Source(name="s", path=str(path), **fields.pop("source", {}))
    curate(CorpusConfig(sources=[source], **fields), tmp_path / "out", terminal, workers=1)
    return tmp_path / "out"


def test_inputs_that_yield_nothing_say_what_was_found(tmp_path: Path, terminal: Terminal, samples: ModuleType) -> None:
    (tmp_path / "empty.warc.gz").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "words.jsonl").write_text('{"body": "x"}\n')
    images = [samples.warc_record(samples.http(b"\x89PNG", "image/png"), f"http://a/{n}", n) for n in range(3)]
    samples.warc_gz(tmp_path / "images.warc.gz", images)
    fake = [samples.warc_record(samples.http(bytes(range(256)) * 4), "http://a/1", 1)]
    samples.warc_gz(tmp_path / "fake.warc.gz", fake)
    for name, words in {
        "empty.warc.gz": "the file is empty",
        "folder": "the folder holds no such files",
        "absent.warc": "there is no such file",
        "images.warc.gz": "3 × records of another type than text (image/png)",
        "fake.warc.gz": "1 × binary data",
        "words.jsonl": "keys here: body",
    }.items():
        with pytest.raises(UserError) as caught:
            one(tmp_path, tmp_path / name, terminal)
        assert words in str(caught.value) and "→" in str(caught.value), name
        assert not (tmp_path / "out" / "pedigree.json").exists()
        assert {path.name for path in (tmp_path / "out").glob("*.parquet")} == {"removed-00000.parquet", "cuts-00000.parquet"}
        assert rows(tmp_path / "out", "removed") and funnel(tmp_path / "out")["documents_out"] == 0


def test_one_bad_file_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str], samples: ModuleType) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    good = [samples.warc_record(samples.http(samples.page(samples.prose(n)).encode()), f"http://a/{n}", n) for n in range(4)]
    samples.warc_gz(folder / "good.warc.gz", good)
    (folder / "cut.warc.gz").write_bytes((folder / "good.warc.gz").read_bytes()[:-30])
    (folder / "empty.warc").write_bytes(b"")
    out = one(tmp_path, folder, Terminal(quiet=True))
    reasons = {step["step"]: step["reasons"] for step in funnel(out)["steps"]}
    assert reasons["read"] == {"truncated_record": 1, "empty_file": 1}
    assert reasons["exact"] == {"exact_duplicate": 3}
    said = capsys.readouterr().err
    assert "empty.warc" in said and "cut off" in said


def test_all_removed_says_by_what(tmp_path: Path, terminal: Terminal, samples: ModuleType) -> None:
    out = tmp_path / "out"
    path = samples.jsonl(tmp_path / "a.jsonl", ["one two", "three four"])
    with pytest.raises(UserError, match=r"2 by few_words\n  → loosen .*removed-\*\.parquet"):
        one(tmp_path, path, terminal)
    assert {path.name for path in out.iterdir()} >= {"removed-00000.parquet", "cuts-00000.parquet", "funnel.json"}
    assert not list(out.glob("documents*")) and not list(out.glob("heldout*")) and not pedigree.exists(out)
    assert [(row["removed_by"], row["text"]) for row in rows(out, "removed")] == [
        ("few_words", "one two"), ("few_words", "three four"),
    ]  # fmt: skip
    steps = {step["step"]: step for step in funnel(out)["steps"]}
    assert steps["quality"]["reasons"] == {"few_words": 2} and funnel(out)["documents_out"] == 0
    (verdict,) = find(out, "doc-1")
    assert verdict.row["removed_by"] == "few_words" and "not on record" in str(replay(out, verdict.row))
    one(tmp_path, path, terminal, quality={"enabled": False}, heldout=0)
    assert len(rows(out)) == 2 and rows(out, "removed") == []


def test_all_removed_while_comparing_leaves_a_ledger_too(tmp_path: Path, terminal: Terminal, samples: ModuleType) -> None:
    texts = [samples.prose(1), samples.prose(1).upper(), samples.prose(2)]
    quiz = samples.jsonl(tmp_path / "quiz.jsonl", [texts[0], texts[2]])
    dedup = {"contamination": {"sets": [str(quiz)], "action": "drop"}}
    with pytest.raises(UserError, match="2 by contaminated, 1 by exact_duplicate"):
        one(tmp_path, samples.jsonl(tmp_path / "a.jsonl", texts), terminal, dedup=dedup)
    found = {row["id"]: row["removed_by"] for row in rows(tmp_path / "out", "removed")}
    assert found == {"doc-0": "contaminated", "doc-1": "exact_duplicate", "doc-2": "contaminated"}
    assert {(row["id"], row["decision"]) for row in rows(tmp_path / "out", "cuts")} == {
        ("doc-0", "removed"), ("doc-2", "removed"),
    }  # fmt: skip
    assert not list((tmp_path / "out").glob("documents*")) and (tmp_path / "out" / "funnel.json").exists()


def test_a_corpus_all_held_out_says_so(tmp_path: Path, terminal: Terminal, samples: ModuleType) -> None:
    with pytest.raises(UserError, match=r"no document is left to train on: 1 held out.*\n  → set corpus\.heldout=0"):
        one(tmp_path, samples.jsonl(tmp_path / "a.jsonl", [samples.prose(1)]), terminal, heldout=0.999999)
    assert rows(tmp_path / "out", "removed") == [] and not list((tmp_path / "out").glob("heldout*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_cuts_of_documents_that_go_later_are_marked(
    tmp_path: Path, terminal: Terminal, samples: ModuleType, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("herdbook.corpus.jobs.BLOCK_RECORDS", 2)
    passage, question = samples.prose(7, 80), samples.prose(8, 30)
    likes = [f"{samples.prose(n, 150)}\n{count} likes\n" for n, count in ((1, 3), (1, 4), (2, 5), (3, 6))]
    lines = [
        {"id": "first", "text": likes[0] + passage}, {"id": "copy", "text": likes[1] + passage},
        {"id": "twice", "text": likes[2]}, {"id": "twice", "text": likes[2].replace("5 l", "7 l").replace(".", "!")},
        {"id": "quoted", "text": f"{likes[3]}{passage}\n{question}"},
        {"id": "quotes", "text": f"{samples.prose(4, 149)} indeed {passage}"},
    ]  # fmt: skip
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    quiz = samples.jsonl(tmp_path / "quiz.jsonl", [question])
    cfg = CorpusConfig.model_validate({
        "sources": [{"name": "s", "path": str(tmp_path / "in.jsonl")}], "heldout": 0, "lines": {"enabled": True},
        "removed_sample": "all", "quality": {"enabled": False}, "repetition": {"enabled": False},
        "dedup": {"substring": {"enabled": True}, "contamination": {"sets": [str(quiz)], "action": "drop"},
                  "minhash": {"enabled": False}},
    })  # fmt: skip
    out = tmp_path / "out"
    curate(cfg, out, terminal, workers=workers)
    assert [row["id"] for row in rows(out)] == ["first", "twice", "quotes"]
    assert {(row["id"], row["rule"], row["text"][:7]): row["decision"] for row in rows(out, "cuts")} == {
        ("first", "counter", "3 likes"): "cut",
        ("copy", "counter", "4 likes"): "removed",
        ("twice", "counter", "5 likes"): "cut",
        ("twice", "counter", "7 likes"): "removed",
        ("quoted", "counter", "6 likes"): "removed",
        ("quoted", "passage", passage[:7]): "removed",
        ("quoted", "contamination", question[:7]): "removed",
        ("quotes", "passage", passage[:7]): "cut",
    }
    kept, gone = find(out, "twice")
    assert [(one.kind, [cut["text"] for cut in one.cuts]) for one in (kept, gone)] == [
        ("kept", ["5 likes"]), ("removed", ["7 likes"]),
    ]  # fmt: skip


def test_licences(tmp_path: Path, terminal: Terminal, samples: ModuleType) -> None:
    path = samples.jsonl(tmp_path / "a.jsonl", [samples.prose(n) for n in range(4)])
    with pytest.raises(UserError, match="does not allow commercial use"):
        one(tmp_path, path, terminal, commercial=True, source={"license": "CC-BY-NC-4.0"})
    with pytest.raises(UserError, match="4 by not_commercial"):
        one(tmp_path, path, terminal, commercial=True)
    out = one(tmp_path, path, terminal, commercial=True, source={"license": "MIT"})
    assert "license" in [step["step"] for step in funnel(out)["steps"]]
    out = one(tmp_path, path, terminal)
    assert {row["license"] for row in rows(out)} == {"LicenseRef-unknown"}


def test_full_disk_is_one_clear_sentence(
    tmp_path: Path, terminal: Terminal, samples: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: DocumentWriter, row: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "out"))

    monkeypatch.setattr(DocumentWriter, "write", full)
    with pytest.raises(UserError, match="the disk is full"):
        one(tmp_path, samples.jsonl(tmp_path / "a.jsonl", [samples.prose(1)]), terminal)
    assert {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} == {"plan.json", ".lock"}


def test_limit_and_declared_language(tmp_path: Path, terminal: Terminal, samples: ModuleType) -> None:
    path = samples.jsonl(tmp_path / "a.jsonl", [samples.prose(n) for n in range(30)])
    out = one(tmp_path, path, terminal, source={"limit": 10, "language": "en"}, languages=["en"], heldout=0)
    assert len(rows(out)) == 10 and rows(out, "heldout") == []
    assert {(row["language"], row["language_score"]) for row in rows(out)} == {("en", 1.0)}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(12)), st.sampled_from(["first", "longest"]))
def test_how_many_stay_does_not_depend_on_order(
    tmp_path: Path, terminal: Terminal, samples: ModuleType, order: list[int], keep: str
) -> None:
    texts = [samples.prose(n % 5, 150) + (" more" if n % 3 else "") for n in range(12)]
    path = samples.jsonl(tmp_path / "a.jsonl", [texts[n] for n in order])
    config = CorpusConfig.model_validate({"sources": [{"name": "s", "path": str(path)}], "dedup": {"keep": keep}, "heldout": 0})
    curate(config, tmp_path / "out", terminal, workers=1)
    assert len(rows(tmp_path / "out")) == 5
    assert pq.read_schema(tmp_path / "out" / "documents-00000.parquet").names == SCHEMA.names


def test_real_crawl(shared_data: Path, tmp_path: Path, terminal: Terminal) -> None:
    out = one(tmp_path, shared_data / "warc" / "commoncrawl-dolma" / "*.warc.gz", terminal, heldout=0.1)
    facts = funnel(out)
    assert facts["documents_in"] == 41 and 25 <= facts["documents_out"] <= 40
    assert all("<div" not in row["text"] for row in read_documents(out))


def test_giant_record_is_skipped(tmp_path: Path, terminal: Terminal, samples: ModuleType) -> None:
    good = samples.warc_record(samples.http(samples.page(samples.prose(1)).encode()), "http://a/1", 1)
    bomb = samples.warc_record(samples.http(b"<html>" + b"a" * 40_000_000), "http://a/2", 2)
    inner = gzip.compress(b"<p>" * 10_000_000)
    inside = samples.warc_record(samples.http(inner, "text/html", "200 OK", "Content-Encoding: gzip"), "http://a/3", 3)
    out = one(tmp_path, samples.warc_gz(tmp_path / "a.warc.gz", [bomb, inside, good]), terminal)
    assert funnel(out)["steps"][0]["reasons"] == {"too_large": 2}
    assert len(rows(out)) == 1
