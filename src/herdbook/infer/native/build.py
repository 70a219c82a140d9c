"""Compiles the C++ kernels once and keeps the library: one file in the user's cache, named by a hash of all that made it.

The sources need no header but the compiler's own, so that this takes seconds. `step.cpp` is compiled once for each instruction
set, with that set's flags, and all of them are linked into one library, which chooses when it runs: it may be shared by
machines with different processors, and never executes what a processor has not.

`HERDBOOK_CACHE` says where the cache is (default: `herdbook` in the user's cache folder), `CXX` which compiler to use.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from herdbook.files import atomic_path, lock

SOURCE = Path(__file__).parent / "source"
COMPILERS = ("g++", "clang++", "c++")
COMMON = ("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-ffp-contract=fast", "-pthread", "-w")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni")
# Flags of each instruction set there is a path for; `plain` is what the compiler assumes by itself.
PATHS: dict[str, tuple[str, ...]] = {"plain": (), "avx2": _AVX2, "avx512": _AVX512, "avx512bf16": (*_AVX512, "-mavx512bf16")}
SECONDS = 300  # no compilation of ours takes this long


def find_compiler() -> str | None:
    """The C++ compiler: `$CXX` if that is one, else the first of `COMPILERS` there is."""
    names = [*([os.environ["CXX"]] if os.environ.get("CXX") else []), *COMPILERS]
    return next((found for name in names if (found := shutil.which(name))), None)


def cache_folder() -> Path:
    """Where libraries are kept."""
    chosen = os.environ.get("HERDBOOK_CACHE")
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "herdbook"
    return base / "kernels"


def paths_here() -> dict[str, tuple[str, ...]]:
    """The instruction sets this kind of machine may have."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return PATHS if x86 else {"plain": ()}


def library() -> tuple[Path | None, str]:
    """The compiled library, made if it is not there yet, or None and why there is none."""
    if os.name != "posix":
        return None, "the kernels are for Linux and macOS"
    compiler = find_compiler()
    if compiler is None:
        return None, f"no C++ compiler: set CXX, or install one of {', '.join(COMPILERS)}"
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=SECONDS).stdout
        path = cache_folder() / f"kernels-{_hash(version)}.so"
        if not path.exists():
            # Whoever comes second waits for the first; what is there then is whole, because it was renamed into place.
            with lock(path.with_suffix(".lock"), wait=True):
                if not path.exists():
                    _compile(compiler, path)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return None, f"{compiler} failed: {said.strip()[:500]}"
    return path, f"compiled by {version.splitlines()[0] if version else compiler}"


def _hash(version: str) -> str:
    state = hashlib.sha256(repr((version, COMMON, paths_here())).encode())
    for file in sorted(SOURCE.iterdir()):
        state.update(file.name.encode() + b"\0" + file.read_bytes())
    return state.hexdigest()[:20]


def _compile(compiler: str, path: Path) -> None:
    """All parts side by side, then one library. A set whose flags the compiler does not know is left out; `plain` must work."""
    with atomic_path(path) as aside:
        parts = aside.parent / f"{aside.name}.parts"
        parts.mkdir(exist_ok=True)
        try:
            work = {
                name: [f"-DHB_STEP=hb_step_{name}", f"-DHB_PRODUCT=hb_product_{name}", *flags, str(SOURCE / "step.cpp")]
                for name, flags in paths_here().items()
            }
            known = _compile_parts(compiler, parts, work)
            with_paths = [f"-DHB_WITH_{name.upper()}" for name in known if name != "plain"]
            _run([compiler, *COMMON, *with_paths, "-c", str(SOURCE / "entry.cpp"), "-o", str(parts / "entry.o")])
            _run([compiler, *COMMON, "-c", str(SOURCE / "pool.cpp"), "-o", str(parts / "pool.o")])
            objects = [str(parts / f"{name}.o") for name in (*known, "entry", "pool")]
            _run([compiler, "-shared", "-pthread", *objects, "-o", str(aside)])
        finally:
            shutil.rmtree(parts, ignore_errors=True)


def _compile_parts(compiler: str, folder: Path, work: dict[str, list[str]]) -> list[str]:
    """Compile each part, two at a time; the names of those that went well. Raises where `plain` is not among them."""
    known = []
    names = list(work)
    for pair in (names[i : i + 2] for i in range(0, len(names), 2)):
        running = {
            name: subprocess.Popen(
                [compiler, *COMMON, "-c", *work[name], "-o", str(folder / f"{name}.o")],
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
            for name in pair
        }  # fmt: skip
        for name, process in running.items():
            said = process.communicate(timeout=SECONDS)[1]
            if process.returncode == 0:
                known.append(name)
            elif name == "plain":
                raise subprocess.CalledProcessError(process.returncode, compiler, stderr=said)
    return known


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS)
