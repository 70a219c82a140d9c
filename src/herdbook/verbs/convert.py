"""`herdbook convert`: a model from one layout to another, with its licence and its pedigree."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from herdbook import pedigree
from herdbook.console import Terminal, emit
from herdbook.errors import UserError, user_errors
from herdbook.facts.licenses import License, find_expression
from herdbook.facts.models import published_license
from herdbook.files import atomic_folder
from herdbook.interop.doors import (
    LAYOUTS,
    Layout,
    check_type,
    find_tokenizer,
    layout_for,
    layout_of,
    load_decoder,
    packed_type,
    save_decoder,
    type_of,
)
from herdbook.interop.licenses import license_of, named_bases, require_commercial, stated_license, with_ancestors
from herdbook.interop.tokenizers import load_tokenizer
from herdbook.units import human_bytes
from herdbook.verbs.talk import find_model


def convert(
    source: Path,
    out: Path,
    *,
    to: str | None,
    kind: str | None,
    license_id: str | None,
    tokenizer: Path | None,
    context: int | None,
    commercial: bool,
    allow_pickle: bool,
    force: bool,
    terminal: Terminal,
) -> None:
    """Read the model at `source`, write it to `out`; the layout is `to`, or what the name of `out` says."""
    layout, kind = _layout(to, out), kind.upper() if kind else None
    check_type(layout, kind)
    source = Path(find_model(str(source)))
    come_from = layout_of(source)
    _require_place(source, out, layout, force=force)
    license_ = _license(source, license_id)
    strangers = [base for base in named_bases(source) if published_license(base) is None]
    if commercial:
        require_commercial(license_, source)
        _refuse_strangers(strangers, source)
    words = load_tokenizer(tokenizer) if tokenizer is not None else find_tokenizer(source)
    with user_errors(), warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always", UserWarning)
        terminal.step("convert", f"{source} → {out}")
        kind = kind or (packed_type(source) if layout == "gguf" else None)
        dtype = type_of(source, allow_pickle=allow_pickle)
        model = load_decoder(source, dtype=dtype, allow_pickle=allow_pickle, context=context)
        options: dict[str, Any] = {"kind": kind, "tokenizer": words, "license_id": license_.id, "name": source.stem}
        if layout in ("hf", "meta"):
            config = {"to": layout, "type": kind, "license": license_id, "context": context}
            card, bases = f"# {source.stem}\n\nConverted with herdbook.", named_bases(source)
            with atomic_folder(out) as aside, pedigree.record(aside, "convert", config) as record:
                _note_source(record, source, license_)
                save_decoder(model, aside, layout, **options, card=card, bases=bases)
                record.counts.update(parameters=model.cfg.parameters(), context=model.cfg.context)
        else:
            save_decoder(model, out, layout, **options, origin=_origin(source, come_from, license_))
    for message in dict.fromkeys(str(warning.message) for warning in raised if warning.category is UserWarning):
        terminal.warn(message)
    for base in strangers:
        terminal.warn(f"the card says that it was made of {base}, whose licence is not known here: look it up")
    for message in _lost(source, come_from, layout, words, model.cfg.context, told=context is not None):
        terminal.warn(message)
    size = sum(file.stat().st_size for file in ([out] if out.is_file() else out.rglob("*")) if file.is_file())
    if terminal.as_json:
        emit({"model": str(out), "layout": layout, "bytes": size, "parameters": model.cfg.parameters(), "license": license_.id})
        return
    terminal.say(f"{out}: {model.cfg.parameters():,} parameters, {human_bytes(size)}")
    terminal.say(license_.in_words())


def _license(source: Path, license_id: str | None) -> License:
    """The licence of what is made: the source's; `--license` speaks only where the source itself says nothing."""
    if license_id is None:
        return license_of(source)
    stated, wanted = stated_license(source), find_expression(license_id)
    if stated is not None and stated.id != wanted.id:
        raise UserError(
            f"the source states its licence: {stated.id}", where=source,
            todo="leave --license out; it is for sources that state none",
        )  # fmt: skip
    return with_ancestors(wanted, named_bases(source))


def _refuse_strangers(bases: list[str], source: Path) -> None:
    """With `--commercial`: what was made of a model we know nothing of may be bound by terms we know nothing of."""
    if bases:
        raise UserError(
            f"--commercial: the card says that it was made of {bases[0]}, whose licence is not known here", where=source,
            todo="look that licence up; if it allows commercial use, convert without --commercial",
        )  # fmt: skip


def _origin(source: Path, layout: Layout, license_: License) -> dict[str, Any]:
    """What a single file carries of its pedigree: the source by hash, and what that was made from."""
    facts: dict[str, Any] = {"source": source.name, "layout": layout, "license": license_.id}
    facts |= {"sha256": pedigree.fingerprint(source, "model", source.parent).sha256, "code": pedigree.code_version()}
    if source.is_dir() and pedigree.exists(source):
        facts["made_from"] = pedigree.describe(pedigree.tree(source))
    return facts


def _lost(source: Path, come_from: Layout, layout: Layout, words: Any, context: int, *, told: bool) -> list[str]:
    """What the new layout has no place for, or the old one did not tell."""
    lost = []
    if layout == "llama2c":
        lost.append("llama2.c's file holds weights only: the tokenizer and the licence are not in it")
    elif words is None:
        lost.append("no tokenizer lay with the model, so none was written: name its folder or file with --tokenizer")
    if come_from == "gguf" and layout != "gguf" and (packed := packed_type(source)) is not None:
        lost.append(f"the weights were packed in {packed} and are unpacked to float32 now; what the packing lost stays lost")
    if come_from == "meta" and not told and not pedigree.exists(source):
        lost.append(f"Meta's layout does not tell the context; {context:,} tokens are assumed: say it with --context")
    return lost


def _layout(to: str | None, out: Path) -> Layout:
    if to is None:
        return layout_for(out)
    chosen = next((layout for layout in LAYOUTS if layout == to), None)
    if chosen is None:
        raise UserError(f"the layout {to!r} is not known", where="--to", todo=f"layouts: {', '.join(LAYOUTS)}")
    return chosen


def _require_place(source: Path, out: Path, layout: Layout, *, force: bool) -> None:
    """Nothing is written over the model that is read, nor over something of somebody else's."""
    old, new = source.resolve(), out.resolve()
    if new == old or old in new.parents or new in old.parents:
        raise UserError("a model is not converted onto itself", where=out, todo="name another place to write to")
    if layout in ("gguf", "llama2c"):
        if out.exists() and not (force and out.is_file()):
            raise UserError("there is something here already", where=out, todo="name another file, or replace it with --force")
        return
    made = pedigree.exists(out) and pedigree.read(out)["station"] == "convert"
    if out.exists() and not out.is_dir():
        raise UserError("this is a file, and the model becomes a folder", where=out, todo="name a folder")
    if out.is_dir() and any(out.iterdir()) and not made:
        raise UserError("this folder is not empty, and `herdbook convert` did not make it", where=out, todo="name a new folder")


def _note_source(record: pedigree.Record, source: Path, license_: License) -> None:
    """Where the model came from, and its licence: stated, or inherited part by part."""
    record.add_input(source, "model", license_id=license_.id)
    if source.is_dir() and pedigree.exists(source):
        record.inherit_licenses(source)
    record.add_license(license_.id)
