"""Compiling once, whole or not at all, whatever the compiler and however many ask at once."""

from __future__ import annotations

import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from herdbook.infer.native import available, build, describe
from herdbook.infer.native.binding import VARIABLE, Kernels

# Writes what it was asked for into the file after -o, and a line into a log for each file it makes.
COMPILER = """#!/bin/sh
case "$*" in *--version*) echo "pretend 1.0"; exit 0;; esac
{refuse}
for word in "$@"; do [ "$previous" = "-o" ] && out="$word"; previous="$word"; done
sleep 0.05
echo "$*" >> {log}
echo "$*" > "$out"
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that only pretends, and a cache of its own; the log of what it was asked for."""
    log = tmp_path / "log"
    pretend(tmp_path, monkeypatch)
    monkeypatch.setenv("HERDBOOK_CACHE", str(tmp_path / "cache"))
    return log


def pretend(folder: Path, monkeypatch: pytest.MonkeyPatch, refuse: str = "") -> None:
    script = folder / "compiler"
    script.write_text(COMPILER.format(log=folder / "log", refuse=refuse))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))


def built(_: int) -> str:
    return str(build.library()[0])


def test_many_processes_compile_once(log: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        paths = pool.map(built, range(4), chunksize=1)
    assert len(set(paths)) == 1
    assert Path(paths[0]).is_file()
    assert len(log.read_text().splitlines()) == len(build.paths_here()) + 3  # entry, pool, link
    assert [file.name for file in Path(paths[0]).parent.iterdir() if file.name.startswith(".")] == []


def test_the_library_is_kept_and_follows_the_sources(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, lines = build.library()[0], log.read_text()
    assert build.library()[0] == first
    assert log.read_text() == lines
    monkeypatch.setattr(build, "COMMON", (*build.COMMON, "-DOTHER"))
    assert build.library()[0] != first


def test_a_set_the_compiler_does_not_know_is_left_out(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "paths_here", lambda: build.PATHS)
    pretend(tmp_path, monkeypatch, refuse='case "$*" in *-mavx512bf16*) exit 1;; esac')
    path, _ = build.library()
    assert path is not None
    entry = next(line for line in log.read_text().splitlines() if "entry.cpp" in line)
    assert "-DHB_WITH_AVX512" in entry.split()
    assert "-DHB_WITH_AVX512BF16" not in entry
    assert "avx512bf16.o" not in path.read_text()


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path, monkeypatch, refuse='echo "no such header" >&2; exit 1')
    path, why = build.library()
    assert path is None
    assert "no such header" in why
    assert [file.suffix for file in build.cache_folder().iterdir()] == [".lock"]


def test_no_compiler_is_said_plainly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    path, why = build.library()
    assert path is None
    assert "no C++ compiler" in why


def test_what_runs_is_told(native: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available()[0]
    assert describe()["path"] == next(iter(native.paths))
    monkeypatch.setenv(VARIABLE, "plain")
    assert describe()["path"] == "plain"
    monkeypatch.setenv(VARIABLE, "none")
    assert available() == (False, f"switched off by {VARIABLE}")


def test_sources_are_in_the_package() -> None:
    names = {file.name for file in build.SOURCE.iterdir()}
    assert {"step.cpp", "entry.cpp", "pool.cpp"} <= names
    assert all(file.stat().st_size for file in build.SOURCE.iterdir())
    assert os.access(build.SOURCE, os.R_OK)
