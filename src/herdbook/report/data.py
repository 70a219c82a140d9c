"""The report's sections about the text: sources, licences, languages, tokenizer; that about the funnel is in `funnel`."""

from __future__ import annotations

from functools import cache
from importlib import resources

import yaml

from herdbook.facts.licenses import UNKNOWN
from herdbook.report import numbers as n
from herdbook.report.blocks import Block, Break, Meter, Paragraph, Section, Strong, Table, Words
from herdbook.report.funnel import beside_section, funnel_section
from herdbook.report.read import Json, Run, blame
from herdbook.report.rights import Tally, count_rights

_LANGUAGES = {"en": "English", "fr": "French", "es": "Spanish", "de": "German", "it": "Italian", "pt": "Portuguese",
              "nl": "Dutch", "ru": "Russian", "zh": "Chinese", "ja": "Japanese", "la": "Latin"}  # fmt: skip
_MOST_LANGUAGES = 8
_MOST_LICENSES = 12
_MOST_MARKS = 6
_MOST_PATHS = 3


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
            sections += [funnel_section(run.funnel), *beside_section(run, run.funnel)]
            sections += [sources_section(run, run.funnel), *rights_section(run, run.funnel), *languages_section(run.funnel)]
    if run.tokenizer is not None:
        with blame(run.folder / "tokenizer" / "report.json"):
            sections.append(tokenizer_section(run.tokenizer))
    return sections


def sources_section(run: Run, funnel: Json) -> Section:
    """Where the text comes from and under which licence."""
    trained = run.source_tokens
    rows: list[list[Words]] = []
    for name, source in funnel["sources"].items():
        row: list[Words] = [(Strong(name), Break(), _described(source.get("description") or "")), _license(source["license"]),
                            n.whole(source["documents_in"]), n.whole(source["documents_out"]),
                            n.whole(source.get("heldout_documents")), n.size(source["bytes_out"])]  # fmt: skip
        rows.append([*row, *([n.count(trained[name]) if name in trained else n.ABSENT] if trained else [])])
    columns = ["source", "licence", "read", "for training", "held out", "text", *(["tokens"] if trained else [])]
    note = Paragraph("Held-out documents are never trained on; the scores below are measured on them.", note=True)
    table = Table(columns, rows, "lk" + "r" * (len(columns) - 2))
    return Section("sources", "Sources and licences", [table, note])


def _described(text: str) -> str:
    """What a source is; of paths, which are its description where it has no other, only their ends, and few of them."""
    parts = text.split(", ")
    if not all("/" in part and " " not in part for part in parts):
        return text
    short = ["/".join(("…", *names[-2:])) if len(names := part.rstrip("/").split("/")) > 2 else part for part in parts]
    return ", ".join(short[:_MOST_PATHS]) + (f" and {len(short) - _MOST_PATHS} more" if len(short) > _MOST_PATHS else "")


def _license(expression: str) -> Words:
    """A licence expression, each licence on a line of its own."""
    if expression == UNKNOWN:
        return "not known"
    first, *others = expression.split(" AND ")
    return (first, *(part for other in others for part in (" AND", Break(), other)))


def rights_section(run: Run, funnel: Json) -> list[Section]:
    """Under which licences the documents are and what their pages reserve, if anybody looked; older corpora do not say."""
    found = count_rights(run.folder / "corpus")
    if found is None:
        return []
    sizes = {name: row.bytes if found.measured else row.documents for name, row in found.licenses.items()}
    total = sum(sizes.values())
    ordered = sorted(found.licenses.items(), key=lambda item: (-sizes[item[0]], item[0]))
    shown, rest = ordered[:_MOST_LICENSES], ordered[_MOST_LICENSES:]
    if rest:
        others = Tally(*(sum(getattr(row, key) for _, row in rest) for key in ("documents", "bytes", "stated")))
        shown.append((name := f"{len(rest)} others", others))
        sizes[name] = sum(sizes[name] for name, _ in rest)
    rows: list[list[Words]] = [
        [_license(name), n.whole(row.documents), n.whole(row.stated), n.size(row.bytes if found.measured else None),
         n.share(sizes[name] / total if total else None)]
        for name, row in shown
    ]  # fmt: skip
    columns = ("licence", "documents", "stated", "text", "share")
    reserving = "Stated: by the page itself, and not by its source. " if any(row.stated for _, row in shown) else ""
    reserving += f"Of {n.whole(found.looked_at)} documents whose page was looked at, {n.whole(found.reserving)} "
    reserving += f"({n.share(found.reserving / found.looked_at)}) reserve rights"
    marks = [f"{mark}: {n.whole(count)}" for mark, count in found.marks.most_common(_MOST_MARKS)]
    reserving += f" and are still here ({', '.join(marks)})." if marks else "."
    gone: dict[str, int] = next((step["reasons"] for step in funnel["steps"] if step["step"] == "rights"), {})
    if gone:
        listed = ", ".join(f"{n.whole(count)} by {reason.replace('_', ' ')}" for reason, count in gone.items())
        reserving += f" Removed for their rights: {listed}."
    blocks: list[Block] = [Table(columns, rows, "krrrr"), Paragraph(reserving, note=True)]
    return [Section("rights", "Licences and reservations", blocks)]


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
    if report.get("compare"):
        blocks.append(_beside_others(report))
    return Section("tokenizer", "Tokenizer", blocks)


def _beside_others(report: Json) -> Table:
    """This tokenizer and those it was compared with, on the same text."""
    shown: list[Json] = [{"tokenizer": "this one", **report}, *report["compare"]]
    rows: list[list[Words]] = [
        [row["tokenizer"], n.whole(row["vocab_size"]), n.fixed(row["bytes_per_token"], 2), n.share(row["vocabulary_used"]),
         n.share(row["round_trip"])]
        for row in shown
    ]  # fmt: skip
    return Table(("tokenizer", "vocabulary", "bytes a token", "of it used", "come back unchanged"), rows, "lrrrr")


def _used(report: Json) -> str:
    used = report.get("vocabulary_used")
    return "." if used is None else f", and {n.share(used)} of the vocabulary occurs in it."
