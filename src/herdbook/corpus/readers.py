"""From a source of the recipe to its records: one generator a format, each of which can read a piece of a file.

Nothing here stops a run: what cannot be read becomes a `Skip` with its reason, which the funnel counts. Records come in a
fixed order (paths as listed, files of a folder sorted, records as they stand), which everything after relies on. Reading the
pieces `[begin, end)` of a file one after the other gives what reading the whole gives, whatever the file holds.
"""

from __future__ import annotations

import datetime
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from herdbook.corpus.arc import Arc, read_arc
from herdbook.corpus.config import Source
from herdbook.corpus.located import Located, locate
from herdbook.corpus.places import SUFFIXES, base_name, find_places, is_url, open_place, relative_name
from herdbook.corpus.records import Record, Skip, is_binary
from herdbook.corpus.warc import GZIP, ZSTD, Warc, looks_like_html, read_record, read_warc, unfold
from herdbook.errors import UserError
from herdbook.facts.licenses import UNKNOWN, find_expression

Item = Record | Skip
_MAX_VALUE = 8192  # characters of an id, an address or a date
_MAX_ROW_GROUP = 8 << 30  # bytes that a column of a parquet row group may unfold to


def source_files(source: Source) -> tuple[list[tuple[Path, Path]], list[Skip]]:
    """The local files of a source as (file, the folder its id is relative to), in order; and the paths that lead nowhere."""
    places, missing = find_places(source)
    return [(Path(place.name), Path(place.root)) for place in places if not is_url(place.name)], missing


def read_files(source: Source, max_bytes: int) -> Iterator[Item]:
    """All records of a source that has paths."""
    places, missing = find_places(source)
    yield from missing
    for place in places:
        yield from read_place(place.name, place.root, source.format, source, max_bytes)


def read_place(
    place: str, root: str, kind: str, source: Source, max_bytes: int, begin: int = 0, end: int | None = None
) -> Iterator[Item]:
    """The records of a file that begin in its bytes `[begin, end)`; a `Skip` for a file that can't be read.

    Args:
        root: the folder that ids of whole files are relative to.
        kind: a format, or `auto` to find it out.
        begin, end: of gzip archives with a member a record, of uncompressed jsonl and of parquet (by the first byte of a row
            group), any bytes; of others, everything begins at byte 0.
    """
    try:
        for item in _read(place, root, kind, source, max_bytes, begin, end):
            yield locate(item, place)
    except OSError as error:
        reason = _reason(error)
        if begin == 0 or reason in ("unreachable", "broken_file"):
            detail = "" if reason in ("no_permission", "missing_path") else str(error)[:300]
            yield Located(reason, place, detail=detail, file=place)


def _reason(error: OSError) -> str:
    from herdbook.corpus.places import Unreachable

    if isinstance(error, Unreachable):
        return "unreachable"
    if isinstance(error, PermissionError):
        return "no_permission"
    return "missing_path" if isinstance(error, IsADirectoryError | FileNotFoundError | NotADirectoryError) else "broken_file"


def _read(place: str, root: str, kind: str, source: Source, max_bytes: int, begin: int, end: int | None) -> Iterator[Item]:
    if kind in ("auto", "warc", "wet"):  # one that is called WARC may be the older ARC
        found = detect_format(place)
        kind = found if kind == "auto" or found == "arc" else kind
    if kind in ("warc", "wet"):
        yield from read_warc(place, source.name, max_bytes, begin, end)
    elif kind == "arc":
        yield from read_arc(place, source.name, max_bytes, begin, end)
    elif kind == "jsonl":
        yield from read_jsonl(place, source, max_bytes, begin, end)
    elif kind == "parquet":
        yield from _read_parquet(place, source, max_bytes, begin, end)
    elif begin > 0:
        return
    elif kind == "html":
        yield from _read_html(place, root, source, max_bytes)
    else:
        with open_place(place) as stream:
            yield Skip(kind, place, stream.seek(0, io.SEEK_END))


def read_one(place: str, root: str, kind: str, source: Source, max_bytes: int, offset: int) -> Item | None:
    """What the `offset` of a record leads to in its file; None when nothing is read from there. Raises OSError."""
    if kind in ("auto", "warc", "wet"):
        found = detect_format(place)
        kind = found if kind == "auto" or found == "arc" else kind
    if kind in ("warc", "wet", "arc"):
        return read_record(place, source.name, Arc() if kind == "arc" else Warc(), max_bytes, offset)
    if kind == "jsonl":
        return next(_jsonl_items(place, source, max_bytes, offset, offset + 1, anywhere=True), None)
    if kind == "parquet":
        return next(_read_parquet(place, source, max_bytes, 0, None, row=offset), None)
    return next(_read_html(place, root, source, max_bytes), None) if kind == "html" else None


def detect_format(path: Path | str) -> str:
    """The format of a file by its first bytes, else the reason why it can't be read. Raises OSError."""
    name = base_name(str(path)).lower()
    with open_place(str(path)) as stream:
        head = stream.read(4096)
    if not head:
        return "empty_file"
    if head[:3] == GZIP:
        inner = unfold(head, 4096)
        if inner is None:
            return "broken_file"
        if not inner and len(head) < 4096:
            return "empty_file"
        head = inner
    elif head[:4] == ZSTD:
        return "warc" if ".warc" in name else "arc" if ".arc" in name else "jsonl"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"WARC/"):
        return "warc"
    if head.startswith(b"filedesc://") or Arc().begins(head):
        return "arc"
    if head.startswith(b"PAR1"):
        return "parquet"
    if text.startswith(b"{"):
        return "jsonl"
    if not is_binary(head) and (looks_like_html(head) or (name.endswith(SUFFIXES["html"]) and b"<" in head)):
        return "html"
    if name.endswith(SUFFIXES["arc"]):
        return "arc"
    return "warc" if name.endswith(SUFFIXES["warc"] + SUFFIXES["wet"]) else "unknown_format"


class _GzipFile(gzip.GzipFile):
    """A gzip stream that closes the file it reads."""

    def __init__(self, packed: BinaryIO) -> None:
        super().__init__(fileobj=packed, mode="rb")
        self._packed = packed

    def close(self) -> None:
        super().close()
        self._packed.close()


def open_bytes(path: Path | str) -> BinaryIO:
    """A file's content as a stream, decompressed when it is gzip or zstd. Raises OSError."""
    return _open(str(path))[0]


def _open(place: str) -> tuple[BinaryIO, bool]:
    """A file's content as a stream, and whether it is decompressed on the way."""
    stream = open_place(place)
    magic = stream.read(4)
    stream.seek(0)
    if magic[:2] == GZIP[:2]:
        return cast(BinaryIO, _GzipFile(stream)), True
    if magic == ZSTD:
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True, closefd=True)
        return cast(BinaryIO, io.BufferedReader(cast(Any, reader), 1 << 18)), True
    return stream, False


def _broken_stream_errors() -> tuple[type[Exception], ...]:
    import zstandard

    return (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError)


def _read_html(place: str, root: str, source: Source, max_bytes: int) -> Iterator[Item]:
    try:
        with open_bytes(place) as stream:
            body = stream.read(max_bytes + 1)
    except _broken_stream_errors() as error:
        yield Skip("broken_file", place, detail=str(error))
        return
    name = relative_name(place, root)
    if len(body) > max_bytes:
        yield Located("too_large", place, len(body), file=place, offset=0)
    elif not body.strip():
        yield Located("empty_file", place, file=place, offset=0)
    else:
        yield Record(f"{source.name}/{name}", body, "html", url=name, file=place, offset=0)


def read_jsonl(path: Path | str, source: Source, max_bytes: int, begin: int = 0, end: int | None = None) -> Iterator[Item]:
    """The records of a file with one JSON object a line.

    Args:
        begin, end: of an uncompressed file, read the lines whose first byte is one of these; of others, all or nothing.

    Raises OSError when the file can't be opened or read.
    """
    yield from _jsonl_items(str(path), source, max_bytes, begin, end)


def _jsonl_items(
    place: str, source: Source, max_bytes: int, begin: int, end: int | None, anywhere: bool = False
) -> Iterator[Item]:
    """The records of lines; with `anywhere`, those of a compressed file from a byte of what it unfolds to."""
    name = base_name(place)
    try:
        stream, packed = _open(place)
        with stream:
            if packed and not anywhere:
                if begin > 0:
                    return
                end = None
            for number, (at, line) in enumerate(_lines(stream, begin, end, max_bytes), 1):
                where = f"{place}:{number}" if begin == 0 else f"{place} at byte {at}"
                if line is None:
                    yield Located("too_large", where, max_bytes, file=place, offset=at)
                elif line.strip():
                    yield locate(_from_line(line, where, f"{source.name}/{name}@{at}", source, place, at), place, at)
    except _broken_stream_errors() as error:
        yield Skip("broken_file", place, detail=str(error)[:300])


def _lines(stream: BinaryIO, begin: int, end: int | None, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """Lines that begin in `[begin, end)` with their first byte; None for one above `max_bytes`, which is never held."""
    at = 0
    if begin > 0:
        at = begin - 1
        _pass_over(stream, at)
        while (part := stream.readline(1 << 16)) and not part.endswith(b"\n"):
            at += len(part)
        at += len(part)
    while (end is None or at < end) and (line := stream.readline(max_bytes + 1)):
        first, at = at, at + len(line)
        if len(line) <= max_bytes or line.endswith(b"\n"):
            yield first, line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(1 << 16)
            at += len(line)
        yield first, None


def _pass_over(stream: BinaryIO, count: int) -> None:
    """Go to a byte; what is compressed and cannot seek is read."""
    try:
        stream.seek(count)
    except (OSError, ValueError):
        while count > 0 and (part := stream.read(min(count, 1 << 18))):
            count -= len(part)


def _from_line(line: bytes, where: str, fallback_id: str, source: Source, place: str, at: int) -> Item:
    try:
        row = json.loads(line.lstrip(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        return Skip("bad_json", where, len(line), str(error)[:300])
    if not isinstance(row, dict):
        return Skip("bad_json", where, len(line), f"a {type(row).__name__}, not an object")
    return _from_row(row, where, fallback_id, source, place, at)


def _from_row(row: dict[str, Any], where: str, fallback_id: str, source: Source, place: str, at: int) -> Item:
    text = row.get(source.text_key)
    if not isinstance(text, str):
        keys = ", ".join(str(key)[:50] for key, _ in zip(row, range(20), strict=False))
        return Skip("no_text", where, detail=scrub(f"no text under {source.text_key!r}; keys here: {keys}"))

    def value(key: str) -> str | None:
        found = row.get(key)
        if found is None or found == "" or not isinstance(found, str | int | float | datetime.date):
            return None
        name = scrub(str(found))
        return name if len(name) <= _MAX_VALUE else None

    license_id = value(source.license_key)
    return Record(value(source.id_key) or fallback_id, text, "text", value(source.url_key), value(source.date_key),
                  license=known_license(license_id) if license_id else None, file=place, offset=at)  # fmt: skip


def scrub(text: str) -> str:
    """Text that can be written as UTF-8: halves of surrogate pairs, which JSON can carry, become U+FFFD."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


@lru_cache(4096)
def known_license(name: str) -> str:
    """The SPDX id of a document's own licence; unknown for a name that is not in the table."""
    try:
        return find_expression(name).id
    except UserError:
        return UNKNOWN


def _read_parquet(
    place: str, source: Source, max_bytes: int, begin: int, end: int | None, row: int | None = None
) -> Iterator[Item]:
    """The records of the row groups whose first byte lies in `[begin, end)`, or the one of `row`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_place(place) as stream:
        try:
            file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20)
            names = file.schema_arrow.names
            if source.text_key in names and pa.types.is_string(file.schema_arrow.field(source.text_key).type):
                # One long text that all rows share stays one: a small file could name gigabytes in this way.
                file = pq.ParquetFile(
                    stream, metadata=file.metadata, read_dictionary=[source.text_key], pre_buffer=False, buffer_size=1 << 20
                )
            groups = _row_groups(file, stream)
        except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
            _again_if_ours(error)
            if begin == 0:
                yield Skip("broken_file", place, detail=str(error)[:300])
            return
        if source.text_key not in names:
            if begin == 0:
                columns = ", ".join(name[:50] for name in names[:20])
                yield Skip("no_text", place, detail=scrub(f"no column {source.text_key!r}; columns here: {columns}"))
            return
        for first_byte, group, first_row, rows in groups:
            wanted = begin <= first_byte and (end is None or first_byte < end)
            if row is None and wanted:
                yield from _row_group(file, group, first_row, place, source, max_bytes)
            elif row is not None and first_row <= row < first_row + rows:
                yield from _row_group(file, group, first_row, place, source, max_bytes, row)
                return


def _again_if_ours(error: BaseException) -> None:
    """Raise an error of the file system or the network again, which says nothing about the file's content."""
    from herdbook.corpus.places import Unreachable

    if isinstance(error, Unreachable | PermissionError):
        raise error


def _row_groups(file: Any, stream: BinaryIO) -> list[tuple[int, int, int, int]]:
    """Of each row group: its first byte, its number, its first row and how many it has; in the order of the first bytes."""
    size = stream.seek(0, io.SEEK_END)
    groups, first_row = [], 0
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        offsets = []
        for index in range(min(group.num_columns, 1)):
            column = group.column(index)
            offsets += [offset for offset in (column.dictionary_page_offset, column.data_page_offset) if offset is not None]
        first_byte = min(max(min(offsets, default=0), 0), max(size - 1, 0))  # metadata may say anything
        groups.append((first_byte, number, first_row, max(0, group.num_rows)))
        first_row += max(0, group.num_rows)
    return sorted(groups)


def _row_group(
    file: Any, group: int, first_row: int, place: str, source: Source, max_bytes: int, only: int | None = None
) -> Iterator[Item]:
    import pyarrow as pa

    names = file.schema_arrow.names
    keys = [source.text_key, source.id_key, source.url_key, source.date_key, source.license_key]
    columns = [key for key in dict.fromkeys(keys) if key in names]
    about = f"{place} row group {group}"
    try:
        meta = file.metadata.row_group(group)
        unfolded = max((meta.column(index).total_uncompressed_size for index in range(meta.num_columns)), default=0)
        if unfolded > _MAX_ROW_GROUP:
            yield Skip("too_large", about, unfolded)
            return
        number = first_row
        for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=columns):
            arrays = dict(zip(batch.schema.names, batch.columns, strict=True))
            for index in range(batch.num_rows):
                if only is None or number == only:
                    yield locate(_from_arrays(arrays, index, number, place, source, max_bytes), place, number)
                number += 1
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        _again_if_ours(error)
        yield Skip("broken_file", about, detail=str(error)[:300])


def _from_arrays(arrays: dict[str, Any], index: int, number: int, place: str, source: Source, max_bytes: int) -> Item:
    """A row of a batch. Values are looked at one by one, since a dictionary may hold a large one for all rows."""
    where = f"{place} row {number + 1}"
    row: dict[str, Any] = {}
    for key, array in arrays.items():
        cell = array[index]
        cell = getattr(cell, "value", cell) if hasattr(cell, "index") else cell  # what a dictionary's index stands for
        size = len(cell.as_buffer() or b"") if hasattr(cell, "as_buffer") and cell.is_valid else 0
        if size > max_bytes:
            return Skip("too_large", where, size)
        try:
            row[key] = cell.as_py() if cell is not None else None
        except (ValueError, OverflowError) as error:  # no UTF-8, dates out of range
            if key == source.text_key:
                return Skip("not_text", where, size, str(error)[:300])
    return _from_row(row, where, f"{source.name}/{base_name(place)}:{number + 1}", source, place, number)
