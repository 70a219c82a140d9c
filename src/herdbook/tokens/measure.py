"""What a tokenizer makes of text it was not trained on, and what others make of the same text.

Bytes per token compare tokenizers on the same text only: they depend on language, source and size of vocabulary. The held-out
documents of a corpus are measured on, or those it trains with where none are held out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from herdbook.console import Terminal
from herdbook.documents import Split
from herdbook.interop.sentencepiece import SPACE
from herdbook.tokens.sample import Sampled, Survey, quotas
from herdbook.units import human_bytes

REPORT_BYTES = 16_000_000  # of held-out text are enough to know bytes per token to three digits
LONGEST, UNSEEN, LANGUAGES = 10, 20, 12  # how many are listed
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass
class Tally:
    """Text and the tokens it became; words are what stands between white space."""

    bytes: int = 0
    words: int = 0
    tokens: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "bytes": self.bytes, "tokens": self.tokens,
            "bytes_per_token": round(self.bytes / self.tokens, 4) if self.tokens else None,
            "tokens_per_word": round(self.tokens / self.words, 4) if self.words else None,
        }  # fmt: skip


class Texts:
    """The documents of a corpus to measure on, the same each time they are gone through.

    Attributes:
        split: where they are from: `heldout`, or `train` where nothing is held out.
    """

    def __init__(self, corpus: Path, seed: int = 0) -> None:
        self.split: Split = "heldout" if corpus.is_dir() and any(corpus.glob("heldout*.parquet")) else "train"
        self._survey = Survey(corpus, self.split, seed)
        if self.split == "heldout" and not sum(self._survey.sizes.values()):
            self.split, self._survey = "train", Survey(corpus, "train", seed)

    def __iter__(self) -> Iterator[Sampled]:
        return self._survey.draw(quotas(self._survey.sizes, None, REPORT_BYTES))


def plain(encoder: Tokenizer) -> Tokenizer:
    """The same tokenizer, set to encode documents: no truncation, no padding, special tokens read as plain text."""
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True
    return encoder


@dataclass
class _Measure:
    """What is counted while a tokenizer runs over documents."""

    vocab_size: int
    total: Tally = field(default_factory=Tally)
    by_source: dict[str, Tally] = field(default_factory=dict)
    by_language: dict[str, Tally] = field(default_factory=dict)
    documents: int = 0
    unchanged: int = 0

    def __post_init__(self) -> None:
        self.seen_V = np.zeros(self.vocab_size, dtype=np.int64)

    def add(self, document: Sampled, ids: list[int], decoded: str) -> None:
        size, words = len(document.text.encode()), len(document.text.split())
        parts = (self.by_source.setdefault(document.source, Tally()), self.by_language.setdefault(document.language, Tally()))
        for tally in (self.total, *parts):
            tally.bytes += size
            tally.words += words
            tally.tokens += len(ids)
        self.seen_V += np.bincount(np.array(ids, dtype=np.int64), minlength=self.vocab_size)
        self.documents += 1
        self.unchanged += decoded == document.text


def measure(encoder: Tokenizer, documents: Iterable[Sampled]) -> dict[str, Any]:
    """A tokenizer's report.

    Returns:
        `vocab_size`: one more than its largest id; of all, `by_source` and `by_language` the `bytes_per_token` and
        `tokens_per_word`; `vocabulary_used`: the share of its tokens that occur; `unseen`: how many ordinary ones do not, and
        some of them; `longest`: the longest that occur; `byte_fallback`: the share of the tokens met that are only a part of a
        character; `round_trip`: the share of documents that come back unchanged.
    """
    counts = _Measure(1 + max(encoder.get_vocab(with_added_tokens=True).values()))
    remaining = iter(documents)
    while batch := list(islice(remaining, 256)):
        encoded = [found.ids for found in encoder.encode_batch_fast([row.text for row in batch], add_special_tokens=False)]
        decoded = encoder.decode_batch(encoded, skip_special_tokens=False)
        for row, ids, text in zip(batch, encoded, decoded, strict=True):
            counts.add(row, ids, text)
    special = {token.content: index for index, token in sorted(encoder.get_added_tokens_decoder().items()) if token.special}
    total = counts.total.as_dict()
    return {
        "vocab_size": counts.vocab_size,
        "bytes_per_token": total["bytes_per_token"],
        "tokens_per_word": total["tokens_per_word"],
        "by_source": {name: tally.as_dict() for name, tally in sorted(counts.by_source.items())},
        "by_language": {name: tally.as_dict() for name, tally in sorted(counts.by_language.items())},
        "vocabulary_used": round(float((counts.seen_V > 0).mean()), 4),
        **_vocabulary(encoder, counts.seen_V, frozenset(special.values())),
        "special_tokens": special,
        "measured_on": {"documents": counts.documents, "bytes": counts.total.bytes},
        "round_trip": round(counts.unchanged / counts.documents, 6) if counts.documents else None,
    }


def _vocabulary(encoder: Tokenizer, seen_V: Any, special: frozenset[int]) -> dict[str, Any]:
    """What the tokens that occur are like, and those that do not."""
    read = _reader(encoder)
    texts = {index: read(token) for token, index in encoder.get_vocab(with_added_tokens=True).items() if index not in special}
    parts = [index for index, text in texts.items() if text is None]
    whole = {index: text for index, text in texts.items() if text is not None}
    unseen = sorted(index for index in whole if not seen_V[index])
    longest = sorted((index for index in whole if seen_V[index]), key=lambda index: (-len(whole[index]), index))[:LONGEST]
    met = int(seen_V.sum())
    return {
        "unseen": {"tokens": len(unseen), "some": [whole[index] for index in unseen[:UNSEEN]]},
        "longest": [{"token": whole[index], "times": int(seen_V[index])} for index in longest],
        "byte_fallback": round(int(seen_V[parts].sum()) / met, 6) if met else None,
    }


def _reader(encoder: Tokenizer) -> Callable[[str], str | None]:
    """Gives the text of an entry of the vocabulary, or None where it is only part of a character."""
    definition = json.loads(encoder.to_str())
    steps = definition.get("decoder") or {}
    if any(step.get("type") == "ByteLevel" for step in (steps, *steps.get("decoders", ()))):
        shown = [byte for byte in range(256) if byte in range(33, 127) or byte in range(161, 173) or byte >= 174]
        hidden = [byte for byte in range(256) if byte not in shown]
        # GPT-2's table: bytes that can be printed stand for themselves, the others for characters from 256 on.
        table = {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}

        def of_bytes(token: str) -> str | None:
            try:
                return bytes(table.get(char, 63) for char in token).decode()
            except UnicodeDecodeError:
                return None

        return of_bytes
    fallback = bool(definition["model"].get("byte_fallback"))

    def of_pieces(token: str) -> str | None:
        found = _BYTE.fullmatch(token) if fallback else None
        if found is None:
            return token.replace(SPACE, " ")
        byte = int(found[1], 16)
        return chr(byte) if byte < 128 else None

    return of_pieces


def open_others(paths: Sequence[Path]) -> dict[str, Tokenizer]:
    """Tokenizers to compare with, folders or files of one, by their paths. Raises UserError when one cannot be read."""
    from herdbook.interop.tokenizers import load_tokenizer  # brings torch with it

    return {str(path): plain(Tokenizer.from_str(load_tokenizer(path).definition)) for path in paths}


def measure_others(others: Mapping[str, Tokenizer], documents: Iterable[Sampled]) -> list[dict[str, Any]]:
    """The same figures of other tokenizers, for comparison."""
    rows = []
    for path, encoder in others.items():
        found = measure(encoder, documents)
        found = {key: found[key] for key in found if key not in ("unseen", "longest", "special_tokens", "measured_on")}
        rows.append({"tokenizer": path, **found})
    return rows


def show(report: dict[str, Any], terminal: Terminal) -> None:
    """The report on a terminal: bytes per token by source and language, and other tokenizers beside this one."""
    which = "held-out documents" if report["measured_on"]["split"] == "heldout" else "training documents (none are held out)"
    if report["bytes_per_token"] is None:
        terminal.say(f"a vocabulary of {report['vocab_size']:,}; there is no text to measure it on")
        return
    terminal.say(f"a vocabulary of {report['vocab_size']:,}; {report['bytes_per_token']:.2f} bytes per token on {which}")
    _groups("source", report["by_source"], terminal)
    if len(report["by_language"]) > 1:
        _groups("language", report["by_language"], terminal)
    terminal.say(
        f"{report['vocabulary_used']:.1%} of the vocabulary occurs there; {report['byte_fallback']:.2%} of the tokens are only "
        "part of a character"
    )
    if report["compare"]:
        rows = [
            (row["tokenizer"], f"{row['vocab_size']:,}", _rate(row["bytes_per_token"]), _rate(row["tokens_per_word"]),
             f"{row['vocabulary_used']:.1%}", f"{row['byte_fallback']:.2%}", f"{row['round_trip']:.1%}")
            for row in ({"tokenizer": "this one", **report}, *report["compare"])
        ]  # fmt: skip
        columns = ["vocabulary", "bytes per token", "tokens per word", "used", "parts of characters", "come back unchanged"]
        terminal.table(["tokenizer", *columns], rows)
    if report["round_trip"] < 1:
        terminal.warn(f"{1 - report['round_trip']:.2%} of the documents do not come back unchanged from this tokenizer")


def _groups(title: str, groups: dict[str, Any], terminal: Terminal) -> None:
    largest = sorted(groups.items(), key=lambda item: (-item[1]["bytes"], item[0]))[:LANGUAGES]
    rows = [
        (name, _rate(row["bytes_per_token"]), _rate(row["tokens_per_word"]), human_bytes(row["bytes"])) for name, row in largest
    ]
    terminal.table([title, "bytes per token", "tokens per word", "measured on"], rows)


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
