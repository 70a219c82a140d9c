"""Rows of an evaluation set's file: jsonl, plain or compressed, or parquet."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from herdbook.errors import UserError

LONGEST = 2**26  # bytes of a line; a longer one is no question
_ROWS = 1024  # of a parquet file that are in memory at once


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row with its number, counted from 1.

    Raises UserError for a file that is neither jsonl nor parquet, for a broken one, and for a line that is no JSON object.
    """
    return _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            todo = "evaluation sets are jsonl or parquet files"
            raise UserError("this line is not a JSON object", where=f"{path}:{number}", todo=todo)
        yield number, row


def _lines(path: Path) -> Iterator[bytes]:
    import zstandard

    try:
        with _open(path) as stream:
            while line := stream.readline(LONGEST + 1):
                if len(line) > LONGEST:
                    raise UserError(f"a line is longer than {LONGEST:,} bytes", where=path)
                yield line
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise UserError(f"this compressed file is broken ({error})", where=path, todo="fetch it again") from error


def _open(path: Path) -> BinaryIO:
    stream = path.open("rb")
    magic = stream.read(4)
    stream.seek(0)
    if magic[:2] == b"\x1f\x8b":
        return cast(BinaryIO, gzip.GzipFile(fileobj=stream))
    if magic == b"\x28\xb5\x2f\xfd":
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True, closefd=True)
        return cast(BinaryIO, io.BufferedReader(cast(Any, reader)))
    return stream


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"this is not a whole parquet file ({error})", where=path) from error
