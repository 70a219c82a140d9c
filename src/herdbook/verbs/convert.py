"""`herdbook convert`: a model from one layout to another, with its licence and its pedigree."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from herdbook import pedigree
from herdbook.console import Terminal, emit
from herdbook.errors import UserError, user_errors
from herdbook.facts.licenses import License, find_expression
from herdbook.interop.doors import (
    LAYOUTS,
    TYPES,
    Layout,
    find_tokenizer,
    layout_for,
    layout_of,
    load_decoder,
    save_decoder,
    type_of,
)
from herdbook.interop.licenses import license_of, require_commercial
from herdbook.units import human_bytes


def convert(
    source: Path,
    out: Path,
    *,
    to: str | None,
    kind: str | None,
    license_id: str | None,
    tokenizer: Path | None,
    commercial: bool,
    allow_pickle: bool,
    terminal: Terminal,
) -> None:
    """Read the model at `source`, write it to `out`; the layout is `to`, or what the name of `out` says."""
    layout = _layout(to, out)
    kind = kind.upper() if kind else None
    _require_place(source, out)
    license_ = license_of(source) if license_id is None else find_expression(license_id)
    if commercial:
        require_commercial(license_, source)
    with user_errors(), warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always", UserWarning)
        terminal.step("convert", f"{source} → {out}")
        dtype = TYPES[kind] if kind in TYPES else type_of(source, allow_pickle=allow_pickle)
        model = load_decoder(source, dtype=dtype, allow_pickle=allow_pickle)
        words = find_tokenizer(tokenizer or source)
        facts: dict[str, Any] = {"source": source.name, "layout": layout_of(source), "license": license_.id}
        options: dict[str, Any] = {"kind": kind, "tokenizer": words, "license_id": license_.id, "name": source.stem}
        config = {"to": layout, "type": kind, "license": license_id}
        if layout in ("hf", "meta"):
            with _new_folder(out), pedigree.record(out, "convert", config) as record:
                _note_source(record, source, license_)
                save_decoder(model, out, layout, **options, card=f"# {source.stem}\n\nConverted with herdbook.")
                record.counts["parameters"] = model.cfg.parameters()
        else:
            facts |= {"sha256": pedigree.fingerprint(source, "model", out.parent).sha256, "code": pedigree.code_version()}
            save_decoder(model, out, layout, **options, pedigree=facts)
    for message in dict.fromkeys(str(warning.message) for warning in raised if warning.category is UserWarning):
        terminal.warn(message)
    size = sum(file.stat().st_size for file in ([out] if out.is_file() else out.rglob("*")) if file.is_file())
    if terminal.as_json:
        emit({"model": str(out), "layout": layout, "bytes": size, "parameters": model.cfg.parameters(), "license": license_.id})
        return
    terminal.say(f"{out}: {model.cfg.parameters():,} parameters, {human_bytes(size)}")
    terminal.say(license_.in_words())
    if words is None and layout != "llama2c":
        terminal.warn("no tokenizer lay with the model, so none was written: name its folder or file with --tokenizer")


def _layout(to: str | None, out: Path) -> Layout:
    if to is None:
        return layout_for(out)
    chosen = next((layout for layout in LAYOUTS if layout == to), None)
    if chosen is None:
        raise UserError(f"the layout {to!r} is not known", where="--to", todo=f"layouts: {', '.join(LAYOUTS)}")
    return chosen


def _require_place(source: Path, out: Path) -> None:
    """Nothing is written over the model that is read, nor into a folder of somebody else's."""
    if out.resolve() == source.resolve() or source.resolve() in out.resolve().parents:
        raise UserError("a model is not converted onto itself", where=out, todo="name another place to write to")
    made = pedigree.exists(out) and pedigree.read(out)["station"] == "convert"
    if out.is_dir() and any(out.iterdir()) and not made:
        raise UserError("this folder is not empty, and `herdbook convert` did not make it", where=out, todo="name a new folder")


@contextmanager
def _new_folder(out: Path) -> Iterator[None]:
    """No empty folder is left where a model could not be written."""
    try:
        yield
    except BaseException:
        if out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        raise


def _note_source(record: pedigree.Record, source: Path, license_: License) -> None:
    """Where the model came from, and its licence: stated, or inherited part by part."""
    record.add_input(source, "model", license_id=license_.id)
    if source.is_dir() and pedigree.exists(source) and record.config["license"] is None:
        record.inherit_licenses(source)
    else:
        record.add_license(license_.id)
