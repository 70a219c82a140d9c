"""Text to look at and to measure on: held-out documents of a corpus, or a file the user names; never a download.

Documents are encoded as training shards hold them and set one behind the other, the separator in front of each, then cut into
rows of one length.

Shapes: B rows, T tokens of a row.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from herdbook.documents import document_files, read_documents
from herdbook.errors import UserError, user_errors
from herdbook.tokenizer import Tokenizer

LINES_AT_ONCE = 200  # of a plain file, encoded together


def corpus_near(model: Path) -> Path | None:
    """The corpus with held-out documents that a model's run has made, or None: in the run's folder, or beside the model's."""
    for folder in (model / "corpus", model.parent / "corpus"):
        if folder.is_dir() and any(folder.glob("heldout*.parquet")):
            return folder
    return None


def read_texts(path: Path) -> Iterator[str]:
    """The texts at `path`: held-out documents of a corpus, rows of a parquet file, `text` of a jsonl file's lines, or a file
    of plain text, in pieces. Raises UserError that names the place where there are none, or they are broken."""
    if not path.exists():
        raise UserError("there is no such text", where=path, todo="name a corpus with held-out documents, or a file of text")
    if path.is_dir():
        document_files(path, "heldout")
        yield from (row["text"] for row in read_documents(path, "heldout", columns=["text"]))
    elif path.suffix == ".parquet":
        yield from (row["text"] for row in read_documents(path, columns=["text"]))
    else:
        with user_errors(), path.open(encoding="utf-8") as lines:
            try:
                yield from _json_lines(lines, path) if path.suffix == ".jsonl" else _pieces(lines)
            except UnicodeDecodeError as error:
                raise UserError("this file is not UTF-8 text", where=path) from error


def _json_lines(lines: Iterator[str], path: Path) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise UserError("this line is no JSON object with a `text`", where=f"{path}:{number}")
        yield row["text"]


def _pieces(lines: Iterator[str]) -> Iterator[str]:
    """A long text some lines at a time; the ids of joined pieces and of the whole differ at a cut at most."""
    while piece := "".join(itertools.islice(lines, LINES_AT_ONCE)):
        yield piece


def token_rows(path: Path, tokenizer: Tokenizer, *, tokens: int, row: int, skip: int = 0) -> Tensor:
    """Rows (B, row) of ids from the text at `path`.

    Args:
        tokens: about how many, in whole rows; fewer when the text is shorter.
        skip: so many rows from the start are left out: they are used for something else.

    Raises UserError when there is not one row.
    """
    separator = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    wanted = (max(1, tokens // row) + skip) * row
    ids: list[int] = []
    for text in read_texts(path):
        ids += [*([] if separator is None else [separator]), *tokenizer.encode_document(text)]
        if len(ids) >= wanted:
            break
    rows = min(len(ids), wanted) // row
    if rows <= skip:
        what = f"{len(ids):,} tokens" + (f", of which {skip * row:,} are for something else" if skip else "")
        raise UserError(f"there are only {what}, and a row takes {row:,}", where=path, todo="name a longer text")
    return torch.tensor(ids[: rows * row]).view(rows, row)[skip:]
