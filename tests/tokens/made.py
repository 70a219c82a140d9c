"""Tokens folders whose every token says where it is from."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from herdbook.files import write_json
from herdbook.tokens.shards import VERSION, Piece, SourceWriter

Sources = dict[str, list[int]]  # lengths of the documents of each source, separator included


@contextmanager
def shards(
    sources: Sources, *, shard_tokens: int = 50, vocab_size: int = 60_000, mixture: dict[str, Any] | None = None
) -> Iterator[Path]:
    """A tokens folder whose n-th token within a source, counted from 1, has the id n unless it is a separator (0)."""
    with tempfile.TemporaryDirectory() as name:
        folder, rows = Path(name), {}
        for source, lengths in sources.items():
            ends = np.cumsum(lengths)
            tokens = np.arange(1, int(ends[-1]) + 1, dtype=np.uint16) if lengths else np.empty(0, np.uint16)
            tokens[(ends - lengths).astype(int)] = 0
            names = [f"{source}/{number}" for number in range(len(lengths))]
            with SourceWriter(folder, source, "uint16", shard_tokens) as writer:
                urls = [f"https://{name}" for name in names]
                writer.add(Piece(source, tokens, lengths, names, urls, ["MIT"] * len(names), sum(lengths)))
            rows[source] = writer.as_dict()
        index = {
            "version": VERSION,
            "dtype": "uint16",
            "vocab_size": vocab_size,
            "separator_id": 0,
            "tokenizer_sha256": "",
            "mixture": mixture or {},
            "sources": rows,
        }
        write_json(folder / "index.json", index)
        yield folder
