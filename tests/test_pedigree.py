from __future__ import annotations

import json
from pathlib import Path

import pytest

from herdbook import pedigree
from herdbook.errors import UserError


def make(folder: Path, station: str, inputs: list[Path], text: str = "x", license_id: str | None = None) -> Path:
    with pedigree.record(folder, station, {"text": text}) as entry:
        for path in inputs:
            entry.add_input(path, "source")
            if path.is_dir():
                entry.inherit_licenses(path)
        if license_id:
            entry.add_license(license_id)
        (folder / "out.txt").write_text(text)
        entry.counts["documents"] = 3
    return folder


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    source = tmp_path / "crawl.warc"
    source.write_text("pages")
    corpus = make(tmp_path / "run" / "corpus", "corpus", [source], "corpus", "CC-BY-SA-4.0")
    tokens = make(tmp_path / "run" / "tokens", "tokens", [corpus], "tokens", "BSD-3-Clause")
    return make(tmp_path / "run" / "model", "pretrain", [tokens], "model")


def test_the_tree_leads_back_to_the_crawl_with_the_strictest_licence(chain: Path, tmp_path: Path) -> None:
    root = pedigree.tree(chain)
    assert [root.title, root.children[0].title, root.children[0].children[0].title] == ["pretrain", "tokens", "corpus"]
    leaf = root.children[0].children[0].children[0]
    assert leaf.path == (tmp_path / "crawl.warc").resolve()
    assert root.manifest is not None
    assert root.manifest["license"]["id"] == "CC-BY-SA-4.0 AND BSD-3-Clause"
    assert pedigree.verify(root) == []
    assert pedigree.count_files(root) == 4


def test_verify_finds_each_kind_of_change(chain: Path, tmp_path: Path) -> None:
    (tmp_path / "crawl.warc").write_text("other")
    (tmp_path / "run" / "tokens" / "out.txt").unlink()
    (tmp_path / "run" / "model" / "new.txt").write_text("?")
    problems = "\n".join(pedigree.verify(pedigree.tree(chain)))
    assert "crawl.warc: has changed since it was read" in problems
    assert "tokens/out.txt: missing" in problems
    assert "model/new.txt: was not there when the station ended" in problems


def test_checkpoints_and_half_written_files_are_no_output(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", "pretrain", [])
    (folder / "checkpoint-000100").mkdir()
    (folder / "checkpoint-000100" / "state").write_text("s")
    (folder / ".a.1.partial").write_text("half")
    assert [path.name for path in pedigree.output_files(folder)] == ["out.txt"]


def test_current_only_with_the_same_config_inputs_and_outputs(chain: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "run" / "tokens"
    inputs = [(tmp_path / "run" / "corpus", "source")]
    assert pedigree.is_current(tokens, {"text": "tokens"}, inputs)
    assert not pedigree.is_current(tokens, {"text": "other"}, inputs)
    assert not pedigree.is_current(tmp_path / "nowhere", {"text": "tokens"}, inputs)
    make(tmp_path / "run" / "corpus", "corpus", [tmp_path / "crawl.warc"], "changed")
    assert not pedigree.is_current(tokens, {"text": "tokens"}, inputs)


def test_an_output_that_was_cut_short_is_not_current(chain: Path) -> None:
    (chain / "out.txt").write_text("m")
    assert not pedigree.is_current(chain, {"text": "model"}, [])


def test_a_touched_but_equal_input_is_still_current(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text("{}")
    folder = make(tmp_path / "c", "corpus", [source])
    source.write_text("{}")
    assert pedigree.is_current(folder, {"text": "x"}, [(source, "source")])
    source.write_text("[]")
    assert not pedigree.is_current(folder, {"text": "x"}, [(source, "source")])


def test_a_station_that_fails_leaves_no_pedigree(tmp_path: Path) -> None:
    folder = make(tmp_path / "c", "corpus", [])
    with pytest.raises(RuntimeError), pedigree.record(folder, "corpus", {}):
        raise RuntimeError
    assert not pedigree.exists(folder)


def test_a_broken_pedigree_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pedigree here"):
        pedigree.read(tmp_path)
    (tmp_path / "pedigree.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        pedigree.read(tmp_path)
    (tmp_path / "pedigree.json").write_text("[]")
    with pytest.raises(UserError, match="another form"):
        pedigree.read(tmp_path)


@pytest.mark.parametrize(
    "content",
    [{"schema": 1}, [], {"schema": 1, "inputs": [], "outputs": [], "licenses": [], "license": {"id": ["a"]}}, "x", None],
)
def test_a_manifest_from_elsewhere_is_refused_in_plain_words(content: object, tmp_path: Path) -> None:
    (tmp_path / pedigree.MANIFEST).write_text(json.dumps(content))
    with pytest.raises(UserError, match="another form"):
        pedigree.tree(tmp_path)
