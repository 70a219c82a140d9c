"""From a source of the recipe to its records: paths, formats, and one generator a format.

Nothing here stops a run: what cannot be read becomes a `Skip` with its reason, which the funnel counts. Records come in a
fixed order (paths as listed, files of a folder sorted, records as they stand), which everything after relies on.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from herdbook.corpus.config import Format, Source
from herdbook.corpus.records import Record, Skip, is_binary
from herdbook.corpus.warc import looks_like_html, read_warc
from herdbook.errors import UserError
from herdbook.facts.licenses import UNKNOWN, find_expression

_SUFFIXES: dict[str, tuple[str, ...]] = {
    "warc": (".warc", ".warc.gz", ".warc.zst"),
    "wet": (".wet", ".wet.gz"),
    "html": (".html", ".htm", ".xhtml", ".html.gz"),
    "jsonl": (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst"),
    "parquet": (".parquet",),
}
Item = Record | Skip


def source_files(source: Source) -> tuple[list[tuple[Path, Path]], list[Skip]]:
    """The files of a source as (file, the folder its id is relative to), in order; and the paths that lead nowhere."""
    files: list[tuple[Path, Path]] = []
    missing: list[Skip] = []
    for text in source.paths:
        path = Path(text).expanduser()
        if path.is_dir():
            found = [(file, path) for file in sorted(path.rglob("*")) if _wanted(file, path, source.format)]
        elif path.exists():
            found = [(path, path.parent)] if path.is_file() else []  # devices and pipes may never end
        else:
            matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207  the pattern may be absolute
            found = [(file, file.parent) for file in matches if file.is_file()]
        odd = [file for file, _ in found if not _is_text(str(file))]
        missing += [Skip("name_not_utf8", repr(str(file))) for file in odd]
        found = [(file, root) for file, root in found if file not in odd]
        if not found and not odd:
            missing.append(Skip("no_files" if path.is_dir() else "missing_path", text))
        files += found
    return files, missing


def _is_text(name: str) -> bool:
    """Whether a file's name is UTF-8, so that ids and ledgers can hold it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _wanted(file: Path, root: Path, format_: Format) -> bool:
    if not file.is_file() or any(part.startswith(".") for part in file.relative_to(root).parts):
        return False
    return format_ == "auto" or file.name.lower().endswith(_SUFFIXES[format_])


def read_files(source: Source, max_bytes: int) -> Iterator[Item]:
    """All records of a source that has paths."""
    files, missing = source_files(source)
    yield from missing
    for path, root in files:
        try:
            kind = detect_format(path) if source.format == "auto" else source.format
            yield from read_file(path, root, kind, source, max_bytes)
        except PermissionError:
            yield Skip("no_permission", str(path))
        except IsADirectoryError:
            yield Skip("missing_path", str(path))


def read_file(path: Path, root: Path, kind: str, source: Source, max_bytes: int) -> Iterator[Item]:
    """The records of one file whose format is known; a `Skip` for one that is not."""
    if kind in ("warc", "wet"):
        yield from read_warc(path, source.name, max_bytes)
    elif kind == "html":
        yield from _read_html(path, root, source, max_bytes)
    elif kind == "jsonl":
        yield from read_jsonl(path, source, max_bytes)
    elif kind == "parquet":
        yield from _read_parquet(path, source)
    else:
        yield Skip(kind, str(path), path.stat().st_size)


def detect_format(path: Path) -> str:
    """The format of a file by its first bytes: a name of `_SUFFIXES`, else the reason why it can't be read."""
    with path.open("rb") as stream:
        head = stream.read(4096)
    if not head:
        return "empty_file"
    if head[:3] == b"\x1f\x8b\x08":
        try:
            head = zlib.decompressobj(31).decompress(head, 4096)
        except zlib.error:
            return "broken_file"
    elif head[:4] == b"\x28\xb5\x2f\xfd":
        return "warc" if ".warc" in path.name.lower() else "jsonl"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"WARC/"):
        return "warc"
    if head.startswith(b"filedesc://"):
        return "old_arc_format"
    if head.startswith(b"PAR1"):
        return "parquet"
    if text.startswith(b"{"):
        return "jsonl"
    if not is_binary(head) and (looks_like_html(head) or (path.name.lower().endswith(_SUFFIXES["html"]) and b"<" in head)):
        return "html"
    return "warc" if path.name.lower().endswith(_SUFFIXES["warc"] + _SUFFIXES["wet"]) else "unknown_format"


def open_bytes(path: Path) -> BinaryIO:
    """A file's content as a stream, decompressed when it is gzip or zstd."""
    with path.open("rb") as stream:
        magic = stream.read(4)
    if magic[:2] == b"\x1f\x8b":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if magic == b"\x28\xb5\x2f\xfd":
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True, closefd=True)
        return cast(BinaryIO, io.BufferedReader(cast(Any, reader), 1 << 18))
    return path.open("rb")


def _broken_stream_errors() -> tuple[type[Exception], ...]:
    import zstandard

    return (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError)


def _read_html(path: Path, root: Path, source: Source, max_bytes: int) -> Iterator[Item]:
    try:
        with open_bytes(path) as stream:
            body = stream.read(max_bytes + 1)
    except _broken_stream_errors() as error:
        yield Skip("broken_file", str(path), detail=str(error))
        return
    name = path.relative_to(root).as_posix()
    if len(body) > max_bytes:
        yield Skip("too_large", str(path), path.stat().st_size)
    elif not body.strip():
        yield Skip("empty_file", str(path))
    else:
        yield Record(f"{source.name}/{name}", body, "html", url=name)


def read_jsonl(path: Path, source: Source, max_bytes: int) -> Iterator[Item]:
    """The records of a file with one JSON object a line."""
    try:
        with open_bytes(path) as stream:
            for number, line in enumerate(_lines(stream, max_bytes), 1):
                where = f"{path}:{number}"
                if line is None:
                    yield Skip("too_large", where, max_bytes)
                elif line.strip():
                    yield _from_line(line, where, f"{source.name}/{path.name}:{number}", source)
    except _broken_stream_errors() as error:
        yield Skip("broken_file", str(path), detail=str(error))


def _lines(stream: BinaryIO, max_bytes: int) -> Iterator[bytes | None]:
    """Lines of at most `max_bytes`, None for a longer one, of which no more than that is ever in memory."""
    while line := stream.readline(max_bytes + 1):
        if len(line) <= max_bytes or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(max_bytes)
        yield None


def _from_line(line: bytes, where: str, fallback_id: str, source: Source) -> Item:
    try:
        row = json.loads(line.lstrip(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        return Skip("bad_json", where, len(line), str(error))
    if not isinstance(row, dict):
        return Skip("bad_json", where, len(line), f"a {type(row).__name__}, not an object")
    return _from_row(row, where, fallback_id, source)


def _from_row(row: dict[str, Any], where: str, fallback_id: str, source: Source) -> Item:
    text = row.get(source.text_key)
    if not isinstance(text, str):
        return Skip("no_text", where, detail=f"no text under {source.text_key!r}; keys here: {', '.join(map(str, row))}")

    def value(key: str) -> str | None:
        found = row.get(key)
        return None if found is None or found == "" else scrub(str(found))

    license_id = value(source.license_key)
    return Record(value(source.id_key) or fallback_id, text, "text", value(source.url_key), value(source.date_key),
                  license=known_license(license_id) if license_id else None)  # fmt: skip


def scrub(text: str) -> str:
    """Text that can be written as UTF-8: halves of surrogate pairs, which JSON can carry, become U+FFFD."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


@cache
def known_license(name: str) -> str:
    """The SPDX id of a document's own licence; unknown for a name that is not in the table."""
    try:
        return find_expression(name).id
    except UserError:
        return UNKNOWN


def _read_parquet(path: Path, source: Source) -> Iterator[Item]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    keys = [source.text_key, source.id_key, source.url_key, source.date_key, source.license_key]
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if source.text_key not in names:
                yield Skip("no_text", str(path), detail=f"no column {source.text_key!r}; columns here: {', '.join(names)}")
                return
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=[key for key in dict.fromkeys(keys) if key in names]):
                for row in batch.to_pylist():
                    number += 1
                    yield _from_row(row, f"{path} row {number}", f"{source.name}/{path.name}:{number}", source)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, PermissionError):
            raise
        yield Skip("broken_file", str(path), detail=str(error))
