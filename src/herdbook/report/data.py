"""The report's sections about the text: funnel, sources, languages, tokenizer."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import yaml

from herdbook.report import numbers as n
from herdbook.report.blocks import Block, Break, Excerpt, Figure, Fold, Link, Meter, Paragraph, Section, Strong, Table, Words
from herdbook.report.read import Json, Run, blame
from herdbook.report.svg import Bar, BarChart

_LANGUAGES = {"en": "English", "fr": "French", "es": "Spanish", "de": "German", "it": "Italian", "pt": "Portuguese",
              "nl": "Dutch", "ru": "Russian", "zh": "Chinese", "ja": "Japanese", "la": "Latin"}  # fmt: skip
_MOST_LANGUAGES = 8


@cache
def published() -> Json:
    """The published figures the report compares with."""
    text = resources.files("herdbook.report").joinpath("published.yaml").read_text(encoding="utf-8")
    found: Json = yaml.safe_load(text)
    return found


def data_sections(run: Run) -> list[Section]:
    """The sections for which there is something to say."""
    sections: list[Section] = []
    if run.funnel is not None:
        with blame(run.folder / "corpus" / "funnel.json"):
            sections += [funnel_section(run.funnel), sources_section(run, run.funnel), *languages_section(run.funnel)]
    if run.tokenizer is not None:
        with blame(run.folder / "tokenizer" / "report.json"):
            sections.append(tokenizer_section(run.tokenizer))
    return sections


def funnel_section(funnel: Json) -> Section:
    """What each step kept, in a picture, a table, and examples of what it removed."""
    steps, read = funnel["steps"], funnel["documents_in"]
    marks = published_marks([step["step"] for step in steps])
    bars, earlier = [Bar("all records", 1.0, n.whole(read))], 1.0
    for step in steps:
        share = step["documents_out"] / read if read else 0.0
        bars.append(Bar(step["title"], share, n.whole(step["documents_out"]), earlier, marks.get(step["step"])))
        earlier = share
    web = published()["refinedweb"]
    legend = [("c1", "kept"), ("gone", "removed by the step"), *([("mark", f"{web['name']}, published")] if marks else [])]
    kept = funnel["documents_out"]
    caption = f"{n.whole(kept)} of {n.whole(read)} documents are kept ({n.share(kept / read if read else None)})."
    blocks: list[Block] = [
        Figure(BarChart("Documents left after each step", bars, 1.0, "c1", legend), caption),
        _steps(funnel, marks),
    ]
    if marks:
        before = f"The shares of {web['name']} are what was left of Common Crawl at the same point, as published by "
        after = ". That was the open web in English; these are other sources, so they show the order of size and are no goal."
        blocks.append(Paragraph((before, Link(web["source"], web["address"]), after), note=True))
    blocks += [fold for step in steps for fold in _removed(step)]
    return Section("funnel", "From raw pages to training text", blocks)


def published_marks(steps: list[str]) -> dict[str, float]:
    """For the steps that have a published counterpart, the share of documents it left."""
    marks: dict[str, float] = {}
    for stage in published()["refinedweb"]["kept"]:
        matching = [step for step in steps if step not in marks and any(part in step for part in stage["steps"])]
        marks |= {matching[-1]: stage["share"]} if matching else {}
    return marks


def _steps(funnel: Json, marks: dict[str, float]) -> Table:
    rows: list[list[Words]] = []
    read = funnel["documents_in"]
    for step in funnel["steps"]:
        came, left = step["documents_in"], step["documents_out"]
        removed, of_all = (came - left) / came if came else None, left / read if read else None
        row: list[Words] = [step["title"], n.whole(left), n.share(removed), n.share(of_all)]
        row += [n.share(marks[step["step"]]) if step["step"] in marks else ""] if marks else []
        rows.append([*row, n.size(step["bytes_out"]), n.seconds(step.get("cpu_s"))])
    columns = ["step", "left", "removed", "left of all", *(["RefinedWeb"] if marks else []), "text left", "CPU time"]
    return Table(columns, rows, "l" + "r" * (len(columns) - 1))


def _removed(step: Json) -> list[Fold]:
    """Why a step removed what it removed, with examples; nothing when it removed nothing."""
    reasons = sorted(step.get("reasons", {}).items(), key=lambda item: (-item[1], item[0]))
    examples = step.get("examples", [])
    if not reasons and not examples:
        return []
    gone = step["documents_in"] - step["documents_out"]
    blocks: list[Block] = [
        Table(("reason", "documents"), [[_words(reason), n.whole(total)] for reason, total in reasons], "lr")
    ]
    blocks += [Excerpt(_example_head(example), example["excerpt"]) for example in examples]
    return [Fold(f"{step['title']}: {n.whole(gone)} removed, and why", blocks)]


def _example_head(example: Json) -> Words:
    measured = ""
    if example.get("value") is not None:
        measured = f": {_value(example['value'])}"
        measured += f", threshold {_value(example['threshold'])}" if example.get("threshold") is not None else ""
    return (Strong(_words(example["reason"])), f"{measured} · ", Link(example["id"], example.get("url") or ""))


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _words(name: str) -> str:
    return name.replace("_", " ")


def sources_section(run: Run, funnel: Json) -> Section:
    """Where the text comes from and under which licence."""
    trained = run.source_tokens
    rows: list[list[Words]] = []
    for name, source in funnel["sources"].items():
        tokens = n.count(trained[name]) if name in trained else n.ABSENT
        rows.append(
            [(Strong(name), Break(), source.get("description") or ""), _license(source["license"]),
             n.whole(source["documents_in"]), n.whole(source["documents_out"]),
             n.whole(source.get("heldout_documents")), n.size(source["bytes_out"]), tokens]
        )  # fmt: skip
    columns = ("source", "licence", "read", "for training", "held out", "text", "tokens")
    note = Paragraph("Held-out documents are never trained on; the scores below are measured on them.", note=True)
    return Section("sources", "Sources and licences", [Table(columns, rows, "lkrrrrr"), note])


def _license(expression: str) -> Words:
    """A licence expression, each licence on a line of its own."""
    first, *others = expression.split(" AND ")
    return (first, *(part for other in others for part in (" AND", Break(), other)))


def languages_section(funnel: Json) -> list[Section]:
    """The languages that were read, before any filter on language."""
    found = sorted(funnel.get("languages", {}).items(), key=lambda item: (-item[1]["bytes"], item[0]))
    total = sum(row["bytes"] for _, row in found)
    if not total:
        return []
    shown, rest = found[:_MOST_LANGUAGES], found[_MOST_LANGUAGES:]
    if rest:
        others = {key: sum(row[key] for _, row in rest) for key in ("documents", "bytes")}
        shown.append((f"{len(rest)} others", others))
    rows: list[list[Words]] = [
        [language_name(code), n.whole(row["documents"]), n.size(row["bytes"]), n.share(row["bytes"] / total),
         Meter(row["bytes"] / total, "c2")]
        for code, row in shown
    ]  # fmt: skip
    words = "What was read, before any filter on language."
    table = Table(("language", "documents", "text", "share", ""), rows, "lrrrm")
    return [Section("languages", "Languages", [Paragraph(words, note=True), table])]


def language_name(code: str) -> str:
    """`fr` → `French`; unknown codes are left as they are."""
    return _LANGUAGES.get(code, code or "unknown")


def tokenizer_section(report: Json) -> Section:
    """How many bytes of text a token stands for, by source and language."""
    words = f"The tokenizer knows {n.whole(report['vocab_size'])} tokens. On held-out text one token stands for "
    blocks: list[Block] = [
        Paragraph((words, Strong(f"{n.fixed(report['bytes_per_token'], 2)} bytes"), " on average" + _used(report)))
    ]
    groups = [("source", report.get("by_source", {})), ("language", report.get("by_language", {}))]
    for title, rows in groups:
        if not rows:
            continue
        shown = sorted(rows.items(), key=lambda item: (-item[1]["bytes"], item[0]))[:_MOST_LANGUAGES]
        top = max(row["bytes_per_token"] for _, row in shown)
        table: list[list[Words]] = [
            [language_name(key) if title == "language" else key, n.size(row["bytes"]), n.whole(row["tokens"]),
             n.fixed(row["bytes_per_token"], 2), Meter(row["bytes_per_token"] / top, "c3")]
            for key, row in shown
        ]  # fmt: skip
        blocks.append(Table((title, "text", "tokens", "bytes a token", ""), table, "lrrrm"))
    return Section("tokenizer", "Tokenizer", blocks)


def _used(report: Json) -> str:
    used = report.get("vocabulary_used")
    return "." if used is None else f", and {n.share(used)} of the vocabulary occurs in it."
