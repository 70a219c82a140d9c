"""A real tokenizer, a tiny model folder, and a corpus with docstrings and articles."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from herdbook import pedigree
from herdbook.console import Terminal
from herdbook.documents import DocumentWriter
from herdbook.tokenizer import Tokenizer

VERBS = ("read", "write", "open", "close", "find", "sort", "count", "join", "split", "copy", "move", "list")
NOUNS = ("files", "rows", "lines", "words", "keys", "numbers", "folders", "tables")
ARTICLES = {
    ("en", "Paris"): "Paris is the capital of France. It lies on the Seine.",
    ("fr", "Mont_Blanc"): "Le mont Blanc est la plus haute montagne des Alpes. Il culmine à 4 806 mètres.",
    ("es", "Río_Ebro"): "El Ebro es un río de la península ibérica. Desemboca en el Mediterráneo.",
}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 docstrings and three articles, and pages of another source that give no pairs."""
    folder = tmp_path_factory.mktemp("corpus")
    with DocumentWriter(folder, "documents") as writer:
        for number, (verb, noun) in enumerate((verb, noun) for verb in VERBS for noun in NOUNS):
            name = f"tools.{noun}.{verb}"
            text = (
                f"{name}(x, limit={number})\n\nGo over all that x holds, up to {number}.\n\n"
                f"Raises ValueError when there are more than {number} of them."
            )
            writer.write({"id": f"docstrings/{name}", "text": text, "url": f"pydoc://{name}", "source": "docstrings",
                          "license": "PSF-2.0", "language": "en"})  # fmt: skip
        for (language, title), text in ARTICLES.items():
            writer.write({"id": f"wikipedia/{language}/{title}", "text": text, "source": "wikipedia", "language": language,
                          "url": f"https://{language}.wikipedia.org/wiki/{title}", "license": "CC-BY-SA-4.0"})  # fmt: skip
        writer.write({"id": "pages/1", "text": "A page.\n\nOf something else.", "url": "https://example.org/",
                      "source": "pages", "license": "CC0-1.0", "language": "en"})  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def words(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A byte-level BPE of 400 tokens with the special tokens of ours."""
    from herdbook.tokens.config import TokenizerConfig
    from herdbook.tokens.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TokenizerConfig(vocab_size=400), corpus, folder, Terminal(quiet=True))
    return Tokenizer.load(folder)


@pytest.fixture(scope="session")
def base(words: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained base model, with a pedigree under Apache-2.0."""
    from herdbook.interop.hf import save_folder
    from herdbook.model.config import ModelConfig
    from herdbook.model.decoder import Decoder

    folder = tmp_path_factory.mktemp("base")
    model = Decoder(ModelConfig(vocab_size=448, d_model=32, n_layers=2, n_heads=2, context=128))
    model.init_weights(torch.Generator().manual_seed(0))
    with pedigree.record(folder, "pretrain", {}) as rec:
        rec.add_license("Apache-2.0")
        save_folder(model, folder, tokenizer=words, license_id="Apache-2.0")
    return folder
