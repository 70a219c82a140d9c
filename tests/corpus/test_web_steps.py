"""The rules for web pages as steps of the station, and the published pipelines as presets."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from herdbook.cli import app
from herdbook.console import Terminal
from herdbook.corpus.config import PRESETS, CorpusConfig
from herdbook.corpus.curate import curate, input_paths
from herdbook.corpus.funnel import STEPS
from herdbook.corpus.verdicts import find
from herdbook.documents import read_documents
from herdbook.verbs.classifier import train as train_classifier
from herdbook.verbs.ngram import ngram as train_ngram

from .samples import http, page, prose, warc_gz, warc_record


def crawl(folder: Path) -> Path:
    """Pages: a good one, one of a curated site, one of a blocked site, one that reserves its text, one with a licence."""
    reserved = page(prose(3)).replace("<title>", '<meta name="robots" content="noai"><title>')
    licensed = page(prose(4)).replace(
        "</article>", '<a rel="license" href="https://creativecommons.org/licenses/by/4.0/">x</a></article>'
    )
    pages = {
        "https://good.example/a": page(prose(1)),
        "https://EN.Wikipedia.org/wiki/A": page(prose(2)),
        "https://www.bad.example/b": page(prose(5)),
        "https://good.example/c": reserved,
        "https://good.example/d": licensed,
    }
    records = [warc_record(http(html.encode()), url, n) for n, (url, html) in enumerate(pages.items())]
    return warc_gz(folder / "crawl.warc.gz", records)


def run(folder: Path, path: Path, **config: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    cfg = CorpusConfig.model_validate({"sources": [{"name": "web", "path": str(path)}], "heldout": 0, **config})
    curate(cfg, folder / "out", Terminal(quiet=True), workers=1)
    return json.loads((folder / "out" / "funnel.json").read_text()), list(read_documents(folder / "out"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERDBOOK_CACHE", str(tmp_path / "cache"))


def test_addresses_reservations_and_licences_of_pages(tmp_path: Path) -> None:
    (tmp_path / "blocked.txt").write_text("BAD.example\n")
    url = {"enabled": True, "blocklists": [str(tmp_path / "blocked.txt")]}
    funnel, rows = run(tmp_path, crawl(tmp_path), url=url, rights={"enabled": True})
    steps = {step["step"]: step for step in funnel["steps"]}
    assert steps["url"]["reasons"] == {"blocked_domain": 1, "curated_source": 1}
    assert steps["rights"]["reasons"] == {"ai_reserved": 1}
    assert [row["license"] for row in rows] == ["LicenseRef-unknown", "CC-BY-4.0"]


def test_lines_are_cut_and_personal_data_is_masked(tmp_path: Path) -> None:
    text = f"{prose(1, 200)}\nWrite to somebody@company.org or call.\n3 likes\n{prose(2, 200)}"
    (tmp_path / "in.jsonl").write_text(json.dumps({"id": "a", "text": text}))
    funnel, rows = run(tmp_path, tmp_path / "in.jsonl", lines={"enabled": True}, pii={"enabled": True})
    steps = {step["step"]: step for step in funnel["steps"]}
    assert steps["lines"]["edits"] == {"counter": 1}
    assert steps["pii"]["edits"] == {"email": 1}
    assert "likes" not in rows[0]["text"]
    assert "somebody@company.org" not in rows[0]["text"]


def test_a_source_spared_the_rules_keeps_its_text(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"id": "a", "text": "3 likes", "url": "https://github.com/x"}))
    source = {"name": "web", "path": str(tmp_path / "in.jsonl"), "filters": False}
    on = {"enabled": True}
    _, rows = run(tmp_path, tmp_path, sources=[source], url=on, lines=on, c4=on, fineweb=on)
    assert [row["text"] for row in rows] == ["3 likes"]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_under_what_a_recipe_says_itself(preset: str) -> None:
    source: dict[str, Any] = {"sources": [{"name": "a", "path": "x"}]}
    if preset == "ccnet-like":
        with pytest.raises(ValidationError, match=r"needs `perplexity\.model`"):
            CorpusConfig.model_validate({**source, "preset": preset})
        source["perplexity"] = {"model": "model"}
    plain = CorpusConfig.model_validate({**source, "preset": preset})
    assert set(plain.steps) <= set(STEPS)
    assert CorpusConfig.model_validate(plain.model_dump(mode="json")) == plain
    mine = CorpusConfig.model_validate({**source, "preset": preset, "languages": ["fr"], "dedup": {"minhash": {"ngram": 7}}})
    assert (mine.languages, mine.dedup.minhash.ngram) == (["fr"], 7)
    assert mine.dedup.minhash.bands == plain.dedup.minhash.bands


def test_the_published_numbers() -> None:
    source = {"sources": [{"name": "a", "path": "x"}]}
    refined, fine = (CorpusConfig.model_validate({**source, "preset": name}) for name in ("refinedweb", "fineweb"))
    assert refined.dedup.minhash.midpoint == pytest.approx(0.737, abs=1e-3)
    assert fine.dedup.minhash.midpoint == pytest.approx(0.719, abs=1e-3)
    assert not fine.c4.terminal_marks
    assert refined.steps == ("read", "url", "extract", "language", "repetition", "quality", "lines")


def test_passages_that_stand_elsewhere_are_cut_and_told(tmp_path: Path) -> None:
    passage, rest = prose(7, 80), [prose(n, 150) for n in (1, 2)]
    rows = [{"id": name, "text": f"{text} {passage}"} for name, text in zip("ab", rest, strict=True)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    funnel, kept = run(tmp_path, tmp_path / "in.jsonl", dedup={"minhash": {"enabled": False}, "substring": {"enabled": True}})
    assert [row["text"] for row in kept] == [rows[0]["text"], rest[1]]
    cuts = [row for path in sorted((tmp_path / "out").glob("cuts-*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert [(cut["id"], cut["also_in"], cut["words"]) for cut in cuts] == [("b", "a", 80)]
    step = next(step for step in funnel["steps"] if step["step"] == "substring")
    assert step["edits"] == {"passage": 1}
    assert funnel["bytes_out"] == sum(len(row["text"].encode()) for row in kept)


def test_passages_of_evaluation_sets_are_cut_and_reported(tmp_path: Path) -> None:
    question = "which of the two rivers of the old kingdom runs through the garden of the castle"
    (tmp_path / "quiz.jsonl").write_text(json.dumps({"id": "q1", "question": question}))
    text = f"{prose(1, 300)} {question} {prose(2, 300)}"
    (tmp_path / "in.jsonl").write_text(json.dumps({"id": "a", "text": text}))
    dedup = {"contamination": {"sets": [str(tmp_path / "quiz.jsonl")], "max_documents": None}}
    funnel, kept = run(tmp_path, tmp_path / "in.jsonl", dedup=dedup)
    assert question not in kept[0]["text"]
    report = json.loads((tmp_path / "out" / "contamination.json").read_text())
    assert report["quiz"]["items"] == 1
    (cut,) = [row for path in sorted((tmp_path / "out").glob("cuts-*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert (cut["id"], cut["rule"], cut["decision"]) == ("a", "contamination", "cut")
    assert (cut["evaluation_set"], cut["item"], cut["also_at"], cut["text"], cut["words"]) == ("quiz", "q1", 1, question, 16)
    assert next(step for step in funnel["steps"] if step["step"] == "contamination")["edits"] == {"passage": 1}


@pytest.mark.parametrize("sample", [0, 1, "all"])
def test_every_hit_of_an_evaluation_set_is_in_the_ledger(tmp_path: Path, sample: int | str) -> None:
    questions = [prose(900 + n, 20) for n in range(5)]
    (tmp_path / "quiz.jsonl").write_text("\n".join(json.dumps({"id": f"q{n}", "q": q}) for n, q in enumerate(questions)))
    texts = {
        "cut": f"{prose(1, 300)} {questions[0]} {prose(2, 300)} {questions[1]} {prose(3, 300)}",
        "kept": f"{prose(4, 900)} {questions[2]}",
        "gone": " ".join(questions),
        "clean": prose(5, 300),
    }
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps({"id": id_, "text": text}) for id_, text in texts.items()))
    sets = {"sets": [str(tmp_path / "quiz.jsonl")], "max_documents": None, "min_share": 0.03}
    spared = {"quality": {"enabled": False}, "repetition": {"enabled": False}}
    run(tmp_path, tmp_path / "in.jsonl", dedup={"contamination": sets}, removed_sample=sample, **spared)
    cuts = [row for path in sorted((tmp_path / "out").glob("cuts-*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert [(row["id"], row["decision"], row["item"]) for row in cuts] == [
        ("cut", "cut", "q0"), ("cut", "cut", "q1"), ("kept", "kept", "q2"),
        *(("gone", "removed", f"q{n}") for n in range(5)),
    ]  # fmt: skip
    assert all(row["rule"] == "contamination" and row["evaluation_set"] == "quiz" for row in cuts)
    shown = [row["text"] == questions[int(row["item"][1])].rstrip(".") for row in cuts]
    assert all(shown) if sample else not any(row["text"] for row in cuts)
    (gone,) = find(tmp_path / "out", "gone")
    assert (gone.row["removed_by"], gone.row["detail"]) == ("contaminated", "quiz: q0, quiz: q1, quiz: q2 and 2 more")
    assert [cut["item"] for cut in gone.cuts] == [f"q{n}" for n in range(5)]
    for id_, words in (("kept", "q2"), ("gone", "q3"), ("cut", "q1")):
        done = CliRunner().invoke(app, ["corpus", "why", id_, str(tmp_path / "out")])
        assert done.exit_code == 0 and f"quiz: {words}" in done.output and "contamination" in done.output


def test_lists_are_inputs_of_the_pedigree(tmp_path: Path) -> None:
    (tmp_path / "blocked.txt").write_text("bad.example\n")
    (tmp_path / "in.jsonl").write_text("{}")
    url = {"enabled": True, "blocklists": [str(tmp_path / "blocked.txt")]}
    cfg = CorpusConfig.model_validate({"sources": [{"name": "a", "path": str(tmp_path / "in.jsonl")}], "url": url})
    assert tmp_path / "blocked.txt" in input_paths(cfg)


def test_a_first_look_spares_pages_of_other_languages(tmp_path: Path, terminal: Terminal) -> None:
    german = "Der Ausschuss traf sich am Dienstag, um über die neue Brücke in der Stadt {} zu sprechen, und alle sangen. "
    bodies = [page(prose(n, 150)) for n in range(4)]
    bodies += [page("".join(german.format(n * 10 + m) for m in range(8))) for n in range(3)]
    records = [warc_record(http(body.encode()), f"http://a/{n}", n) for n, body in enumerate(bodies)]
    path = warc_gz(tmp_path / "a.warc.gz", records)
    settings = {"sources": [{"name": "web", "path": str(path)}], "languages": ["en"], "min_score": 0.2, "heldout": 0}
    kept = {}
    for look in (None, 0.05):
        cfg = CorpusConfig.model_validate({**settings, "first_look": look})
        curate(cfg, tmp_path / str(look), terminal, workers=1)
        kept[look] = sorted(row["url"] for row in read_documents(tmp_path / str(look)))
        steps = {step["step"]: step for step in json.loads((tmp_path / str(look) / "funnel.json").read_text())["steps"]}
        name = "language" if look is None else "first_look"
        assert steps[name]["reasons"] == {"other_language": 3}
        assert steps["extract"]["documents_in"] == (7 if look is None else 4)
    assert kept[None] == kept[0.05] == [f"http://a/{n}" for n in range(4)]


def test_models_judge_documents_and_leave_their_scores(tmp_path: Path, terminal: Terminal) -> None:
    good = [prose(n, 60) for n in range(150)]
    bad = ["cheap pills buy now click here " * 8 + str(n) for n in range(150)]
    for name, texts in (("good", good), ("bad", bad), ("mixed", good[:40] + bad[:40])):
        (tmp_path / f"{name}.jsonl").write_text(
            "\n".join(json.dumps({"id": f"{name}{n}", "text": t}) for n, t in enumerate(texts))
        )
    paths = {name: str(tmp_path / f"{name}.jsonl") for name in ("good", "bad", "mixed")}
    train_classifier([paths["good"]], [paths["bad"]], tmp_path / "fasttext", terminal, settings={"keep": 0.5})
    train_ngram([paths["good"]], tmp_path / "ngram", terminal, order=3, calibrate=paths["good"])
    rules = {"quality": {"enabled": False}, "repetition": {"enabled": False}, "dedup": {"minhash": {"enabled": False}}}
    noted = {"model": str(tmp_path / "ngram")}
    models = {"classifier": {"model": str(tmp_path / "fasttext"), "threshold": 0.5}, "perplexity": noted}
    funnel, kept = run(tmp_path, Path(paths["mixed"]), **rules, **models)
    steps = {step["step"]: step for step in funnel["steps"]}
    assert steps["classifier"]["reasons"] == {"low_quality": 40}
    assert {row["id"] for row in kept} == {f"mixed{n}" for n in range(40)}
    assert all(row["quality"] > 0.5 and row["perplexity"] > 1 and row["bucket"] in ("head", "middle", "tail") for row in kept)
    buckets = Counter(row["bucket"] for row in kept)
    models = {"classifier": {}, "perplexity": {**noted, "keep": ["head"]}}
    funnel, kept = run(tmp_path, Path(paths["mixed"]), **rules, **models)
    assert len(kept) == buckets["head"] > 0
    assert next(step for step in funnel["steps"] if step["step"] == "perplexity")["reasons"]["high_perplexity"] == 80 - len(
        kept
    )
    cfg = CorpusConfig.model_validate({"sources": [{"name": "a", "path": paths["mixed"]}], **models})
    assert tmp_path / "ngram" in input_paths(cfg)
