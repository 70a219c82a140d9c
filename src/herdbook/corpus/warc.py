"""WARC and WET files by fastwarc, with recovery: a broken record is counted and the next whole one is found behind it.

fastwarc streams, so a record of any size costs no memory until its payload is read, and payloads above the limit are not. It
ends quietly where a file is cut off and stops with an error where a gzip member is damaged; the first shows as a payload
shorter than announced, the second is mended by looking for the next gzip member (or, uncompressed, the next version line)
that begins a record.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from herdbook.corpus.records import Record, Skip, is_binary

_GZIP = b"\x1f\x8b\x08"
_PLAIN = b"WARC/1."
_CHUNK = 1 << 20
_HTML = ("text/html", "application/xhtml+xml", "application/xml+xhtml")


def read_warc(path: Path, source: str, max_bytes: int) -> Iterator[Record | Skip]:
    """The pages of one WARC, or texts of one WET file, in file order; what is broken, binary or too large as `Skip`."""
    from fastwarc.warc import ArchiveIterator

    with path.open("rb") as stream:
        magic = stream.read(3)
        if not magic:
            yield Skip("empty_file", str(path))
            return
        offset: int | None = 0
        while offset is not None:
            stream.seek(offset)
            last: int | None = None
            item: Record | Skip | None = None
            try:
                for record in ArchiveIterator(stream, parse_http=False):
                    last = record.stream_pos
                    for item in _one(record, path, source, max_bytes):
                        yield item
            except _BodyError as error:
                yield Skip("broken_record", error.where, detail=error.detail)
            except (OSError, ValueError) as error:
                if last is not None:
                    yield Skip("broken_record", f"{path} after byte {last}", detail=str(error))
                elif offset == 0:
                    yield Skip("not_warc", str(path), detail=str(error))
            else:
                told = isinstance(item, Skip) and item.reason == "truncated_record"
                if magic == _GZIP and not told and _is_cut_off(stream, last or 0):
                    yield Skip("truncated_record", str(path), detail="the gzip stream ends early")
                return
            offset = _next_record(stream, (offset if last is None else last) + 1, gzipped=magic == _GZIP)


class _BodyError(Exception):
    def __init__(self, where: str, detail: str) -> None:
        super().__init__(where)
        self.where, self.detail = where, detail


def _one(record: Any, path: Path, source: str, max_bytes: int) -> Iterator[Record | Skip]:
    from fastwarc.warc import WarcRecordType as Type

    if record.record_type not in (Type.response, Type.resource, Type.conversion):
        return
    headers = record.headers
    url = (headers.get("WARC-Target-URI") or "").strip("<> ") or None
    where = url or f"{path} at byte {record.stream_pos}"
    charset = content_type = None
    encodings: tuple[str, ...] = ()
    if record.is_http:
        try:
            record.parse_http(quirks_mode=True)
        except (OSError, ValueError) as error:
            yield Skip("broken_record", where, detail=f"HTTP headers: {error}")
            return
        http = record.http_headers
        status = getattr(http, "status_code", None)
        if status is not None and status != 200:
            yield Skip("http_status", where, record.content_length, str(status))
            return
        content_type, charset = record.http_content_type, record.http_charset
        encodings = _encodings(http)
    else:
        content_type = (headers.get("Content-Type") or "").split(";")[0].strip()
    body_or_skip = _body(record, where, max_bytes)
    if isinstance(body_or_skip, Skip):
        yield body_or_skip
        return
    kind = _kind(content_type, body_or_skip, bool(encodings))
    if kind is None:
        yield Skip("not_html", where, len(body_or_skip), str(content_type))
        return
    name = (headers.get("WARC-Record-ID") or f"{path.name}:{record.stream_pos}").strip("<>").removeprefix("urn:uuid:")
    yield Record(f"{source}/{name}", body_or_skip, "html" if kind == "html" else "text", url, headers.get("WARC-Date"),
                 charset=charset, encodings=encodings)  # fmt: skip


def _encodings(http: Any) -> tuple[str, ...]:
    """Content encodings and then the transfer encoding, in the order they were applied."""
    names = f"{http.get('Content-Encoding') or ''},{http.get('Transfer-Encoding') or ''}".lower().split(",")
    return tuple(name.strip() for name in names if name.strip() not in ("", "identity"))


def _body(record: Any, where: str, max_bytes: int) -> bytes | Skip:
    expected = record.content_length
    if expected > max_bytes:
        return Skip("too_large", where, expected)
    if expected <= 0:
        return Skip("empty_record", where)
    try:
        body = bytes(record.reader.read())
    except (OSError, ValueError) as error:
        raise _BodyError(where, str(error)) from error
    if len(body) < expected:
        return Skip("truncated_record", where, len(body), f"{len(body)} of {expected} bytes")
    return body


def _kind(content_type: str | None, body: bytes, encoded: bool) -> str | None:
    """The kind of a record, None for what is neither HTML nor text. Without a type, or with a generic one, the body decides."""
    name = (content_type or "").lower()
    if name in _HTML:
        return "html"
    if name == "text/plain":
        return "html" if not encoded and looks_like_html(body) else "text"
    if name in ("", "application/octet-stream", "unknown", "none") and not encoded and not is_binary(body):
        return "html" if looks_like_html(body) else None
    return None


def looks_like_html(body: bytes) -> bool:
    """Whether the beginning of a body is that of an HTML page."""
    head = body[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return head.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or (head.startswith(b"<") and b"<html" in head)


def _next_record(stream: IO[bytes], start: int, *, gzipped: bool) -> int | None:
    """Where the first record at or after byte `start` begins, or None."""
    magic = _GZIP if gzipped else _PLAIN
    at = start
    stream.seek(at)
    window = stream.read(_CHUNK)
    while len(window) >= len(magic):
        found = window.find(magic)
        while found >= 0:
            if not gzipped or _begins_record(stream, at + found):
                return at + found
            found = window.find(magic, found + 1)
        at += len(window) - len(magic) + 1
        stream.seek(at)
        window = stream.read(_CHUNK)
    return None


def _begins_record(stream: IO[bytes], at: int) -> bool:
    stream.seek(at)
    try:
        return zlib.decompressobj(31).decompress(stream.read(4096), 5) == b"WARC/"
    except zlib.error:
        return False


def _is_cut_off(stream: IO[bytes], last: int) -> bool:
    """Whether the last gzip member has no end.

    `last` is where the last record began; a file whose records share one member is read again from its start.
    """
    stream.seek(last)
    if stream.read(len(_GZIP)) != _GZIP:
        last = 0
    stream.seek(last)
    rest, whole = b"", True
    inflate = zlib.decompressobj(31)
    try:
        while rest or (rest := stream.read(_CHUNK)):
            whole = False
            inflate.decompress(rest, _CHUNK)
            rest = inflate.unconsumed_tail
            if inflate.eof:
                rest, whole = inflate.unused_data.lstrip(b"\0"), True
                inflate = zlib.decompressobj(31)
        while not whole and inflate.decompress(b"", _CHUNK):  # what was held back by the limit
            whole = inflate.eof
    except zlib.error:
        return False  # something else follows the last member
    return not (whole or inflate.eof)
