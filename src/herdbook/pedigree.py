"""Pedigree: what went in, under which licence, with which settings, by which code; and whether it still is what it was.

Every station leaves `pedigree.json` beside its output. It lists the inputs by path and hash, the resolved config and its
hash, the outputs by hash, counts, licences, wall time, code and machine, and so it is also the mark that the station is done:
`is_current` compares it with what would be run now. Following the inputs leads from a model back to the crawl (`tree`), and
`verify` hashes everything again.
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from herdbook import __version__
from herdbook.errors import UserError
from herdbook.facts.licenses import License, find_license, strictest
from herdbook.files import PARTIAL, read_json, sha256_file, sha256_json, write_json

MANIFEST = "pedigree.json"
SCHEMA = 1
# What a station may leave beside its output that is no part of it: state to resume from and logs of the way there.
NOT_OUTPUT = ("checkpoint-*", "work", ".lock", "latest", "started.json", "README.md", f".*{PARTIAL}", "*.log", MANIFEST)


@dataclass
class Input:
    """Something a station read: a file, a folder of files, or a named thing with no path (a package, a preset)."""

    role: str
    path: str
    sha256: str
    bytes: int
    license: str | None = None
    note: str | None = None
    mtime_ns: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The input as plain JSON, without what is not known."""
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass
class Record:
    """The pedigree of one station while it runs; written to `pedigree.json` when it ends well."""

    folder: Path
    station: str
    config: dict[str, Any]
    inputs: list[Input] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    licenses: dict[str, License] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def add_input(self, path: Path, role: str, *, license_id: str | None = None) -> None:
        """Note a file or folder that was read. A folder that has a pedigree of its own stands by that."""
        self.inputs.append(fingerprint(path, role, self.folder, license_id=license_id))

    def add_thing(self, name: str, role: str, sha256: str, *, license_id: str | None = None, note: str | None = None) -> None:
        """Note an input that is no file of the user's: a package, a built-in source."""
        self.inputs.append(Input(role, name, sha256, 0, license_id, note))

    def add_license(self, license_id: str | None) -> None:
        """Note a licence of something that went in; each part of an expression (`BSD-3-Clause AND PSF-2.0`) by itself."""
        for part in (license_id or "").split(" AND "):
            row = find_license(part.strip() or None)
            self.licenses[row.id] = row

    def inherit_licenses(self, folder: Path) -> None:
        """Take over the licences that the pedigree of an input folder names."""
        for row in read(folder).get("licenses", []):
            self.add_license(row["id"])

    @property
    def license(self) -> License:
        """The strictest of what went in."""
        return strictest(self.licenses.values())


@contextmanager
def record(folder: Path, station: str, config: dict[str, Any]) -> Iterator[Record]:
    """Keep the pedigree of a station whose output is `folder`; written only when the block ends well."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    entry = Record(folder, station, config)
    started, began = time.monotonic(), datetime.now(UTC)
    yield entry
    manifest = {
        "schema": SCHEMA,
        "station": station,
        "began": began.isoformat(timespec="seconds"),
        "wall_s": round(time.monotonic() - started, 2),
        "code": code_version(),
        "machine": machine(),
        "config": config,
        "config_sha256": sha256_json(config),
        "inputs": [item.as_dict() for item in entry.inputs],
        "outputs": [_output(path, folder) for path in output_files(folder)],
        "counts": entry.counts,
        "licenses": [row.as_dict() for row in entry.licenses.values()],
        "license": entry.license.as_dict(),
        **entry.notes,
    }
    write_json(folder / MANIFEST, manifest)


def amend(folder: Path, config: dict[str, Any], written: Iterable[Path]) -> None:
    """Note in the pedigree of a finished station another config and the outputs that were written anew for it."""
    manifest = read(folder)
    outputs = {row["path"]: row for row in manifest["outputs"]}
    outputs |= {row["path"]: row for row in (_output(path, folder) for path in written)}
    changed = {"config": config, "config_sha256": sha256_json(config), "outputs": list(outputs.values())}
    write_json(folder / MANIFEST, manifest | changed)


def read(folder: Path) -> dict[str, Any]:
    """The pedigree of a station's folder. Raises UserError when there is none or it is broken."""
    manifest = read_json(folder / MANIFEST, what="pedigree", todo="only folders that herdbook finished writing have one")
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA or not _in_order(manifest):
        raise UserError("this pedigree has another form than this version of herdbook writes", where=folder / MANIFEST)
    return manifest


def _in_order(manifest: dict[str, Any]) -> bool:
    """Whether a manifest, which may come from anywhere, has what is asked of it by name."""
    lists = {"inputs": ("path", "sha256", "bytes", "role"), "outputs": ("path", "sha256", "bytes"), "licenses": ("id",)}
    for key, fields in lists.items():
        rows = manifest.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, dict) and all(name in row for name in fields) for row in rows):
            return False
        if not all(isinstance(row.get("path", ""), str) and isinstance(row.get("id", ""), str) for row in rows):
            return False
    license_ = manifest.get("license")
    texts = all(isinstance(manifest.get(name), str) for name in ("station", "began", "config_sha256"))
    whole = isinstance(manifest.get("counts"), dict) and isinstance(manifest.get("config"), dict) and "wall_s" in manifest
    return texts and whole and isinstance(license_, dict) and isinstance(license_.get("id"), str)


def exists(folder: Path) -> bool:
    """Whether the station whose output is `folder` ended well."""
    return (folder / MANIFEST).is_file()


def output_files(folder: Path) -> list[Path]:
    """The files that are a station's output, sorted: everything but checkpoints, logs and what is half-written."""

    def is_output(path: Path) -> bool:
        parts = path.relative_to(folder).parts
        return not any(Path(part).match(pattern) for part in parts for pattern in NOT_OUTPUT)

    return sorted(path for path in folder.rglob("*") if path.is_file() and is_output(path))


def _output(path: Path, folder: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"path": path.relative_to(folder).as_posix(), "sha256": sha256_file(path), "bytes": stat.st_size,
            "mtime_ns": stat.st_mtime_ns}  # fmt: skip


def fingerprint(path: Path, role: str, relative_to: Path, *, license_id: str | None = None) -> Input:
    """The hash of a file or folder, with its path relative to `relative_to` where that does not climb too far.

    A station's folder is hashed by the hashes in its pedigree, so nothing large is read twice.
    """
    if not path.exists():
        raise UserError("there is no such file or folder", where=path, todo="check the path")
    shown = _relative(path, relative_to)
    if path.is_dir():
        if exists(path):
            outputs = read(path)["outputs"]
            digest = sha256_json({row["path"]: row["sha256"] for row in outputs})
            return Input(role, shown, digest, sum(row["bytes"] for row in outputs), license_id)
        files = output_files(path)
        digest = sha256_json({file.relative_to(path).as_posix(): sha256_file(file) for file in files})
        return Input(role, shown, digest, sum(file.stat().st_size for file in files), license_id)
    stat = path.stat()
    return Input(role, shown, sha256_file(path), stat.st_size, license_id, mtime_ns=stat.st_mtime_ns)


def _relative(path: Path, start: Path) -> str:
    relative = os.path.relpath(path.resolve(), start.resolve())
    return Path(relative).as_posix() if relative.count("..") <= 2 else path.resolve().as_posix()


def is_current(
    folder: Path, config: dict[str, Any], inputs: Iterable[tuple[Path, str]], *, besides: Iterable[str] = ()
) -> bool:
    """Whether `folder` already holds what this config makes from these inputs, with its outputs (but `besides`) in place."""
    if not exists(folder):
        return False
    manifest = read(folder)
    if manifest["config_sha256"] != sha256_json(config):
        return False
    for row in manifest["outputs"]:
        path = folder / row["path"]
        if row["path"] not in besides and (not path.is_file() or path.stat().st_size != row["bytes"]):
            return False
    recorded = {item["path"]: item for item in manifest["inputs"]}
    asked = list(inputs)
    # What was read then and is not asked for now counts as a change too; things without a path are not on disk to compare.
    on_disk = {path for path, item in recorded.items() if item["bytes"] or "mtime_ns" in item}
    if on_disk - {_relative(path, folder) for path, _ in asked}:
        return False
    return all(_unchanged(path, role, folder, recorded) for path, role in asked)


def _unchanged(path: Path, role: str, folder: Path, recorded: dict[str, dict[str, Any]]) -> bool:
    known = recorded.get(_relative(path, folder))
    if known is None or not path.exists():
        return False
    if path.is_file():
        stat = path.stat()
        if stat.st_size == known["bytes"] and stat.st_mtime_ns == known.get("mtime_ns"):
            return True
    return fingerprint(path, role, folder).sha256 == str(known["sha256"])


@dataclass
class Node:
    """A place in the tree that `tree` returns: a station with its inputs below it, or a leaf."""

    title: str
    path: Path | None
    manifest: dict[str, Any] | None
    item: dict[str, Any] | None = None
    children: list[Node] = field(default_factory=list)


def tree(folder: Path, _item: dict[str, Any] | None = None, _above: tuple[Path, ...] = ()) -> Node:
    """The chain of stations behind `folder`, back to files and packages that no station of ours made.

    A folder that was made anew from what had been made of it is followed once.
    """
    manifest = read(folder)
    node = Node(manifest["station"], folder, manifest, _item)
    above = (*_above, folder.resolve())
    for item in manifest["inputs"]:
        path = (folder / item["path"]).resolve()
        if path.is_dir() and exists(path) and path not in above:
            node.children.append(tree(path, item, above))
        else:
            node.children.append(Node(item["path"], path if path.exists() else None, None, item))
    return node


def describe(node: Node) -> dict[str, Any]:
    """A tree as plain JSON, without the folders of this machine."""
    if node.manifest is None:
        return dict(node.item or {})
    keys = ("station", "began", "wall_s", "code", "config_sha256", "counts", "license")
    return {**{key: node.manifest.get(key) for key in keys}, "inputs": [describe(child) for child in node.children]}


def verify(node: Node) -> list[str]:
    """Hash every output and input in the tree again; a list of what differs or is missing, empty when all is as recorded."""
    problems: list[str] = []
    for below in _walk(node):
        if below.manifest is not None and below.path is not None:
            problems += _verify_outputs(below.path, below.manifest)
        item = below.item
        if item is None:
            continue
        if below.path is None:
            if item["bytes"]:
                problems.append(f"{item['path']}: missing")
        elif fingerprint(below.path, item["role"], below.path.parent).sha256 != item["sha256"]:
            problems.append(f"{item['path']}: has changed since it was read")
    return list(dict.fromkeys(problems))


def _verify_outputs(folder: Path, manifest: dict[str, Any]) -> list[str]:
    problems = []
    for row in manifest["outputs"]:
        path = folder / row["path"]
        if not path.is_file():
            problems.append(f"{path}: missing")
        elif path.stat().st_size != row["bytes"] or sha256_file(path) != row["sha256"]:
            problems.append(f"{path}: has changed since it was written")
    known = {row["path"] for row in manifest["outputs"]}
    extra = [path for path in output_files(folder) if path.relative_to(folder).as_posix() not in known]
    return problems + [f"{path}: was not there when the station ended" for path in extra]


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from _walk(child)


def count_files(node: Node) -> int:
    """How many files `verify` hashes for this tree."""
    stations = {below.path: below.manifest for below in _walk(node) if below.manifest is not None}
    leaves = {below.path for below in _walk(node) if below.manifest is None and below.path is not None}
    return sum(len(manifest["outputs"]) for manifest in stations.values()) + len(leaves)


@cache
def code_version() -> dict[str, Any]:
    """The version of herdbook, and its commit when it runs from a checkout."""
    root = Path(__file__).resolve().parents[2]
    version: dict[str, Any] = {"herdbook": __version__, "python": platform.python_version()}
    if (root / ".git").exists():

        def git(*words: str) -> str:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=False)
            return done.stdout.strip() if done.returncode == 0 else ""

        try:
            version["commit"] = git("rev-parse", "HEAD") or None
            version["dirty"] = bool(git("status", "--porcelain", "--untracked-files=no"))
        except (OSError, subprocess.SubprocessError):
            version["commit"] = None
    return version


@cache
def machine() -> dict[str, Any]:
    """What this machine is: processor, cores we may use, memory, system; nothing that names its owner."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {"cpu": cpu, "cores": cores(), "memory_bytes": memory, "system": f"{platform.system()} {platform.machine()}"}


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
