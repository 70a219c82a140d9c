"""`herdbook init`: a commented recipe for one's own pages."""

from __future__ import annotations

from pathlib import Path

import yaml

from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.facts.licenses import find_expression
from herdbook.files import write_text
from herdbook.recipe import recipes_folder
from herdbook.verbs.names import ascii_name, names_for

EXAMPLE = [("pages", "crawl/*.warc.gz")]


def write_recipe(path: Path, sources: list[str], license_id: str | None, *, force: bool, terminal: Terminal) -> None:
    """Write the recipe. Raises UserError when one is there already, or a source or the licence does not exist."""
    if path.exists() and not force:
        raise UserError("there is a recipe here already", where=path, todo="choose another name, or --force to replace it")
    if license_id is not None:
        license_id = find_expression(license_id).id
    named = [(name, path) for name, path in names_for(sources).items()] or EXAMPLE
    for _, source in named if sources else []:
        if not any(mark in source for mark in "*?[") and not Path(source).exists():
            raise UserError("there is no such source", where=source, todo="check the path")
    template = (recipes_folder() / "own-pages.yaml").read_text(encoding="utf-8")
    listing = "".join(
        f"    - name: {_quoted(name)}\n      path: {_quoted(source)}\n      license: {license_id or 'LicenseRef-unknown'}\n"
        for name, source in named
    )
    begin, end = template.index("    - name:"), template.index("  # end of sources\n")
    text = template[:begin] + listing + template[end + len("  # end of sources\n") :]
    write_text(path, text.replace("my-run", _quoted(ascii_name(path.name, "run"))))
    terminal.say(f"wrote {path}")
    terminal.say(f"  → look it over, then: herdbook run {path} --dry-run")


def _quoted(text: str) -> str:
    return yaml.safe_dump(text, allow_unicode=True).strip().removesuffix("...").strip()
