"""What the verbs that make a model of a model have in common: its licence, the place it goes to, its pedigree."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herdbook import pedigree
from herdbook.console import Terminal, emit
from herdbook.errors import UserError, user_errors
from herdbook.facts.licenses import License, find_expression
from herdbook.facts.models import published_license
from herdbook.files import atomic_folder
from herdbook.interop.doors import Layout, save_decoder
from herdbook.interop.licenses import license_of, named_bases, require_commercial, stated_license, with_ancestors
from herdbook.model.decoder import Decoder
from herdbook.tokenizer import Tokenizer
from herdbook.units import human_bytes


@dataclass(frozen=True)
class Remake:
    """A model made of another one.

    Attributes:
        verb: what makes it: the station of its pedigree.
        source: what it is made of, in `come_from`.
        out: where it goes, in `layout`.
        license: that it keeps.
        words: the tokenizer that goes with it.
        strangers: the models it says it was made of that are not in the catalogue.
    """

    verb: str
    source: Path
    come_from: Layout
    out: Path
    layout: Layout
    license: License
    words: Tokenizer | None
    strangers: tuple[str, ...]

    def write(
        self, model: Decoder, *, kind: str | None, config: Mapping[str, Any], card: str, counts: Mapping[str, Any],
        also_read: Path | None = None,
    ) -> None:  # fmt: skip
        """Write the model with its pedigree.

        Args:
            kind: of dense weights, as for `save_decoder`.
            config, counts: for the pedigree.
            card: Markdown for a folder's README.md.
            also_read: text that was looked at on the way.
        """
        options: dict[str, Any] = {"kind": kind, "tokenizer": self.words, "license_id": self.license.id}
        options["name"] = self.source.stem
        if self.layout not in ("hf", "meta"):
            save_decoder(model, self.out, self.layout, **options, origin={**config, **counts, **self._origin()})
            return
        with atomic_folder(self.out) as aside, pedigree.record(aside, self.verb, dict(config)) as record:
            record.add_input(self.source, "model", license_id=self.license.id)
            if also_read is not None:
                record.add_input(also_read, "text")
            if self.source.is_dir() and pedigree.exists(self.source):
                record.inherit_licenses(self.source)
            record.add_license(self.license.id)
            save_decoder(model, aside, self.layout, **options, card=card, bases=named_bases(self.source))
            record.counts.update(parameters=model.cfg.parameters(), context=model.cfg.context, **counts)

    def _origin(self) -> dict[str, Any]:
        """What a single file carries of its pedigree: the source by hash, and what that was made from."""
        facts: dict[str, Any] = {"source": self.source.name, "layout": self.come_from, "license": self.license.id}
        sha256 = pedigree.fingerprint(self.source, "model", self.source.parent).sha256
        facts |= {"sha256": sha256, "code": pedigree.code_version()}
        if self.source.is_dir() and pedigree.exists(self.source):
            facts["made_from"] = pedigree.describe(pedigree.tree(self.source))
        return facts

    def report(self, model: Decoder, terminal: Terminal, **facts: Any) -> None:
        """Say what was made, and how large it is."""
        for base in self.strangers:
            terminal.warn(f"the card says that it was made of {base}, whose licence is not known here: look it up")
        files = [self.out] if self.out.is_file() else self.out.rglob("*")
        size, parameters = sum(file.stat().st_size for file in files if file.is_file()), model.cfg.parameters()
        if terminal.as_json:
            made = {"model": str(self.out), "layout": self.layout, "bytes": size, "parameters": parameters}
            emit({**made, "license": self.license.id, **facts})
            return
        terminal.say(f"{self.out}: {parameters:,} parameters, {human_bytes(size)}")
        terminal.say(self.license.in_words())


def begin(
    verb: str, source: Path, come_from: Layout, out: Path, layout: Layout, *, license_id: str | None, words: Tokenizer | None,
    commercial: bool, force: bool,
) -> Remake:  # fmt: skip
    """Look whether a model may be made of another one and put there. Raises UserError when not, before any work."""
    require_place(source, out, layout, verb, force=force)
    license_ = _license(source, license_id)
    strangers = tuple(base for base in named_bases(source) if published_license(base) is None)
    if commercial:
        require_commercial(license_, source)
        _refuse_strangers(strangers, source, verb)
    return Remake(verb, source, come_from, out, layout, license_, words, strangers)


@contextmanager
def warnings_said(terminal: Terminal) -> Iterator[None]:
    """Have the terminal say, once each, what the doors warn of, and explain errors of the disk."""
    with user_errors(), warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always", UserWarning)
        yield
    for message in dict.fromkeys(str(warning.message) for warning in raised if warning.category is UserWarning):
        terminal.warn(message)


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


def _refuse_strangers(bases: tuple[str, ...], source: Path, verb: str) -> None:
    """With `--commercial`: what was made of a model we know nothing of may be bound by terms we know nothing of."""
    if bases:
        raise UserError(
            f"--commercial: the card says that it was made of {bases[0]}, whose licence is not known here", where=source,
            todo=f"look that licence up; if it allows commercial use, {verb} without --commercial",
        )  # fmt: skip


def require_place(source: Path, out: Path, layout: Layout, verb: str, *, force: bool) -> None:
    """Nothing is written over the model that is read, nor over something of somebody else's."""
    old, new = source.resolve(), out.resolve()
    if new == old or old in new.parents or new in old.parents:
        raise UserError("a model is not written onto itself", where=out, todo="name another place to write to")
    if layout in ("gguf", "llama2c"):
        if out.exists() and not (force and out.is_file()):
            raise UserError("there is something here already", where=out, todo="name another file, or replace it with --force")
        return
    made = pedigree.exists(out) and pedigree.read(out)["station"] == verb
    if out.exists() and not out.is_dir():
        raise UserError("this is a file, and the model becomes a folder", where=out, todo="name a folder")
    if out.is_dir() and any(out.iterdir()) and not made:
        raise UserError(f"this folder is not empty, and `herdbook {verb}` did not make it", where=out, todo="name a new folder")
