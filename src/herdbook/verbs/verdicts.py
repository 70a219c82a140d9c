"""`herdbook corpus why` and `herdbook corpus diff`: verdicts, explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from herdbook.console import Terminal, emit
from herdbook.corpus import verdicts
from herdbook.corpus.funnel import STEPS
from herdbook.corpus.verdicts import Verdict
from herdbook.corpus.work import Trace
from herdbook.errors import UserError, user_errors
from herdbook.units import human_bytes

_EXCERPT = 200
_CUTS_SHOWN = 20


def corpus_folder(path: Path) -> Path:
    """The corpus of a run's folder, or the folder itself."""
    return path / "corpus" if (path / "corpus").is_dir() else path


def why(name: str, place: Path, terminal: Terminal, *, again: bool) -> None:
    """Say what became of a document, by which rule, what was measured, and where its passages went.

    Args:
        again: take its record through the steps once more.
    """
    corpus = corpus_folder(place)
    with user_errors():
        found = verdicts.find(corpus, name)
        if not found:
            raise UserError(
                f"no document here has the id, address or place {name}: it was neither kept nor removed", where=corpus,
                todo="check it for typing errors; ids, files and offsets are in the parquet files of the corpus",
            )  # fmt: skip
        traces = [verdicts.replay(corpus, one.row) if again else None for one in found]
    if terminal.as_json:
        emit([_facts(one, trace) for one, trace in zip(found, traces, strict=True)])
        return
    for one, trace in zip(found, traces, strict=True):
        _show(one, trace, corpus, terminal)


def _facts(one: Verdict, trace: list[Trace] | str | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"verdict": one.kind, **one.row, "cuts": one.cuts}
    if trace is not None:
        facts["again"] = trace if isinstance(trace, str) else [step.as_dict() for step in trace]
    return facts


def _show(one: Verdict, trace: list[Trace] | str | None, corpus: Path, terminal: Terminal) -> None:
    row = one.row
    terminal.step({"kept": "Kept for training", "held out": "Kept, held out", "removed": "Removed"}[one.kind], row["id"])
    if one.kind == "removed":
        terminal.say(f"  {in_words(row)}")
        if row["duplicate_of"] and (twin := verdicts.by_id(corpus, row["duplicate_of"])):
            terminal.say(f"  in its place stands {twin.row['url'] or twin.row['id']} ({twin.kind})")
    for label, value in _about(row):
        terminal.say(f"  {label}: {value}")
    if row["text"]:
        terminal.say(f"  text: {' '.join(row['text'].split())[:_EXCERPT]}…", style="dim")
    if one.cuts:
        rows = [(cut["rule"], cut["decision"], f"{cut['words']:,}", _also(cut), " ".join((cut["text"] or "").split())[:80])
                for cut in one.cuts[:_CUTS_SHOWN]]  # fmt: skip
        terminal.table(["found by", "and", "words", "stands also in", "text"], rows)
    if isinstance(trace, str):
        terminal.say(f"  cannot be judged again: {trace}", style="dim")
    elif trace:
        rows_ = [(STEPS[step.step], human_bytes(step.bytes_in), human_bytes(step.bytes_out), step.words()) for step in trace]
        terminal.table(["step", "bytes in", "out", "verdict"], rows_, title="Once more through the steps")


def _also(cut: dict[str, Any]) -> str:
    """Where a passage stands also: a document, or an item of an evaluation set."""
    return f"{cut['evaluation_set']}: {cut['item']}" if cut["evaluation_set"] is not None else cut["also_in"] or ""


def in_words(row: dict[str, Any]) -> str:
    """The reason of a removal: `few_words: 12, the limit is 50`."""
    value, limit = (None if row[key] is None else f"{row[key]:,.4g}" for key in ("value", "threshold"))
    parts = [f" {value}" if value is not None else "", f", the limit is {limit}" if limit is not None else ""]
    return f"{row['removed_by']}{':' if value is not None else ''}{''.join(parts)}" + (
        f" ({row['detail']})" if row["detail"] else ""
    )


def _about(row: dict[str, Any]) -> list[tuple[str, str]]:
    place = f"{row['file']} at {row['offset']:,}" if row["file"] is not None and row["offset"] is not None else row["file"]
    language = f"{row['language']} ({row['language_score']:.2f})" if row["language"] else None
    stated = f"{row['license']}{' by its ' + row['license_from'] if row['license_from'] else ''}"
    facts = [("address", row["url"]), ("source", row["source"]), ("from", place), ("dump", row["dump"]), ("date", row["date"]),
             ("licence", stated), ("reserves", ", ".join(row["reserved"] or [])), ("language", language),
             ("quality", row["quality"]), ("perplexity", row["perplexity"])]  # fmt: skip
    return [(label, str(value)) for label, value in facts if value not in (None, "")]


def diff(a: Path, b: Path, terminal: Terminal) -> None:
    """Show what two corpora decided differently of the same documents."""
    with user_errors():
        facts = verdicts.diff(corpus_folder(a), corpus_folder(b))
    if terminal.as_json:
        emit(facts)
        return
    for side in ("a", "b"):
        row = facts[side]
        terminal.say(f"{side.upper()} {row['corpus']}: {row['kept']:,} kept of {row['read']:,}")
    terminal.say(f"kept in both: {facts['kept_in_both']:,}, {facts['with_another_text']:,} of them with another text")
    for one, other in (("a", "b"), ("b", "a")):
        rows = [(reason, f"{count:,}", "".join(facts["examples"].get(f"kept_only_in_{one}: {reason}", [])[:1]))
                for reason, count in facts[f"kept_only_in_{one}"].items()]  # fmt: skip
        if rows:
            title = f"Kept only in {one.upper()}: what {other.upper()} says"
            terminal.table([f"in {other.upper()}", "documents", "such as"], rows, title=title)
    if facts["settings"]:
        rows = [(name, str(left), str(right)) for name, (left, right) in facts["settings"].items()]
        terminal.table(["setting", "A", "B"], rows, title="Settings that differ")
