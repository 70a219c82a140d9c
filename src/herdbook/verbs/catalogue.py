"""`herdbook models`: the catalogue of families and sizes, and what there is to know of one of them or of a model on disk."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from herdbook.console import Terminal, emit
from herdbook.errors import UserError
from herdbook.facts.licenses import License
from herdbook.facts.models import Preset, list_families, list_models
from herdbook.facts.results import ResultTable, tables_with
from herdbook.plan.serving import serving_memory
from herdbook.units import human_bytes, human_count, parse_bytes
from herdbook.verbs.portrait import STATE, Row, facts_of, origin, rows_of
from herdbook.verbs.subject import Subject, find_subject

TERMS = "yes, terms"


def ls(
    terminal: Terminal, *, family: str | None = None, fits: str | None = None, precision: str = "bf16", commercial: bool = False
) -> None:
    """The sizes, one a row, grouped by family.

    Args:
        family: only this one.
        fits: only what serves one sequence of full length within this much memory, in `precision`.
        commercial: only published weights that may be used commercially.

    Raises UserError for a family, a size or a precision that is none.
    """
    presets = [preset for preset in list_models() if family in (None, preset.family)]
    if not presets:
        close = difflib.get_close_matches(str(family), list_families(), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(
            f"there is no family {family!r}", where="--family", todo=f"{hint}There are {', '.join(list_families())}"
        )
    needed = {preset.name: serving_memory(preset.config, precision) for preset in presets}
    if fits is not None:
        room = _room(fits)
        presets = [preset for preset in presets if needed[preset.name].total <= room]
    if commercial:
        presets = [preset for preset in presets if preset.license and preset.license.commercial]
    if terminal.as_json:
        emit([{**preset.as_dict(), "serving": needed[preset.name].as_dict()} for preset in presets])
        return
    if not presets:
        terminal.say("nothing in the catalogue is like that")
        return
    rows = list(_rows(presets, {name: human_bytes(need.total) for name, need in needed.items()}))
    terminal.table(["name", "parameters", "context", "tokens", f"in {precision}", "licence", "commercial"], rows)
    terminal.say()
    terminal.say(f"in {precision}: weights, and the cache of one sequence of full length")
    if any(row[-1] == TERMS for row in rows):
        terminal.say(f"{TERMS}: `herdbook models show NAME` says which")


def _room(fits: str) -> int:
    todo = "write a size as in 24GB or 80GiB"
    try:
        room = parse_bytes(fits)
    except ValueError as error:
        raise UserError(str(error), where="--fits", todo=todo) from error
    if room < 1e6:
        raise UserError(f"{room} bytes hold no model", where="--fits", todo=todo)
    return room


def _rows(presets: list[Preset], needed: dict[str, str]) -> Iterator[list[str]]:
    """A heading a family, and its sizes below it."""
    family = None
    for preset in presets:
        if preset.family != family:
            family = preset.family
            yield [preset.title, *[""] * 6]
        license_ = preset.license.id.removeprefix("LicenseRef-") if preset.license else "-" if preset.tiny else "no weights"
        use = _use(preset.license) if preset.license else ""
        count, tokens = human_count(preset.config.parameters()), human_count(preset.tokens) if preset.tokens else ""
        yield [f"  {preset.name}", count, f"{preset.config.context:,}", tokens, needed[preset.name], license_, use]


def _use(license_: License) -> str:
    return ("yes" if not license_.conditions else TERMS) if license_.commercial else "no"


def show(name: str, terminal: Terminal) -> None:
    """One size, or a model folder, in full. Raises UserError when there is neither."""
    subject = find_subject(name)
    if terminal.as_json:
        emit(facts_of(subject))
        return
    terminal.step(subject.name, origin(subject))
    rows = [row for row in rows_of(subject) if row.what != "by"]
    rows += _published(subject.preset) if subject.preset else _of_folder(subject)
    terminal.table(["", ""], [[row.what, row.marked()] for row in rows])
    for table in tables_with([subject.name]):
        heading(table, terminal)
        terminal.table(table.columns, [["" if value is None else value for value in table.rows[subject.name]]])
        terminal.say(table.source, style="dim")
    terminal.say()
    terminal.say(f"to train: {STATE}", style="dim")


def heading(table: ResultTable, terminal: Terminal) -> None:
    """The title of a published table."""
    terminal.say()
    terminal.say(f"{table.title}, {table.unit}" if table.unit else table.title, style="bold")


def _published(preset: Preset) -> Iterator[Row]:
    if preset.terms:
        yield Row("in plain words", preset.terms, "terms" in preset.from_memory)
    if preset.hub:
        yield Row("weights", f"{preset.hub} on the Hugging Face hub", "hub" in preset.from_memory)
    yield Row("source", preset.source)
    yield from (Row("note", note, "notes" in preset.from_memory) for note in preset.notes)
    others = [figure for figure in preset.from_memory if figure in ("shape", *type(preset.config).model_fields)]
    if others:
        yield Row("from memory", ", ".join(others))


def _of_folder(subject: Subject) -> Iterator[Row]:
    if subject.stated and subject.license and subject.stated.id != subject.license.id:
        yield Row("", f"the folder itself says {subject.stated.id}; what it was made from asks for more")
    for ancestor in subject.ancestors:
        terms = ancestor.license.in_words() if ancestor.license else "no licence known"
        variant = f" (in the catalogue: {ancestor.preset.name})" if ancestor.preset else ""
        yield Row("made from", f"{ancestor.name}{variant}. {terms}")
    if subject.counts:
        yield Row("pedigree", f"`herdbook pedigree {subject.folder}` goes back to the crawl")
