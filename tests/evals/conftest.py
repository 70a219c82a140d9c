"""A tiny model with a real tokenizer, and a small corpus of docstrings and prose, partly held out."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from herdbook.documents import DocumentWriter
from herdbook.infer.engine import Engine
from herdbook.interop.hf import save_folder
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_WORDS = (
    "array tensor string graph matrix buffer socket thread queue parser window column image record signal token "
    "river castle harbour abbey orchard bridge meadow quarry"
)
NOUNS = _WORDS.split()
VERBS = ["Return", "Compute", "Build", "Convert", "Merge", "Split", "Sort", "Validate", "Encode", "Filter", "Render", "Close"]
ENDINGS = ("with the smallest cost", "along the given axis", "from an open stream", "without copying any memory")


def documents(count: int = 240) -> Iterator[dict[str, Any]]:
    """Docstrings whose names say nothing, and short articles."""
    rng = random.Random(7)
    for index in range(count):
        name = f"pkg{index % 3}.mod.f{index}"
        what = f"{rng.choice(VERBS)} the {rng.choice(NOUNS)} and its {rng.choice(NOUNS)} {rng.choice(ENDINGS)}"
        text = f"{name}(x, n={index})\n\n{what}.\n\nMore about it: naïve café."
        yield {"id": f"docstrings/{name}", "text": text, "source": "docstrings", "license": "BSD-3-Clause", "language": "en"}
    for index in range(count // 3):
        one, two, three, four = rng.sample(NOUNS, 4)
        text = f"The {one} of village {index} is an old one. Here {two}, {three} and {four} are kept. It fell."
        yield {"id": f"wikipedia/{index}", "text": text, "source": "wikipedia", "license": "CC-BY-SA-4.0", "language": "en"}


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every second document is held out."""
    folder = tmp_path_factory.mktemp("corpus")
    with DocumentWriter(folder, "documents") as train, DocumentWriter(folder, "heldout") as heldout:
        for index, row in enumerate(documents()):
            (heldout if index % 2 else train).write(row)
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A byte-level BPE of 400 entries with the special tokens of our tokenizers."""
    built = tokenizers.Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    built.train_from_iterator((row["text"] for row in documents(60)), trainer)
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    return Tokenizer(built.to_str(), special)


@pytest.fixture(scope="session")
def model() -> Decoder:
    """A random decoder with a context of 48 tokens."""
    cfg = ModelConfig.model_validate({"vocab_size": 400, "d_model": 32, "n_layers": 2, "n_heads": 2, "context": 48})
    decoder = Decoder(cfg)
    decoder.init_weights(torch.Generator().manual_seed(3))
    with torch.no_grad():
        decoder.embed.weight.mul_(40)  # far from uniform, so that a mistake shows
    return decoder.eval()


@pytest.fixture
def engine(model: Decoder, tokenizer: Tokenizer) -> Engine:
    """The model behind an engine."""
    return Engine(model, tokenizer)


@pytest.fixture(scope="session")
def folders(model: Decoder, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model on disk, as a base model and as one with a chat template."""
    root = tmp_path_factory.mktemp("models")
    tokenizer.save(root / "tokenizer")
    for name, template in (("pretrain", None), ("sft", CHATML)):
        save_folder(model, root / name, tokenizer=root / "tokenizer", chat_template=template, license_id="BSD-3-Clause")
    return {name: root / name for name in ("pretrain", "sft")}
