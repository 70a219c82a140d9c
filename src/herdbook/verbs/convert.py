"""`herdbook convert`: a model from one layout to another, with its licence and its pedigree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from herdbook import pedigree
from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.interop.doors import (
    LAYOUTS,
    Layout,
    check_type,
    find_tokenizer,
    layout_for,
    layout_of,
    load_decoder,
    packed_type,
    type_of,
)
from herdbook.interop.packed import is_packed
from herdbook.interop.tokenizers import load_tokenizer
from herdbook.verbs.remake import begin, warnings_said
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
    words = load_tokenizer(tokenizer) if tokenizer is not None else find_tokenizer(source)
    remake = begin(
        "convert", source, come_from, out, layout, license_id=license_id, words=words, commercial=commercial, force=force
    )
    with warnings_said(terminal):
        terminal.step("convert", f"{source} → {out}")
        # A quantised folder becomes a GGUF file bit for bit; else matrices are written out, and packed again where they were.
        kept = layout == "gguf" and kind is None and is_packed(source)
        kind = kind or (packed_type(source) if layout == "gguf" else None)
        dtype = type_of(source, allow_pickle=allow_pickle)
        model = load_decoder(source, dtype=dtype, allow_pickle=allow_pickle, context=context, packed=kept)
        config = {"to": layout, "type": kind, "license": license_id, "context": context}
        remake.write(model, kind=kind, config=config, card=f"# {source.stem}\n\nConverted with herdbook.", counts={})
    for message in _lost(source, come_from, layout, words, model.cfg.context, told=context is not None):
        terminal.warn(message)
    remake.report(model, terminal)


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
