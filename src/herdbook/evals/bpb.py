"""Bits per byte: how many bits the model needs for each byte of held-out text. Lower is better.

The sum of −log2 p over the tokens of a document, divided by its UTF-8 bytes: unlike a loss per token it compares models with
different tokenizers (Gao et al. 2020, "The Pile", section 3.1, use it for that reason). Each document is scored by itself
after the separator that stands before documents in training. Text longer than the model's context is scored in windows that
overlap, each token once, with at least the overlap to its left.

The figure of a source is sum of bits / sum of bytes over a sample of its documents. The overall figure weighs the sources by
all the held-out bytes each has, so it estimates what scoring every held-out document would give, whatever the sample.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herdbook.console import Terminal
from herdbook.documents import read_documents
from herdbook.evals.scoring import Request, Subject, draw_key, ratio_stderr, score

TASK = "bits_per_byte"
VERSION = 1


@dataclass(frozen=True)
class Document:
    """A held-out document, cut to what is scored of it."""

    id: str
    url: str | None
    source: str
    text: str
    bytes: int


@dataclass
class Sample:
    """Documents to score, and how much held-out text they stand for.

    Attributes:
        documents: sorted by source and id.
        source_documents: all held-out documents of each source.
        source_bytes: their bytes, each cut as the sample is.
    """

    documents: list[Document] = field(default_factory=list)
    source_documents: dict[str, int] = field(default_factory=dict)
    source_bytes: dict[str, int] = field(default_factory=dict)


def heldout_sample(corpus: Path, *, documents: int, document_bytes: int, seed: int) -> Sample:
    """Draw up to `documents` held-out documents of each source, each cut to `document_bytes` at a character's end.

    The draw depends on `seed` and the documents' ids only. Raises UserError when the corpus holds no held-out text.
    """
    sample = Sample()
    kept: dict[str, list[tuple[int, str, Document]]] = {}
    for row in read_documents(corpus, "heldout", columns=["id", "text", "url", "source"]):
        text = cut_bytes(row["text"], document_bytes)
        size = len(text.encode())
        if not size:
            continue
        source = row["source"]
        sample.source_documents[source] = sample.source_documents.get(source, 0) + 1
        sample.source_bytes[source] = sample.source_bytes.get(source, 0) + size
        heap = kept.setdefault(source, [])
        key = int.from_bytes(draw_key(seed, TASK, row["id"]))
        entry = (-key, row["id"], Document(row["id"], row["url"], source, text, size))
        if len(heap) < documents:
            heapq.heappush(heap, entry)
        elif entry[:2] > heap[0][:2]:
            heapq.heapreplace(heap, entry)
    for source in sorted(kept):
        sample.documents += sorted((entry[2] for entry in kept[source]), key=lambda document: document.id)
    return sample


def cut_bytes(text: str, limit: int) -> str:
    """The longest beginning of `text` that takes at most `limit` bytes in UTF-8."""
    return text if len(text) * 4 <= limit else text.encode()[:limit].decode(errors="ignore")


def windows(tokens: Sequence[int], separator: Sequence[int], context: int, overlap: float) -> list[Request]:
    """The requests that score every token of a document once.

    Args:
        separator: what stands before the document; scored never. Without one the first token cannot be scored and is context.
        context: the most tokens the model reads at once. The last token of a request is predicted but not read.
        overlap: the share of a window that only repeats the one before; at least one token does.
    """
    if context < 1:
        raise ValueError(f"a context of {context} tokens leaves nothing to predict from")
    sequence = [*separator, *tokens]
    keep = max(1, int(context * overlap))
    requests: list[Request] = []
    start, first = 0, max(1, len(separator))
    while first < len(sequence):
        end = min(start + context + 1, len(sequence))
        requests.append((sequence[start:first], sequence[first:end]))
        start, first = end - keep, end
    return requests


def bits_per_byte(
    subject: Subject, sample: Sample, terminal: Terminal, *, overlap: float, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score a sample.

    Returns:
        `{"sources": {name: figures}, "overall": figures}`, where figures are `bits_per_byte`, `stderr` (absent for a single
        document), `documents`, `bytes` and `tokens`; and one row a document for the log of samples.
    """
    requests: list[Request] = []
    owners: list[int] = []
    lengths: list[int] = []
    for index, document in enumerate(sample.documents):
        tokens = subject.tokenizer.encode_document(document.text)
        cut = windows(tokens, subject.separator, subject.context, overlap)
        requests += cut
        owners += [index] * len(cut)
        lengths.append(len(tokens))
    bits = [0.0] * len(sample.documents)
    for index, (loglikelihood, _) in zip(owners, score(subject, requests, terminal, "bits per byte"), strict=True):
        bits[index] -= loglikelihood / math.log(2)
    rows = [
        {"model": subject.name, "task": f"{TASK}_{document.source}", "doc_id": document.id, "url": document.url,
         "bytes": document.bytes, "tokens": length, "bits": round(spent, 4), "bits_per_byte": round(spent / document.bytes, 6)}
        for document, length, spent in zip(sample.documents, lengths, bits, strict=True)
    ]  # fmt: skip
    sources = {
        source: _figures([row for row, document in zip(rows, sample.documents, strict=True) if document.source == source], seed)
        for source in sample.source_bytes
    }
    return {"sources": sources, "overall": _overall(sources, sample)}, rows


def _figures(rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """The figures of one source."""
    bits, sizes = [row["bits"] for row in rows], [row["bytes"] for row in rows]
    stderr = ratio_stderr(bits, sizes, seed)
    return {
        "bits_per_byte": sum(bits) / sum(sizes),
        **({} if stderr is None else {"stderr": stderr}),
        "documents": len(rows),
        "bytes": sum(sizes),
        "tokens": sum(row["tokens"] for row in rows),
    }


def _overall(sources: dict[str, dict[str, Any]], sample: Sample) -> dict[str, Any]:
    """The sources' figures, weighed by their held-out bytes."""
    total = sum(sample.source_bytes.values())
    shares = {source: size / total for source, size in sample.source_bytes.items()}
    overall: dict[str, Any] = {"bits_per_byte": sum(share * sources[name]["bits_per_byte"] for name, share in shares.items())}
    if all("stderr" in figures for figures in sources.values()):
        overall["stderr"] = math.sqrt(sum((share * sources[name]["stderr"]) ** 2 for name, share in shares.items()))
    for key in ("documents", "bytes", "tokens"):
        overall[key] = sum(figures[key] for figures in sources.values())
    return overall
