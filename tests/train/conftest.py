"""A tiny decoder, a task that has something to learn, and real tokens of a tiny corpus."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from herdbook.console import Terminal
from herdbook.documents import DocumentWriter
from herdbook.train.machine import Machine
from herdbook.train.task import Setting


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"herdbook_test_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """`Counting` (a task), `decoder` (a tiny model), `run` (the loop over both)."""
    return _load("toy")


@pytest.fixture(scope="session")
def spread() -> ModuleType:
    """Shapes of the families, a loop for one process or several, and `torchrun` to start them."""
    return _load("spread")


@pytest.fixture
def machine() -> Machine:
    return Machine("cpu", "float32", 1, False)


@pytest.fixture
def setting() -> Setting:
    return Setting({"train": {"lr": 1}}, flops_per_token=1e5)


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `corpus`, `tokenizer` and `tokens` of 300 short documents."""
    from herdbook.tokens.build import build_tokens
    from herdbook.tokens.config import TokenizerConfig, TokensConfig
    from herdbook.tokens.tokenizer import train_tokenizer

    root, quiet = tmp_path_factory.mktemp("road"), Terminal(quiet=True)
    with DocumentWriter(root / "corpus", "documents") as train, DocumentWriter(root / "corpus", "heldout") as heldout:
        for number in range(300):
            text = f"Number {number} comes after {number - 1} and before {number + 1}. Twice {number} is {2 * number}. " * 3
            writer = heldout if number % 10 == 0 else train
            writer.write({"id": f"sums/{number}", "text": text, "source": "sums", "license": "CC0-1.0", "language": "en"})
    train_tokenizer(TokenizerConfig(vocab_size=300), root / "corpus", root / "tokenizer", quiet)
    build_tokens(TokensConfig(), root / "corpus", root / "tokenizer", root / "tokens", quiet, workers=1)
    return root
