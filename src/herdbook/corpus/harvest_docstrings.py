"""Docstrings of installed packages, one document a public module, class or function, without importing what has source.

Python files are parsed, so nothing of theirs is run. What is written in C has no source to parse: builtins of the standard
library, numpy and torch are asked for their docstrings in a process of their own. A document reads

    pkg.mod.func(a, b=1)            or `class pkg.mod.Cls(a)`, `module pkg.mod`, `topic NAME`

    the cleaned docstring
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any

import zstandard

from herdbook.console import Terminal
from herdbook.corpus.builtin import PACKAGES
from herdbook.corpus.harvest_pydoc import child_environment
from herdbook.files import atomic_path
from herdbook.pool import Pool

Document = dict[str, str]

MIN_CHARS = 20  # shorter docstrings ("See above.") say nothing
_LONG_DEFAULT = 40
_NOT_PUBLIC = frozenset(
    {"test", "tests", "testing", "idlelib", "lib2to3", "turtledemo", "ensurepip", "site-packages", "dist-packages", "vendor",
     "vendored", "third_party", "antigravity.py", "this.py", "turtle.py", "__main__.py", "conftest.py", "setup.py"}
)  # fmt: skip
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_CALL = re.compile(r"^([A-Za-z_][\w.]*)\((.{0,400}?)\)(\s*(->|--).*)?$")
FILES_A_TASK = 40


def harvest_docstrings(path: Path, terminal: Terminal, workers: int) -> None:
    """Write all documents to `path` as jsonl.zst, whole or not at all; the same bytes for any number of workers."""
    tasks = list(_tasks())
    seen: set[str] = set()
    with (
        atomic_path(path) as aside,
        terminal.progress("reading docstrings", len(tasks)) as progress,
        zstandard.open(aside, "wt", cctx=zstandard.ZstdCompressor(level=6), encoding="utf-8", errors="replace") as lines,
    ):
        for documents in Pool(_Harvester, (), workers, lambda task, ask: ask(task)).map(tasks):
            progress.advance()
            for document in documents:
                if document["id"] not in seen:
                    seen.add(document["id"])
                    lines.write(json.dumps(document, ensure_ascii=False) + "\n")


def _tasks() -> Iterator[tuple[str, list[tuple[str, str]], str]]:
    """(kind, what, licence): builtins first, since they take longest; then files of each package in order."""
    for distribution, package, license_id in PACKAGES:
        if package in ("numpy", "torch") and _installed(distribution):
            yield "builtins", [(package, "")], license_id
    yield "builtins", [("", "")], "PSF-2.0"
    yield "topics", [("", "")], "PSF-2.0"
    roots = [("", Path(sysconfig.get_paths()["stdlib"]), "PSF-2.0")]
    for distribution, package, license_id in PACKAGES:
        spec = util.find_spec(package) if _installed(distribution) else None
        for folder in (spec.submodule_search_locations or [])[:1] if spec else []:
            roots += [(package, Path(folder), license_id)]
    for package, root, license_id in roots:
        files = [(str(file), module) for file, module in python_files(root, package)]
        for start in range(0, len(files), FILES_A_TASK):
            yield "files", files[start : start + FILES_A_TASK], license_id


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def python_files(root: Path, package: str) -> Iterator[tuple[Path, str]]:
    """(file, module name) of the public modules below a folder, sorted; private and test folders are left out."""
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).parts
        if any(part in _NOT_PUBLIC or (part.startswith("_") and part != "__init__.py") for part in parts):
            continue
        if not package and parts[0].startswith(("config-", "lib-dynload")):
            continue
        names = [package] if package else []
        names += [*parts[:-1], *([] if parts[-1] == "__init__.py" else [parts[-1].removesuffix(".py")])]
        if names and all(name.isidentifier() for name in names):
            yield file, ".".join(names)


class _Harvester:
    """Works on one task of `_tasks`; one of these lives in each process."""

    def __call__(self, task: tuple[str, list[tuple[str, str]], str]) -> list[Document]:
        kind, what, license_id = task
        if kind == "files":
            return [document for file, module in what for document in from_source(Path(file), module, license_id)]
        if kind == "topics":
            return list(from_topics(license_id))
        return from_builtins(what[0][0], license_id)


def _document(name: str, head: str, doc: str | None, license_id: str) -> Iterator[Document]:
    text = _ADDRESS.sub("", inspect.cleandoc(doc)).strip() if doc else ""
    head = _ADDRESS.sub("", " ".join(head.split()))
    if len(text) >= MIN_CHARS:
        yield {"id": f"docstrings/{name}", "text": f"{head}\n\n{text}", "url": f"pydoc://{name}", "license": license_id}


def from_source(file: Path, module: str, license_id: str) -> list[Document]:
    """The documents of one Python file; none for a file that is not valid Python of this version."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError):
        return []
    documents = list(_document(module, f"module {module}", ast.get_docstring(tree), license_id))
    _walk(tree, module, license_id, documents)
    return documents


def _walk(owner: ast.Module | ast.ClassDef, prefix: str, license_id: str, documents: list[Document]) -> None:
    for node in owner.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            name = f"{prefix}.{node.name}"
            documents += _document(name, f"{name}({arguments(node.args)})", ast.get_docstring(node), license_id)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            name = f"{prefix}.{node.name}"
            documents += _document(name, f"class {name}({_init_arguments(node)})", ast.get_docstring(node), license_id)
            _walk(node, name, license_id, documents)


def _init_arguments(node: ast.ClassDef) -> str:
    """What a class is called with: the arguments of its own `__init__` or `__new__`; `...` when it inherits them."""
    for wanted in ("__init__", "__new__"):
        for child in node.body:
            if isinstance(child, ast.FunctionDef) and child.name == wanted:
                return arguments(child.args, skip_first=True)
    return "..."


def arguments(args: ast.arguments, *, skip_first: bool = False) -> str:
    """The arguments of a function as it is called: names and defaults, without annotations."""
    places = [*args.posonlyargs, *args.args]
    defaults: list[ast.expr | None] = [None] * (len(places) - len(args.defaults)) + list(args.defaults)
    words = [_argument(place, default) for place, default in zip(places, defaults, strict=True)]
    if args.posonlyargs:
        words.insert(len(args.posonlyargs), "/")
    if skip_first:
        words = words[1:]
    if args.vararg:
        words.append(f"*{args.vararg.arg}")
    elif args.kwonlyargs:
        words.append("*")
    words += [_argument(place, default) for place, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    if args.kwarg:
        words.append(f"**{args.kwarg.arg}")
    return ", ".join(words)


def _argument(place: ast.arg, default: ast.expr | None) -> str:
    if default is None:
        return place.arg
    text = ast.unparse(default)
    return f"{place.arg}={text if len(text) <= _LONG_DEFAULT and text.isprintable() else '...'}"


def from_topics(license_id: str) -> Iterator[Document]:
    """Python's language reference, as `help()` shows it."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield from _document(f"pydoc_data.topics.{name}", f"topic {name}", topics[name], license_id)


def from_builtins(package: str, license_id: str) -> list[Document]:
    """What is written in C, of `numpy` or `torch` or (with an empty name) of the standard library, from another process."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from herdbook.corpus.harvest_docstrings import serve; serve()", package],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=child_environment(), check=False,
    )  # fmt: skip
    documents: list[Document] = []
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        name, head, doc = json.loads(line)
        documents += _document(name, head, doc, license_id)
    return documents


def serve() -> None:
    """What that process does: print name, first line and docstring of each object as lines of JSON."""
    import os

    lines = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for row in inspect_package(sys.argv[1]):
        lines.write(json.dumps(row) + "\n")
    lines.flush()
    os._exit(0)


_PLACES: dict[str, list[str]] = {
    "torch": ["torch", "torch.Tensor", "torch.nn.functional", "torch.linalg", "torch.fft", "torch.special", "torch.autograd"],
    "numpy": ["numpy", "numpy.ndarray", "numpy.dtype", "numpy.random", "numpy.random.Generator", "numpy.nditer"],
}


def inspect_package(package: str) -> Iterator[tuple[str, str, str]]:
    """(name, first line, docstring) of the C-implemented public members of a package, by name; each docstring once."""
    import importlib

    if package:
        places = _PLACES[package]
    else:
        files = sysconfig.get_paths()["stdlib"]
        places = sorted(name for name in sys.stdlib_module_names if not name.startswith("_") and _is_native(name, files))
    for place in places:
        try:
            found: Any = importlib.import_module(place)
        except ImportError:
            outer, _, inner = place.rpartition(".")
            found = getattr(importlib.import_module(outer), inner, None) if outer else None
        if found is None:
            continue
        if not package:
            yield place, f"module {place}", found.__doc__ or ""
        yield from _members(found, place, into_classes=not package)


def _is_native(name: str, stdlib: str) -> bool:
    return name in sys.builtin_module_names or any(Path(stdlib, "lib-dynload").glob(f"{name}.*"))


def _members(owner: Any, prefix: str, *, into_classes: bool) -> Iterator[tuple[str, str, str]]:
    for name in sorted(vars(owner)):
        member = vars(owner)[name]
        if name.startswith("_") or hasattr(member, "__code__") or not isinstance(getattr(member, "__doc__", None), str):
            continue
        full = f"{prefix}.{name}"
        if isinstance(member, type):
            if member.__module__ in (prefix, "builtins") and not hasattr(member, "__dataclass_fields__"):
                yield full, f"class {full}({_signature(member, name) or '...'})", _without_call(member.__doc__, name)
                if into_classes:
                    yield from _members(member, full, into_classes=False)
        elif callable(member) and not isinstance(member, type(sys)) and member.__doc__ != type(member).__doc__:
            yield full, f"{full}({_signature(member, name) or '...'})", _without_call(member.__doc__, name)


def _signature(member: Any, name: str) -> str | None:
    """Arguments as Python knows them, or from the first line of the docstring where that is a call of the name."""
    try:
        return str(inspect.signature(member)).rpartition(" -> ")[0][1:-1] or str(inspect.signature(member))[1:-1]
    except (TypeError, ValueError):
        pass
    match = _CALL.match((member.__doc__ or "").strip().split("\n", 1)[0].strip())
    return match[2] if match and match[1].rsplit(".", 1)[-1] == name else None


def _without_call(doc: str | None, name: str) -> str:
    """A docstring without a first line that only repeats the call."""
    first, _, rest = (doc or "").strip().partition("\n")
    match = _CALL.match(first.strip())
    return rest if match and match[1].rsplit(".", 1)[-1] == name and rest.strip() else doc or ""
