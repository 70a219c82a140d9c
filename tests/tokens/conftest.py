"""A small corpus of real text (this package's own docstrings and code), its tokenizer and its shards."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import herdbook
from herdbook.console import Terminal
from herdbook.documents import DocumentWriter
from herdbook.tokens.build import build_tokens
from herdbook.tokens.config import TokenizerConfig, TokensConfig
from herdbook.tokens.tokenizer import train_tokenizer

LICENSES = {"code": "Apache-2.0", "stdlib": "PSF-2.0", "tales": "CC0-1.0"}
TALE = "Il était une fois {0} brebis… Once upon a time there were {0} sheep, and the shepherd counted them: {0}.\n"


def documents() -> list[tuple[str, str, str]]:
    """(source, language, text) of every document, in a fixed order."""
    files = sorted(Path(inspect.getfile(herdbook)).parent.glob("*.py"))
    rows = [("code", "en", path.read_text(encoding="utf-8")) for path in files]
    for module in ("argparse", "inspect", "json.decoder", "statistics", "textwrap"):
        source = inspect.getsource(__import__(module, fromlist=["_"]))
        rows += [("stdlib", "en", source[start : start + 4000]) for start in range(0, len(source), 4000)]
    rows += [("tales", "fr" if number % 2 else "en", TALE.format(number) * (1 + number % 7)) for number in range(60)]
    return rows


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus folder as `herdbook curate` leaves it: several files and row groups, every ninth document held out."""
    folder = tmp_path_factory.mktemp("corpus")
    with DocumentWriter(folder, "documents", rows_per_file=40) as train, DocumentWriter(folder, "heldout") as heldout:
        for number, (source, language, text) in enumerate(documents()):
            row = {"id": f"{source}/{number}", "text": text, "url": f"https://example.org/{source}/{number}", "source": source,
                   "license": LICENSES[source], "language": language, "language_score": 1.0}  # fmt: skip
            (heldout if number % 9 == 0 else train).write(row)
    return folder


@pytest.fixture(scope="session")
def tokenizer(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 600 trained on the corpus."""
    out = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TokenizerConfig(vocab_size=600), corpus, out, Terminal(quiet=True))
    return out


@pytest.fixture(scope="session")
def tokens(corpus: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the corpus, small enough that every source has several."""
    out = tmp_path_factory.mktemp("tokens")
    build_tokens(TokensConfig(shard_tokens=5000), corpus, tokenizer, out, Terminal(quiet=True), workers=1)
    return out
