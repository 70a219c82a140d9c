"""The report: well-formed, self-contained, escaped, the same facts in both files, silent about what is missing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from herdbook import pedigree
from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.files import read_json, write_json
from herdbook.report.html import html
from herdbook.report.markdown import markdown
from herdbook.report.page import build_page
from herdbook.report.read import STATIONS, read_run
from herdbook.report.report import write_report

VOID = {"meta", "br", "img", "link", "input", "hr"}
NUMBER = re.compile(r"\d[\d,.]*")


class Checker(HTMLParser):
    """Follows tags and collects text, addresses and everything that could load or run something."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text: list[str] = []
        self.links: list[str] = []
        self.anchors: list[str] = []
        self.ids: list[str] = []
        self.harm: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "img", "iframe", "object", "embed", "link", "audio", "video", "base", "form", "use", "image"):
            self.harm.append(tag)
        for name, value in attrs:
            if name.startswith("on") or name in ("src", "srcset", "xlink:href", "action", "background"):
                self.harm.append(f"{tag} {name}={value}")
            if name == "id":
                self.ids.append(value or "")
            if name == "href":
                (self.anchors if (value or "").startswith("#") else self.links).append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and "svg" not in self.open:
            self.text.append(data)


def check(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    return checker


@pytest.fixture
def page(run: Path, terminal: Terminal) -> str:
    path = write_report(run, terminal)
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


def test_well_formed_and_self_contained(page: str) -> None:
    checker = check(page)
    assert checker.harm == []
    assert all(link.startswith("https://") for link in checker.links)
    assert {anchor[1:] for anchor in checker.anchors} == set(checker.ids)
    assert len(set(checker.ids)) == len(checker.ids)
    assert "url(" not in page and "@import" not in page
    assert "default-src 'none'" in page


def test_every_section_is_there_in_order(page: str) -> None:
    titles = [unescape(title) for title in re.findall(r"<h2>(.*?)</h2>", page)]
    assert titles == [
        "What this is", "From raw pages to training text", "Sources and licences", "Languages", "Tokenizer",
        "Plan and what was spent", "Loss", "Scores", "What it writes", "Time and machine", "Pedigree", "Licence",
        "Repeat this run",
    ]  # fmt: skip


def test_hostile_text_stays_text(page: str, hostile: str) -> None:
    checker = check(page)
    assert hostile in "".join(checker.text)
    assert "<script" not in page and "<img" not in page


def test_hostile_names_and_addresses_do_no_harm(run: Path, terminal: Terminal, hostile: str) -> None:
    funnel = read_json(run / "corpus" / "funnel.json")
    funnel["sources"][hostile] = {**funnel["sources"]["pydoc"], "description": hostile, "license": hostile}
    funnel["languages"][hostile] = {"documents": 1, "bytes": 1}
    for number, address in enumerate(("javascript:alert(1)", 'https://x.example/"onclick="alert(1)', "data:text/html,x")):
        funnel["steps"][0]["examples"].append(
            {"id": hostile, "url": address, "reason": hostile, "value": number, "excerpt": "```\n# x"}
        )
    funnel["steps"][1]["title"] = hostile
    write_json(run / "corpus" / "funnel.json", funnel)
    checker = check(write_report(run, terminal).read_text(encoding="utf-8"))
    assert checker.harm == []
    assert not [link for link in checker.links if not link.startswith("https://")]
    rendered = MarkdownIt("commonmark").enable("table").render((run / "report.md").read_text(encoding="utf-8"))
    in_markdown = check(rendered)
    assert in_markdown.harm == []
    assert "javascript" not in "".join(in_markdown.links)
    assert not [tag for tag in ("<b>", "<h1># x") if tag in rendered]


def test_markdown_has_the_same_numbers(page: str, run: Path) -> None:
    words = " ".join(check(page).text)
    text = (run / "report.md").read_text(encoding="utf-8")
    in_html, in_markdown = (set(NUMBER.findall(found.replace("\\", ""))) for found in (words, text))
    assert in_html - in_markdown == set()
    assert {number for number in in_markdown - in_html if len(number) > 1} <= {"2306.01116", "1", "2"}


def test_the_same_files_give_the_same_report(page: str, run: Path, terminal: Terminal) -> None:
    assert write_report(run, terminal).read_text(encoding="utf-8") == page


@pytest.mark.parametrize("missing", STATIONS)
def test_a_station_that_is_missing_is_left_out(run: Path, terminal: Terminal, missing: str) -> None:
    whole = read_json(run / "corpus" / "funnel.json")
    shutil.rmtree(run / missing)
    text = write_report(run, terminal).read_text(encoding="utf-8")
    checker = check(text)
    assert "not run" in "".join(checker.text)
    gone = {"corpus": "funnel", "tokenizer": "tokenizer", "eval": "scores"}.get(missing)
    assert gone is None or gone not in checker.ids
    assert "None" not in "".join(checker.text) and "nan" not in "".join(checker.text)
    if missing == "corpus":
        assert f"{whole['documents_in']:,}" not in text


def test_only_a_recipe_or_only_one_station_will_do(run: Path, terminal: Terminal) -> None:
    for station in STATIONS[1:]:
        shutil.rmtree(run / station)
    check(write_report(run, terminal).read_text(encoding="utf-8"))
    shutil.rmtree(run / "corpus")
    check(write_report(run, terminal).read_text(encoding="utf-8"))


def test_training_that_was_cut_off_is_shown_and_said_to_be_unfinished(run: Path, terminal: Terminal) -> None:
    (run / "pretrain" / pedigree.MANIFEST).unlink()
    metrics = run / "pretrain" / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-30])
    text = "".join(check(write_report(run, terminal).read_text(encoding="utf-8")).text)
    assert "not finished" in text
    assert "479" in text, "the last whole step"


def test_no_run_is_the_users_to_mend(tmp_path: Path, terminal: Terminal) -> None:
    with pytest.raises(UserError, match="no such run"):
        write_report(tmp_path / "nowhere", terminal)
    with pytest.raises(UserError, match="no station has left anything"):
        write_report(tmp_path, terminal)


@pytest.mark.parametrize(
    ("name", "content"),
    [("corpus/funnel.json", "{"), ("corpus/funnel.json", "[]"), ("corpus/funnel.json", "{}"),
     ("corpus/funnel.json", '{"documents_in": "x", "documents_out": 1, "steps": [{}], "sources": {}}'),
     ("tokenizer/report.json", '{"vocab_size": 1}'), ("tokens/index.json", '{"sources": []}'),
     ("pretrain/metrics.jsonl", '{"step": 1}\n'), ("pretrain/metrics.jsonl", "broken\n{}\n"),
     ("pretrain/metrics.jsonl", '{"step": 1, "tokens": "x", "loss": 1}\n'),
     ("eval/results.json", '{"models": {"a": {}}}'), ("eval/results.json", "not json"),
     ("eval/generations.json", '[{"model": "a"}]'), ("recipe.yaml", "a: [")],
)  # fmt: skip
def test_a_broken_file_is_named(run: Path, terminal: Terminal, name: str, content: str) -> None:
    (run / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        write_report(run, terminal)
    assert Path(name).name in str(caught.value.where)


def test_small_and_odd_numbers_do_not_break_it(run: Path, terminal: Terminal) -> None:
    funnel = read_json(run / "corpus" / "funnel.json")
    funnel |= {"documents_in": 0, "documents_out": 0, "languages": {}}
    for step in funnel["steps"]:
        step |= {"documents_in": 0, "documents_out": 0, "bytes_out": 0, "reasons": {}, "examples": []}
    write_json(run / "corpus" / "funnel.json", funnel)
    (run / "pretrain" / "metrics.jsonl").write_text('{"step": 1, "tokens": 64, "loss": 2.0}\n', encoding="utf-8")
    results = read_json(run / "eval" / "results.json")
    for found in results["models"].values():
        for scores in found["results"].values():
            scores |= {key: "N/A" for key in scores if "stderr" in key}
    write_json(run / "eval" / "results.json", results | {"skipped": {"continuation_choice": "there is no prose"}})
    assert "there is no prose" in "".join(check(write_report(run, terminal).read_text(encoding="utf-8")).text)


def test_another_run_gives_other_words(run: Path, make: Callable[[Path], Path], tmp_path: Path) -> None:
    other = make(tmp_path / "runs" / "own")
    manifest = pedigree.read(other / "corpus")
    manifest["config"]["sources"] = [{"name": "crawl", "path": "pages.warc.gz"}]
    write_json(other / "corpus" / pedigree.MANIFEST, manifest)
    pages = [build_page(read_run(folder)) for folder in (run, other)]
    assert "what this machine had at hand" in html(pages[0])
    assert "what this machine had at hand" not in html(pages[1]) + markdown(pages[1])
