"""A quick look at held-out text while training: loss and bits per byte on a fixed handful of documents.

The same documents for every run on a corpus (those with the smallest hash of their id), each cut to one sequence. Bits per
byte is the sum of the losses over the bytes of exactly the text they were made on. `evals/` measures all held-out text, per
source, when training is over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from herdbook.documents import read_documents
from herdbook.errors import UserError
from herdbook.model.decoder import Decoder
from herdbook.tokenizer import Tokenizer
from herdbook.train.losses import IGNORED, sum_loss

DOCUMENTS_READ = 5_000  # of a large held-out set, the first so many are chosen from
ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class Validation:
    """Held-out sequences, ready to be measured: call it with a model.

    Attributes:
        tokens_BT: inputs, the separator first; rows are filled up with it.
        targets_BT: what follows; `IGNORED` where a row is filled up.
        text_bytes: UTF-8 bytes that the targets stand for.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    text_bytes: int

    def __call__(self, model: Decoder) -> dict[str, float]:
        """{"val_loss": nats a token, "val_bits_per_byte": …}."""
        device = next(model.parameters()).device
        loss, count = 0.0, 0
        for start in range(0, self.tokens_BT.shape[0], ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            part, trained = sum_loss(model, self.tokens_BT[rows].to(device), self.targets_BT[rows].to(device))
            loss, count = loss + part, count + trained
        return {"val_loss": loss / count, "val_bits_per_byte": loss / math.log(2) / self.text_bytes}


def load_validation(
    corpus: Path | None, tokenizer: Tokenizer, *, separator_id: int, context: int, sequences: int
) -> Validation | None:
    """The look at `corpus`' held-out documents; None when there are none, or none are wanted."""
    texts = _choose(corpus, sequences) if corpus is not None and sequences else []
    rows, text_bytes = [], 0
    for text in texts:
        ids, size = _cut(tokenizer, text, context)
        if ids:
            rows.append([separator_id, *ids])
            text_bytes += size
    if not rows:
        return None
    width = max(len(row) for row in rows) - 1
    tokens_BT = torch.full((len(rows), width), separator_id)
    targets_BT = torch.full((len(rows), width), IGNORED)
    for index, row in enumerate(rows):
        tokens_BT[index, : len(row) - 1] = torch.tensor(row[:-1])
        targets_BT[index, : len(row) - 1] = torch.tensor(row[1:])
    return Validation(tokens_BT, targets_BT, text_bytes)


def _choose(corpus: Path, count: int) -> list[str]:
    """The texts of the `count` held-out documents with the smallest hashes of their ids."""
    ranked: list[tuple[int, str]] = []
    try:
        for number, row in enumerate(read_documents(corpus, "heldout", columns=["id", "text"])):
            if number == DOCUMENTS_READ:
                break
            ranked.append((xxhash.xxh3_64_intdigest(row["id"].encode()), row["text"]))
    except UserError:
        if corpus.is_dir() and any(corpus.glob("heldout*.parquet")):
            raise
        return []
    ranked.sort(key=lambda pair: pair[0])
    return [text for _, text in ranked[:count]]


def _cut(tokenizer: Tokenizer, text: str, context: int) -> tuple[list[int], int]:
    """At most `context` tokens from the start of a text that end between characters, and the bytes they stand for."""
    ids = tokenizer.encode_document(text[: 16 * context])
    if len(ids) <= context and len(text) <= 16 * context:
        return ids, len(text.encode())
    ids = ids[:context]
    while ids and (tail := tokenizer.decode(ids, skip_special=False)).endswith("\ufffd"):
        ids = ids[:-1]
    return ids, len(tail.encode()) if ids else 0
