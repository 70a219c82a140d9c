"""Imports go down only, and what must start fast imports nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "herdbook"
STATIONS = {"corpus", "tokens", "plan", "train", "align", "evals", "infer", "report", "quantize"}
# Every package or module of ours, with its height; an import may only lead to something lower or inside itself.
HEIGHT = {
    **dict.fromkeys(["cli", "__main__"], 6),
    "verbs": 5,
    **dict.fromkeys(["api", "serve"], 4),
    **dict.fromkeys(["recipe", "road"], 4),
    **dict.fromkeys(STATIONS, 3),
    **dict.fromkeys(["model", "interop"], 2),
    **dict.fromkeys(["facts", "pedigree", "documents", "tokenizer", "chat_template"], 1),
    **dict.fromkeys(["config", "files", "units", "errors", "console", "pool", "threads", "launched"], 0),
}
# What one station may take from another: an object handed over by type, a shared contract, or the one training loop.
SHARED = {
    ("align", "train"),  # fine-tuning is a task of the one loop
    ("train", "tokens"),  # the loader is what tokens hands to training
    ("train", "plan"),  # the plan is printed before training; the peak is what utilisation is measured against
    ("evals", "infer"),  # evaluation takes an engine
}


def imports(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [f"{node.module}.{alias.name}" if node.module == "herdbook" else node.module for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return [name for name in names if name.startswith("herdbook.")]


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_imports_go_down(path: Path) -> None:
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for name in imports(path):
        other = name.split(".")[1]
        if other in (own, "__version__"):
            continue
        assert other in HEIGHT, f"{name}: give {other} a height"
        lower = HEIGHT[other] < HEIGHT[own]
        level = HEIGHT[other] == HEIGHT[own] and (own not in STATIONS or (own, other) in SHARED)
        # A config is a light description: recipes hold those of all stations, and the catalogue of shapes holds the model's.
        config = name.split(".")[2:3] == ["config"] and (HEIGHT[own] >= 3 or (own, other) == ("facts", "model"))
        assert lower or level or config, f"{own} imports {name}, which is not below it"


@pytest.mark.parametrize("module", ["herdbook", "herdbook.cli"])
def test_nothing_heavy_at_the_start(module: str) -> None:
    heavy = "torch numpy pyarrow pydantic yaml transformers tokenizers fastwarc"
    code = f"import {module}, sys; print([name for name in '{heavy}'.split() if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_configs_load_without_torch() -> None:
    code = "import herdbook.recipe, sys; print([name for name in ('torch', 'pyarrow', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
