"""Build llama.cpp under .bench/llama.cpp, as an oracle for tests and a peer for benchmarks.

    python benchmarks/build_llama_cpp.py

The source lies whole inside the sdist of `llama-cpp-python`, so nothing but the package index is needed; a C++ compiler must
be there, cmake and ninja are fetched. It takes about five minutes on two cores. `tests/interop/test_llama_cpp.py` finds the
result by itself, and skips without it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

VERSION = "0.3.36"
HERE = Path(__file__).resolve().parents[1] / ".bench" / "llama.cpp"
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_UI=OFF",
    "-DBUILD_SHARED_LIBS=ON", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF",
)  # fmt: skip
TARGETS = ("llama", "llama-bench", "llama-batched-bench", "llama-quantize")


def run(*words: str | Path) -> None:
    """A command, shown and checked."""
    print("+", *words, flush=True)
    subprocess.run([str(word) for word in words], check=True)


def main() -> None:
    source, build, python = HERE / "source", HERE / "build", HERE / "python"
    if not (source / "vendor").is_dir():
        tools = HERE / "download"
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python", "-d", str(tools)]
        run(*pip, f"llama-cpp-python=={VERSION}")
        with tarfile.open(next(tools.glob("llama_cpp_python-*.tar.gz"))) as archive:
            archive.extractall(HERE, filter="data")
        next(HERE.glob("llama_cpp_python-*")).rename(source)
    run(sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", python, "cmake", "ninja", "diskcache")
    cmake = shutil.which("cmake") or python / "bin" / "cmake"
    ninja = shutil.which("ninja") or python / "bin" / "ninja"
    run(cmake, "-S", source / "vendor" / "llama.cpp", "-B", build, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", *OPTIONS)
    run(cmake, "--build", build, "--target", *TARGETS)
    shutil.copytree(source / "llama_cpp", python / "llama_cpp", dirs_exist_ok=True)
    print(f"built: {build / 'bin'}; the Python binding lies in {python}")


if __name__ == "__main__":
    main()
