from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from herdbook.cli import app
from herdbook.console import Terminal
from herdbook.corpus.config import PRESETS, CorpusConfig
from herdbook.corpus.curate import curate, plan
from herdbook.corpus.preview import preview, stages
from herdbook.errors import UserError


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its size and time."""
    found = {path: path.stat() for path in folder.rglob("*")}
    return {str(path): (stat.st_size if path.is_file() else 0, stat.st_mtime_ns) for path, stat in found.items()}


@pytest.fixture
def settings(tmp_path: Path, samples: ModuleType) -> dict[str, Any]:
    samples.jsonl(tmp_path / "a.jsonl", [samples.prose(n) for n in range(8)])
    (tmp_path / "html").mkdir()
    for n in range(3):
        (tmp_path / "html" / f"{n}.html").write_text(samples.page(samples.prose(100 + n)))
    return {"sources": [{"name": "lines", "path": str(tmp_path / "a.jsonl"), "license": "MIT", "limit": 5},
                        {"name": "pages", "path": [str(tmp_path / "html")], "filters": False}]}  # fmt: skip


def test_the_plan_of_a_corpus(tmp_path: Path, settings: dict[str, Any]) -> None:
    cfg = CorpusConfig.model_validate(
        {**settings, "languages": ["en"], "dedup": {"substring": {"enabled": True, "tokens": 60}}}
    )
    before = tree(tmp_path)
    facts = preview(cfg, tmp_path / "out", workers=3)
    assert tree(tmp_path) == before
    assert json.loads(json.dumps(facts)) == facts
    lines, pages = facts["sources"]
    assert (lines["files"], lines["bytes"], lines["jobs"]) == (1, (tmp_path / "a.jsonl").stat().st_size, 1)
    assert (lines["license"], lines["limit"], lines["filtered"]) == ("MIT", 5, True)
    assert (pages["files"], pages["jobs"], pages["filtered"]) == (3, 1, False)
    assert (facts["state"], facts["jobs"], facts["jobs_done"], facts["files"]) == ("run", 2, 0, 4)
    assert facts["bytes"] == lines["bytes"] + pages["bytes"] and facts["workers"] == 3
    shown = {stage["step"]: stage["settings"] for stage in facts["stages"]}
    assert list(shown) == ["read", "extract", "language", "repetition", "quality", "exact", "minhash", "substring"]
    assert shown["language"] == {"languages": ["en"], "min_score": 0.65}
    assert shown["quality"]["quality.min_words"] == 50 and "quality.enabled" not in shown["quality"]
    assert shown["minhash"]["dedup.minhash.bands"] == 14 and shown["minhash"]["dedup.keep"] == "first"
    assert shown["substring"]["dedup.substring.tokens"] == 60


def test_what_is_kept_and_what_is_made_again(tmp_path: Path, settings: dict[str, Any], terminal: Terminal) -> None:
    cfg, out = CorpusConfig.model_validate(settings), tmp_path / "out"
    plan(cfg, out, terminal)
    assert (preview(cfg, out)["state"], preview(cfg, out)["jobs_done"]) == ("resume", 0)
    (out / "work" / "000001").mkdir()
    (out / "work" / "000001" / "done.json").write_text('{"blocks": 0}')
    assert (preview(cfg, out)["state"], preview(cfg, out)["jobs_done"]) == ("resume", 1)
    other = CorpusConfig.model_validate({**settings, "quality": {"min_words": 60}})
    assert (preview(other, out)["state"], preview(other, out)["jobs_done"]) == ("run again", 0)
    shutil.rmtree(out)
    curate(cfg, out, terminal, workers=1)
    before = tree(tmp_path)
    assert preview(cfg, out)["state"] == "done"
    again = preview(other, out)
    assert (again["state"], again["jobs_done"]) == ("run again", 0)
    assert again["changed"] == {"quality.min_words": [50, 60]} and "replaced/" in again["why"]
    fewer = {**settings, "sources": [{**settings["sources"][0], "limit": 4}, settings["sources"][1]]}
    assert list(preview(CorpusConfig.model_validate(fewer), out)["changed"]) == ["sources"]
    assert tree(tmp_path) == before
    (tmp_path / "a.jsonl").write_text('{"text": "changed"}\n')
    assert (preview(cfg, out)["state"], preview(cfg, out)["changed"]) == ("run again", {})


def test_what_would_stop_the_run_stops_the_plan(tmp_path: Path, settings: dict[str, Any]) -> None:
    sources = [*settings["sources"], {"name": "gone", "path": str(tmp_path / "gone")}]
    with pytest.raises(UserError, match=r"no such file or folder \(corpus\.sources\.2\.path\)"):
        preview(CorpusConfig.model_validate({"sources": sources}), tmp_path / "out")
    with pytest.raises(UserError, match="does not allow commercial use"):
        source = {**settings["sources"][0], "license": "CC-BY-NC-4.0"}
        preview(CorpusConfig.model_validate({"sources": [source], "commercial": True}), tmp_path / "out")


def test_built_in_text_is_not_harvested_for_a_plan(tmp_path: Path) -> None:
    cfg = CorpusConfig.model_validate({"sources": [{"name": "pydoc", "builtin": "pydoc"}]})
    (row,) = preview(cfg, tmp_path / "out")["sources"]
    assert (row["from"], row["jobs"], row["bytes"], row["notes"]) == ("pydoc", 1, 0, ["harvested first"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("preset", PRESETS)
def test_every_step_of_a_preset_has_its_settings(preset: str) -> None:
    more = {"perplexity": {"model": "m"}} if preset == "ccnet-like" else {}
    on = {name: {"enabled": True} for name in ("url", "rights", "lines", "c4", "fineweb", "pii")}
    cfg = CorpusConfig.model_validate({"sources": [{"name": "a", "path": "x"}], "preset": preset, **on, **more,
                                       "commercial": True, "classifier": {"model": "c"}, "languages": ["en"],
                                       "first_look": 0.1})  # fmt: skip
    rows = stages(cfg)
    assert [row["step"] for row in rows] == [*cfg.steps, *cfg.dedup.steps]
    assert all(row["settings"] or row["step"] == "exact" for row in rows)


def test_on_the_command_line(tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"- {{name: {source['name']}, path: {source['path']}}}" for source in settings["sources"]]
    (tmp_path / "r.yaml").write_text("name: mine\ncorpus:\n  preset: refinedweb\n  sources:\n  " + "\n  ".join(lines) + "\n")
    before = tree(tmp_path)
    for target in ("r.yaml", "a.jsonl"):
        done = CliRunner().invoke(app, ["curate", target, "--dry-run", "--json"])
        assert done.exit_code == 0, done.output
        facts = json.loads(done.stdout)
        assert facts["state"] == "run" and facts["sources"] and facts["stages"] and "plan" not in facts
        done = CliRunner().invoke(app, ["curate", target, "--dry-run"])
        assert done.exit_code == 0 and "min_words=50" in done.output and "parameters" not in done.output
    assert tree(tmp_path) == before
