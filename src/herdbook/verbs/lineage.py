"""`herdbook pedigree`: the chain from a model back to the crawl, and whether it still holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.tree import Tree

from herdbook import pedigree
from herdbook.console import Terminal, emit
from herdbook.errors import UserError
from herdbook.facts.licenses import License
from herdbook.units import human_bytes, human_seconds


def show(path: Path, terminal: Terminal, *, verify: bool) -> None:
    """Draw the tree behind `path`; with `verify`, hash everything again and fail when something differs."""
    if path.suffix == ".gguf" and path.is_file():
        if verify:
            raise UserError(
                "a single file has nothing to be checked against", where=path, todo="verify the folder it was made of"
            )
        _show_gguf(path, terminal)
        return
    roots = [pedigree.tree(folder) for folder in _folders(path)]
    problems = [problem for root in roots for problem in pedigree.verify(root)] if verify else []
    problems = list(dict.fromkeys(problems))
    files = max((pedigree.count_files(root) for root in roots), default=0)
    if terminal.as_json:
        facts: dict[str, Any] = {"pedigree": [_facts(root) for root in roots]}
        emit(facts | ({"verified": not problems, "files": files, "problems": problems} if verify else {}))
    else:
        drawn: set[Path] = set()
        for root in roots:
            terminal.console.print(_draw(root, None, drawn))
        if verify and not problems:
            terminal.say(f"verified: {files} files are what they were when they were written", style="green")
    if problems:
        listing = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(
            f"the pedigree does not hold:\n{listing}", where=path, todo="make the changed stations anew with --from"
        )


def _show_gguf(path: Path, terminal: Terminal) -> None:
    """A GGUF file carries its origin in its header."""
    from herdbook.interop.gguf.container import open_gguf
    from herdbook.interop.gguf.model import PEDIGREE
    from herdbook.interop.licenses import license_of

    stored = open_gguf(path).metadata.get(PEDIGREE)
    try:
        origin = json.loads(stored) if isinstance(stored, str) else None
    except ValueError:
        origin = None
    if not isinstance(origin, dict):
        raise UserError("there is no pedigree here", where=path, todo="only GGUF files that herdbook wrote have one")
    license_ = license_of(path)
    if terminal.as_json:
        emit({"file": str(path), "license": license_.as_dict(), "made_from": origin})
        return
    tree = Tree(f"[bold]gguf[/bold]  [dim]{escape(path.name)}[/dim]\n[italic]{escape(license_.in_words())}[/italic]")
    tree.add(f"{escape(str(origin.get('source')))}  [dim]{escape(str(origin.get('sha256', ''))[:12])}[/dim]")
    terminal.console.print(tree)


def _folders(path: Path) -> list[Path]:
    """The folder itself, or for a run the last stations that nothing else was made from."""
    if pedigree.exists(path):
        return [path]
    if path.is_file() and pedigree.exists(path.parent):
        return [path.parent]
    stations = [child for child in sorted(path.iterdir()) if pedigree.exists(child)] if path.is_dir() else []
    if not stations:
        raise UserError("there is no pedigree here", where=path, todo="give a run's folder, a station's or a model's")
    used = {(child / item["path"]).resolve() for child in stations for item in pedigree.read(child)["inputs"]}
    return [child for child in stations if child.resolve() not in used]


def _draw(node: pedigree.Node, parent: Tree | None, drawn: set[Path]) -> Tree:
    """The tree below a node; what several stations read is drawn in full once."""
    place = node.path.resolve() if node.manifest is not None and node.path is not None else None
    if node.manifest is not None and place in drawn:
        text = f"[bold]{node.manifest['station']}[/bold]  [dim]config {node.manifest['config_sha256'][:12]}, drawn above[/dim]"
    else:
        text = _leaf(node) if node.manifest is None else _station(node.manifest)
    branch = Tree(text, guide_style="dim") if parent is None else parent.add(text)
    if place not in drawn:
        for child in node.children:
            _draw(child, branch, drawn)
    if place is not None:
        drawn.add(place)
    return branch


def _leaf(node: pedigree.Node) -> str:
    item = node.item or {}
    size = f", {human_bytes(item['bytes'])}" if item.get("bytes") else ""
    license_id = f"  {escape(item['license'])}" if item.get("license") else ""
    return f"{escape(node.title)}  [dim]{item.get('role', '')} {item.get('sha256', '')[:12]}{size}[/dim]{license_id}"


def _station(manifest: dict[str, Any]) -> str:
    counts = ", ".join(f"{key} {_number(value)}" for key, value in manifest["counts"].items() if isinstance(value, int | float))
    head = f"[bold]{manifest['station']}[/bold]  [dim]config {manifest['config_sha256'][:12]}, "
    head += f"{human_seconds(manifest['wall_s'])}, {manifest['began']}[/dim]"
    license_words = escape(License(**manifest["license"]).in_words())
    return f"{head}\n{escape(counts)}\n[italic]{license_words}[/italic]"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _facts(node: pedigree.Node) -> dict[str, Any]:
    """The tree as plain JSON, with its folders."""
    if node.manifest is None:
        return pedigree.describe(node)
    return {"folder": str(node.path), **pedigree.describe(node), "inputs": [_facts(child) for child in node.children]}
