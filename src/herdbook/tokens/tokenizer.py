"""Byte-level BPE: trained on a sample of the corpus, or taken from a folder, and measured on held-out documents.

Byte-level BPE (Radford et al. 2019, GPT-2, section 2.2) starts from the 256 bytes, so every text can be encoded and comes
back unchanged. Text is cut before merging: every digit stands alone, as in LLaMA (Touvron et al. 2023, section 2.1), then
words, punctuation and spaces are parted as in GPT-2. Cutting digits first and words second is also what llama.cpp calls
`smollm`, so that a GGUF made from this tokenizer gives the same ids there.

Documents are encoded with special tokens switched off: a page that happens to contain `<|endoftext|>` gets the ids of those
thirteen characters, and cannot end a document or forge a turn of a conversation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from herdbook import pedigree
from herdbook.console import Terminal
from herdbook.documents import Split, read_documents
from herdbook.errors import UserError
from herdbook.files import read_json, remove_partials, write_json, write_text
from herdbook.pedigree import Record
from herdbook.tokens.config import END_OF_TEXT, IM_END, IM_START, PAD, SPECIAL_TOKENS, TokenizerConfig
from herdbook.tokens.sample import Sampled, Survey, check_sources, quotas
from herdbook.units import human_bytes

TOKENIZER, TOKENIZER_CONFIG, REPORT = "tokenizer.json", "tokenizer_config.json", "report.json"
# What makes up a tokenizer in a Hugging Face folder besides the two above.
OPTIONAL_FILES = ("special_tokens_map.json", "chat_template.jinja")
REPORT_BYTES = 16_000_000  # of held-out text are enough to know bytes per token to three digits


def train_tokenizer(cfg: TokenizerConfig, corpus: Path, out: Path, terminal: Terminal) -> None:
    """Train (or take, with `cfg.path`) a tokenizer and leave `tokenizer.json`, `tokenizer_config.json`, `report.json` in `out`.

    Raises UserError when the corpus has no documents, a named source is not in it, or `cfg.path` holds no tokenizer.
    """
    with pedigree.record(out, "tokenizer", cfg.model_dump(mode="json")) as rec:
        remove_partials(out)
        rec.add_input(corpus, "corpus")
        if cfg.path is None:
            trained_on = _train(cfg, corpus, out, rec, terminal)
        else:
            trained_on = 0
            _take(cfg, cfg.path, out, rec, terminal)
        report = measure(out, corpus, trained_on_bytes=trained_on)
        write_json(out / REPORT, report)
        rec.counts.update(
            vocab_size=report["vocab_size"], bytes_per_token=report["bytes_per_token"], trained_on_bytes=trained_on
        )
        _show(report, terminal)


def load_encoder(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, set to encode documents: no truncation, no padding, special tokens read as plain text.

    Raises UserError when there is none or it is broken.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        todo = "`herdbook tokenizer` trains one; tokenizer.path takes a folder with tokenizer.json"
        raise UserError("there is no tokenizer here", where=path, todo=todo)
    try:
        encoder = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for what it cannot read
        raise UserError(f"this is not a tokenizer that can be read ({error})", where=path) from error
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True
    return encoder


def separator_id(folder: Path) -> int:
    """The id that begins every document: the end-of-text token (or, without one, the beginning-of-text token).

    Raises UserError when the tokenizer's settings name neither.
    """
    settings = read_json(folder / TOKENIZER_CONFIG, what="tokenizer's settings")
    encoder = load_encoder(folder)
    for role in ("eos_token", "bos_token"):
        token = settings.get(role)
        content = token.get("content") if isinstance(token, dict) else token
        found = encoder.token_to_id(content) if content else None
        if found is not None:
            return int(found)
    raise UserError("the tokenizer names no eos_token that is in its vocabulary", where=folder / TOKENIZER_CONFIG,
                    todo='add "eos_token": "…" to that file')  # fmt: skip


def _train(cfg: TokenizerConfig, corpus: Path, out: Path, rec: Record, terminal: Terminal) -> int:
    """Train and write the tokenizer; the bytes it was trained on."""
    survey = Survey(corpus, "train", cfg.seed)
    check_sources(cfg.sources, survey.sizes, key="tokenizer.sources")
    quota = quotas(survey.sizes, cfg.sources, cfg.sample_bytes)
    taken: Counter[str] = Counter()
    if not quota:
        raise UserError("the corpus holds no text to train a tokenizer on", where=corpus)
    shown = human_bytes(sum(quota.values()))
    with terminal.progress(f"training a tokenizer of {cfg.vocab_size:,} on {shown}", sum(quota.values())) as progress:

        def texts() -> Iterator[str]:
            for document in survey.draw(quota):
                size = len(document.text.encode())
                taken[document.source] += size
                progress.advance(size)
                yield document.text

        encoder = fit(texts(), vocab_size=cfg.vocab_size, min_frequency=cfg.min_frequency)
    if encoder.get_vocab_size() < cfg.vocab_size:
        terminal.warn(
            f"the sample gives a vocabulary of {encoder.get_vocab_size():,}, not {cfg.vocab_size:,}: "
            "no further pair occurs often enough. More text, or a smaller tokenizer.vocab_size, would fit better"
        )
    write_text(out / TOKENIZER, encoder.to_str(pretty=True))
    write_json(out / TOKENIZER_CONFIG, _settings())
    _inherit_corpus(corpus, rec, taken)
    rec.notes["sample_bytes_by_source"] = dict(sorted(taken.items()))
    return sum(taken.values())


def fit(texts: Iterator[str], *, vocab_size: int, min_frequency: int = 2) -> Tokenizer:
    """Train a byte-level BPE with the special tokens at ids 0 to 3. The same texts give the same tokenizer."""
    encoder = Tokenizer(models.BPE())
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    encoder.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    encoder.train_from_iterator(texts, trainer)
    # Every training document begins with the end-of-text token, so a prompt that starts a text has to begin with it too.
    encoder.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, encoder.token_to_id(END_OF_TEXT))]
    )
    return encoder


def _settings() -> dict[str, Any]:
    """tokenizer_config.json as transformers reads it: version 5 takes `extra_special_tokens`, version 4 the older name."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": PAD,
        "add_bos_token": True,
        "extra_special_tokens": [IM_START, IM_END],
        "additional_special_tokens": [IM_START, IM_END],
        "clean_up_tokenization_spaces": False,
    }


def _inherit_corpus(corpus: Path, rec: Record, taken: Counter[str]) -> None:
    """Note the licences of the corpus: those of its pedigree, or of the documents when others made it."""
    if corpus.is_dir() and pedigree.exists(corpus):
        rec.inherit_licenses(corpus)
        return
    for license_id in sorted(
        {row["license"] for row in read_documents(corpus, columns=["source", "license"]) if row["source"] in taken}
    ):
        rec.add_license(license_id)


def _take(cfg: TokenizerConfig, folder: Path, out: Path, rec: Record, terminal: Terminal) -> None:
    """Copy a tokenizer that exists, after a look whether it can be used."""
    if not folder.is_dir():
        raise UserError("there is no such folder", where=folder, todo="tokenizer.path takes a folder with tokenizer.json")
    load_encoder(folder)
    separator_id(folder)
    for name in (TOKENIZER, TOKENIZER_CONFIG, *OPTIONAL_FILES):
        (out / name).unlink(missing_ok=True)
        if (folder / name).is_file():
            write_text(out / name, (folder / name).read_text(encoding="utf-8"))
    rec.add_input(folder / TOKENIZER, "tokenizer", license_id=cfg.license)
    if pedigree.exists(folder) and cfg.license is None:
        rec.inherit_licenses(folder)
    else:
        rec.add_license(cfg.license)
        if cfg.license is None:
            terminal.warn(f"the licence of the tokenizer at {folder} is not known; name it with tokenizer.license=…")


@dataclass
class _Tally:
    bytes: int = 0
    tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        rate = round(self.bytes / self.tokens, 4) if self.tokens else None
        return {"bytes": self.bytes, "tokens": self.tokens, "bytes_per_token": rate}


@dataclass
class _Measure:
    """What is counted while a tokenizer runs over documents."""

    vocab_size: int
    total: _Tally = field(default_factory=_Tally)
    by_source: dict[str, _Tally] = field(default_factory=dict)
    by_language: dict[str, _Tally] = field(default_factory=dict)
    documents: int = 0
    unchanged: int = 0

    def __post_init__(self) -> None:
        self.used = np.zeros(self.vocab_size, dtype=bool)

    def add(self, document: Sampled, ids: list[int], decoded: str) -> None:
        size = len(document.text.encode())
        parts = (self.by_source.setdefault(document.source, _Tally()), self.by_language.setdefault(document.language, _Tally()))
        for tally in (self.total, *parts):
            tally.bytes += size
            tally.tokens += len(ids)
        self.used[ids] = True
        self.documents += 1
        self.unchanged += decoded == document.text


def measure(folder: Path, corpus: Path, *, trained_on_bytes: int = 0, seed: int = 0) -> dict[str, Any]:
    """The tokenizer's report: bytes per token by source and language, on held-out documents where the corpus has some."""
    encoder = load_encoder(folder)
    split: Split = "heldout" if corpus.is_dir() and any(corpus.glob("heldout*.parquet")) else "train"
    survey = Survey(corpus, split, seed)
    if split == "heldout" and not sum(survey.sizes.values()):
        split, survey = "train", Survey(corpus, "train", seed)
    counts = _Measure(1 + max(encoder.get_vocab(with_added_tokens=True).values()))
    documents = survey.draw(quotas(survey.sizes, None, REPORT_BYTES))
    while batch := list(islice(documents, 256)):
        encoded = [found.ids for found in encoder.encode_batch_fast([row.text for row in batch], add_special_tokens=False)]
        decoded = encoder.decode_batch(encoded, skip_special_tokens=False)
        for row, ids, text in zip(batch, encoded, decoded, strict=True):
            counts.add(row, ids, text)
    special = {token.content: index for index, token in sorted(encoder.get_added_tokens_decoder().items()) if token.special}
    return {
        "vocab_size": counts.vocab_size,
        "bytes_per_token": counts.total.as_dict()["bytes_per_token"],
        "by_source": {name: tally.as_dict() for name, tally in sorted(counts.by_source.items())},
        "by_language": {name: tally.as_dict() for name, tally in sorted(counts.by_language.items())},
        "vocabulary_used": round(float(counts.used.mean()), 4),
        "special_tokens": special,
        "trained_on_bytes": trained_on_bytes,
        "measured_on": {"split": split, "documents": counts.documents, "bytes": counts.total.bytes},
        "round_trip": round(counts.unchanged / counts.documents, 6) if counts.documents else None,
    }


def _show(report: dict[str, Any], terminal: Terminal) -> None:
    rows = [
        (name, f"{row['bytes_per_token'] or 0:.2f}", human_bytes(row["bytes"])) for name, row in report["by_source"].items()
    ]
    which = "held-out documents" if report["measured_on"]["split"] == "heldout" else "training documents (none are held out)"
    if rows:
        terminal.say(f"a vocabulary of {report['vocab_size']:,}; {report['bytes_per_token']:.2f} bytes per token on {which}")
        terminal.table(["source", "bytes per token", "measured on"], rows)
    if report["round_trip"] is not None and report["round_trip"] < 1:
        terminal.warn(f"{1 - report['round_trip']:.2%} of the documents do not come back unchanged from this tokenizer")
