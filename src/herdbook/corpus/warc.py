"""Archives of crawls: WARC and WET (ISO 28500) here, ARC in `arc`, read from any byte on, with recovery.

The reader is our own rather than fastwarc's, because it has to be exact about bytes. In a gzip archive a *start* is a member
that unfolds to the beginning of a record (found by gzip's magic and verified by unfolding it), and a *unit* is what begins
at a start: one record as crawlers write them, or many. What a unit gives depends on nothing before it, so that damage costs
one unit, and reading pieces `[begin, end)` of a file, each the units that start in it, gives what reading the whole gives.
Pages may themselves be archives: a start inside an intact member of up to `REACH` bytes is part of a page, not a unit, and
a piece looks back twice as far to know. Archives that are not gzip are one piece.

Memory is bounded by the largest payload that is wanted; larger records are passed over, never held.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from herdbook.corpus.ahead import GZIP as GZIP
from herdbook.corpus.ahead import PROBE, Ahead, Raw
from herdbook.corpus.ahead import unfold as unfold
from herdbook.corpus.places import base_name, open_place
from herdbook.corpus.records import Record, Skip, is_binary

ZSTD = b"\x28\xb5\x2f\xfd"
REACH = 512 << 10
MAX_HEAD = 256 << 10  # bytes of a record's, or an HTTP answer's, headers
MAX_WASTE = 4 << 30  # unfolded bytes of one unit that may be passed over; more is a bomb
_FEED = 32 << 10
_CHUNK = 256 << 10
_SOMETHING_ELSE = "it begins with something else"
_HTML = ("text/html", "application/xhtml+xml", "application/xml+xhtml")
_RIGHTS = ("x-robots-tag", "tdm-reservation", "tdm-policy")
_BLANK = re.compile(rb"\n\r?\n")
_STATUS = re.compile(rb"HTTP/\d(?:\.\d)?[ \t]+(\d{3})(?!\d)")
_CHARSET = re.compile(r"""charset\s*=\s*["']?\s*([A-Za-z0-9_:.+-]{1,60})""", re.IGNORECASE)
_DUMP = re.compile(r"CC-MAIN-\d{4}-\d{2}(?!\d)")
_LENGTH = re.compile(r"[0-9]{1,18}")
_IS_PART_OF = re.compile(rb"^isPartOf:[ \t]*([A-Za-z0-9][A-Za-z0-9._-]{0,79})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)


class Head(NamedTuple):
    """What the header of a record says; `wanted` is false for requests, metadata and the like."""

    length: int
    url: str | None = None
    date: str | None = None
    name: str | None = None
    content_type: str = ""
    http: bool = False
    wanted: bool = True
    revisit: bool = False


class Malformed(Exception):  # noqa: N818  a description of the bytes
    """A record's header makes no sense; says why."""


class Grammar(Protocol):
    """How one kind of archive writes its records."""

    not_this: str  # the reason for a file that is no such archive
    mark: re.Pattern[bytes]  # a place that a record may begin at, looked for after damage

    def begins(self, head: bytes) -> bool:
        """Whether a record begins with these bytes."""

    def head(self, window: Window) -> Head:
        """Read a record's header off the window. Raises Malformed."""


class Window:
    """A stream with a look ahead: what `fill` gives, piece by piece; empty at the end."""

    def __init__(self, fill: Callable[[], bytes], pos: int = 0, data: bytes = b"") -> None:
        self._fill, self._data, self._at = fill, data, 0
        self.pos = pos  # bytes taken so far

    def peek(self, count: int) -> bytes:
        """The next `count` bytes, fewer only at the end."""
        end = self._at + count
        while len(self._data) < end and (more := self._fill()):
            self._data, self._at, end = self._data[self._at :] + more, 0, count
        return self._data[self._at : end]

    def take(self, count: int) -> bytes:
        """The next `count` bytes, gone from the window; fewer only at the end."""
        begin, end = self._at, self._at + count
        if begin <= end <= len(self._data):
            self._at = end
            self.pos += count
            return self._data[begin:end]
        parts: list[bytes] = []
        while count > 0 and (part := self.peek(1) and self._data[self._at : self._at + count]):
            self._move(len(part))
            count -= len(part)
            parts.append(part)
        return b"".join(parts)

    def drop(self, count: int) -> int:
        """Pass over `count` bytes; how many there were."""
        if 0 <= count <= len(self._data) - self._at:
            self._move(count)
            return count
        left = count
        while left > 0 and self.peek(1):
            step = min(left, len(self._data) - self._at)
            self._move(step)
            left -= step
        return count - left

    def drop_line_ends(self) -> int:
        """Pass over what stands between records, at most 64 KiB of it; how many bytes that was."""
        if self.peek(1) not in (b"\r", b"\n"):
            return 0
        count = 16
        while (head := self.peek(count)) and not head.strip(b"\r\n") and count < 1 << 16:
            count *= 16
        blank = len(head) - len(head.lstrip(b"\r\n"))
        self._move(blank)
        return blank

    def seek(self, pos: int) -> bool:
        """Go back to a byte; false for a stream that can't, and is where it was."""
        return False

    def _move(self, count: int) -> None:
        self._at += count
        self.pos += count


class FileWindow(Window):
    """A window on a file, which can go back and passes over bytes without reading them."""

    def __init__(self, stream: BinaryIO, pos: int = 0) -> None:
        super().__init__(partial(stream.read, _CHUNK), pos)
        self._stream = stream
        stream.seek(pos)

    def seek(self, pos: int) -> bool:
        self._stream.seek(pos)
        self._data, self._at, self.pos = b"", 0, pos
        return True

    def drop(self, count: int) -> int:
        held = len(self._data) - self._at
        if count <= held + _CHUNK:
            return super().drop(count)
        size = self._stream.seek(0, 2)
        begin = self.pos
        self.seek(min(begin + count, size))
        return self.pos - begin


class Members:
    """The gzip members from a start up to the next start, unfolded piece by piece.

    Attributes:
        end: where the first member ended, intact; None until then.
        error: what is wrong with the bytes, found where the pieces end.
        cut: whether that is the end of the file.
        spoiled: whether that is a damaged member.
    """

    def __init__(self, raw: Raw, start: int, grammar: Grammar) -> None:
        self._raw, self._grammar = raw, grammar
        self._inflate, self._at, self._rest = zlib.decompressobj(31), start, b""
        self._done = False
        self.end: int | None = None
        self.error: str | None = None
        self.cut = self.spoiled = False

    def __call__(self) -> bytes:
        while not self._done:
            if self._inflate.eof:
                self._next_member()
                continue
            data, fresh = self._rest, False
            if not data:
                data, fresh = self._raw.read(self._at, _FEED), True
                self._at += len(data)
            try:
                out = self._inflate.decompress(data, _CHUNK)
            except zlib.error as error:
                self.spoiled = True
                self._stop(str(error))
                return b""
            self._rest = self._inflate.unconsumed_tail
            if out:
                return out
            if fresh and not data and not self._inflate.eof:
                self.cut = True
                self._stop("the gzip stream ends early")
        return b""

    def _next_member(self) -> None:
        at = self._at - len(self._inflate.unused_data)
        if self.end is None:
            self.end = at
        while (ahead := self._raw.read(at, PROBE)) and not ahead.strip(b"\0"):
            at += len(ahead)  # tapes and some tools pad with zeros
        at += len(ahead) - len(ahead.lstrip(b"\0"))
        head = unfold(self._raw.read(at, PROBE)) if ahead else b""
        if head is None:
            self._stop("garbage after a gzip member")
        elif not ahead or self._grammar.begins(head):
            self._done = True
        else:
            self._inflate, self._at, self._rest = zlib.decompressobj(31), at, b""

    def _stop(self, error: str) -> None:
        self._done, self.error = True, error


@dataclass
class _Archive:
    """A file with what its records are told."""

    place: str
    source: str
    grammar: Grammar
    max_bytes: int
    dump: str | None = None


def read_warc(path: Path | str, source: str, max_bytes: int, begin: int = 0, end: int | None = None) -> Iterator[Record | Skip]:
    """The pages of one WARC, or texts of one WET file, in file order; what is broken, binary or too large as `Skip`.

    Args:
        begin, end: of a gzip file, read only the records whose member begins at these bytes; of others, all or nothing.

    Raises OSError when the file can't be opened or read.
    """
    yield from read_archive(str(path), source, Warc(), max_bytes, begin, end)


def read_archive(
    place: str, source: str, grammar: Grammar, max_bytes: int, begin: int = 0, end: int | None = None
) -> Iterator[Record | Skip]:
    """The pages of an archive of any grammar; see `read_warc`."""
    with open_place(place) as stream:
        magic = stream.read(4)
        archive = _Archive(place, source, grammar, max_bytes, _dump(stream, place, magic))
        if not magic:
            if begin == 0:
                yield Skip("empty_file", place)
        elif magic[:3] == GZIP:
            yield from _read_gzip(Raw(stream), archive, begin, end)
        elif begin == 0 and magic == ZSTD:
            yield from _read_zstd(stream, archive)
        elif begin == 0:
            yield from _read_stream(FileWindow(stream), archive, 0)


def read_record(place: str, source: str, grammar: Grammar, max_bytes: int, offset: int) -> Record | Skip | None:
    """What the record at `offset` (as `Record.offset` counts) is; None when nothing is read from there."""
    with open_place(place) as stream:
        magic = stream.read(4)
        archive = _Archive(place, source, grammar, max_bytes, _dump(stream, place, magic))
        raw = Raw(stream)
        items: Iterator[Record | Skip]
        if magic[:3] == GZIP and _is_start(raw, offset, grammar):
            items = _read_stream(Window(Members(raw, offset, grammar)), archive, offset)
        elif magic[:3] == GZIP or magic == ZSTD:
            items = _read_gzip(raw, archive, 0, None) if magic[:3] == GZIP else _read_zstd(stream, archive)
            return next((item for item in items if isinstance(item, Record) and item.offset == offset), None)
        else:
            items = _read_stream(FileWindow(stream, offset), archive, 0)
        item = next(items, None)
        return None if isinstance(item, Record) and item.offset != offset else item


def _read_zstd(stream: BinaryIO, archive: _Archive) -> Iterator[Record | Skip]:
    import zstandard

    stream.seek(0)
    reader = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True, closefd=False)
    try:
        yield from _read_stream(Window(lambda: bytes(reader.read(_CHUNK))), archive, 0)
    except zstandard.ZstdError as error:
        yield Skip("broken_file", archive.place, detail=str(error))


def _read_gzip(raw: Raw, archive: _Archive, begin: int, end: int | None) -> Iterator[Record | Skip]:
    if begin == 0 and not _is_start(raw, 0, archive.grammar):
        broken = unfold(raw.read(0, PROBE)) is None
        yield Skip("broken_record" if broken else archive.grammar.not_this, archive.place, detail=_SOMETHING_ELSE)
    at = max(0, begin - 2 * REACH)
    ahead = Ahead(raw, archive.grammar.begins)
    known = False  # whether a unit begins at `at`
    while (start := at if known and (end is None or at < end) else _next_start(raw, at, end, archive.grammar)) is not None:
        unit = ahead.unit(start)
        known = unit is not None
        if unit is not None:
            if start >= begin:
                yield from _read_stream(Window(bytes, data=unit.data), archive, start)
            at = unit.end if unit.end - start <= REACH else start + 1
            known = at == unit.end
            continue
        members = Members(raw, start, archive.grammar)
        if start >= begin:
            yield from _read_stream(Window(members), archive, start, members)
        else:
            while members.end is None and members():
                pass  # to see how far an intact member reaches; it ends within REACH or does not count
        reached = members.end
        at = reached if reached is not None and reached - start <= REACH else start + 1


def _next_start(raw: Raw, at: int, end: int | None, grammar: Grammar) -> int | None:
    while (found := raw.find(GZIP, at, end)) is not None:
        if _is_start(raw, found, grammar):
            return found
        at = found + 1
    return None


def _is_start(raw: Raw, at: int, grammar: Grammar) -> bool:
    head = unfold(raw.read(at, PROBE))
    return head is not None and grammar.begins(head)


def _read_stream(window: Window, archive: _Archive, base: int, members: Members | None = None) -> Iterator[Record | Skip]:
    """The records of a stream; `base` is added to their offsets."""
    grammar, wasted, told, seen = archive.grammar, 0, False, False
    while True:
        wasted += window.drop_line_ends()
        if not (ahead := window.peek(PROBE)):
            break
        begin = window.pos
        if not grammar.begins(ahead):
            if not seen and base == 0:
                yield Skip(grammar.not_this, archive.place, detail=_SOMETHING_ELSE)
            else:
                yield Skip("broken_record", f"{archive.place} after byte {base + begin}", detail="no record begins here")
            seen = told = True
            wasted += _to_next_mark(window, grammar, MAX_WASTE - wasted)
        else:
            seen = True
            try:
                head = grammar.head(window)
            except Malformed as error:
                cut = members is not None and members.cut
                reason = "truncated_record" if cut else "broken_record"
                yield Skip(reason, f"{archive.place} at byte {base + begin}", detail=str(error))
                wasted += _to_next_mark(window, grammar, MAX_WASTE - wasted)
                told = True
                continue
            after_head = window.pos
            item, passed, whole = _item(window, head, archive, base + begin)
            wasted += passed
            if isinstance(window, FileWindow) and whole and _is_astray(window, grammar) and not _is_pure(item, grammar):
                item, whole = Skip("broken_record", head.url or archive.place, detail="its length leads astray"), False
                wasted += head.length
            wasted += window.drop_line_ends()
            if members is not None and members.spoiled and isinstance(item, Record) and not window.peek(1):
                item = Skip("broken_record", item.url or archive.place, detail=members.error or "")  # its checksum is wrong
            told = isinstance(item, Skip) and item.reason in ("truncated_record", "broken_record")
            if item is not None:
                yield item
            if not whole and window.seek(after_head):  # its length may lie: look for others in what it swallowed
                wasted += _to_next_mark(window, grammar, MAX_WASTE)
        if wasted >= MAX_WASTE:
            yield Skip("bomb", f"{archive.place} at byte {base}", wasted)
            return
    if members is not None and members.error and not told:
        reason = "truncated_record" if members.cut else "broken_record"
        yield Skip(reason, f"{archive.place} after byte {base}", detail=members.error)


def _is_astray(window: Window, grammar: Grammar) -> bool:
    """Whether neither a line end, nor a record, nor the end follows."""
    ahead = window.peek(PROBE)
    return bool(ahead) and not ahead.startswith((b"\r\n", b"\n")) and not grammar.begins(ahead)


def _is_pure(item: Record | Skip | None, grammar: Grammar) -> bool:
    """Whether a record whose length is wrong swallowed no other, so that it is worth keeping."""
    return isinstance(item, Record) and isinstance(item.payload, bytes) and grammar.mark.search(item.payload) is None


def _to_next_mark(window: Window, grammar: Grammar, limit: int) -> int:
    """Pass over what is no record, up to where one may begin; how many bytes that was."""
    begin = window.pos
    window.drop(1)
    while (ahead := window.peek(_CHUNK)) and window.pos - begin < limit:
        found = grammar.mark.search(ahead)
        if found is not None and (found.start() == 0 or len(ahead) - found.start() > PROBE or len(ahead) < _CHUNK):
            window.drop(found.start())
            break
        window.drop(found.start() if found is not None else max(1, len(ahead) - PROBE) if len(ahead) == _CHUNK else len(ahead))
    return window.pos - begin


def _item(window: Window, head: Head, archive: _Archive, offset: int) -> tuple[Record | Skip | None, int, bool]:
    """A record's item, the bytes passed over for it, and whether all of the record was there."""
    where = head.url or f"{archive.place} at byte {offset}"
    if not head.wanted:
        passed = window.drop(head.length)
        whole = passed == head.length
        if head.revisit:
            return Skip("revisit", where), passed, whole
        return None if whole else Skip("truncated_record", where, passed), passed, whole
    if head.length <= 0:
        return Skip("empty_record", where), 0, True
    large = head.length > archive.max_bytes + (MAX_HEAD if head.http else 0)
    if large and not head.http:
        passed = window.drop(head.length)
        return Skip("too_large", where, head.length), passed, passed == head.length
    block = window.take(MAX_HEAD if large else head.length)
    passed = window.drop(head.length - len(block)) if large else 0
    whole = len(block) + passed == head.length
    passed += 0 if whole else len(block)
    answer = parse_http(block) if head.http else (None, [], 0)
    if answer is None:
        if not whole:
            return Skip("truncated_record", where, len(block), f"{len(block)} of {head.length} bytes"), passed, whole
        return Skip("broken_record", where, head.length, "no HTTP answer is in it"), passed, whole
    status, headers, body_at = answer
    size = head.length - body_at
    if status not in (None, 200):
        return Skip("http_status", where, max(size, 0), str(status)), passed, whole
    if size > archive.max_bytes:
        return Skip("too_large", where, size), passed, whole
    if not whole:
        return Skip("truncated_record", where, len(block), f"{len(block)} of {head.length} bytes"), passed, whole
    if size <= 0:
        return Skip("empty_record", where), passed, whole
    return _page(block[body_at:], headers, head, archive, offset, where), passed, whole


def _page(body: bytes, headers: list[tuple[str, str]], head: Head, archive: _Archive, offset: int, where: str) -> Record | Skip:
    """The page of a body, if it is one."""
    told = dict(reversed(headers))  # the first of several
    content_type = told.get("content-type", "") if head.http else head.content_type
    charset = _CHARSET.search(content_type) if head.http else None
    encodings = _encodings(told)
    media = content_type.partition(";")[0].strip()
    kind = _kind(media, body, bool(encodings))
    if kind is None:
        return Skip("not_html", where, len(body), media[:100])
    name = head.name or f"{base_name(archive.place)}:{offset}"
    return Record(
        f"{archive.source}/{name}", body, "html" if kind == "html" else "text", head.url, head.date,
        charset=charset[1].lower() if charset else None, encodings=encodings, file=archive.place, offset=offset,
        dump=archive.dump, headers=rights_headers(headers),
    )  # fmt: skip


def parse_http(block: bytes) -> tuple[int | None, list[tuple[str, str]], int] | None:
    """Status, headers (names in lower case) and where the body begins; None for what is no HTTP answer."""
    status = _STATUS.match(block)
    blank = _find_blank(block, MAX_HEAD)
    if status is None or blank is None:
        return None
    head = block[: blank[0]]
    headers = _fields(head)
    if len(headers) != head.count(b"\n") or b"\n " in head or b"\n\t" in head:
        headers = _folded(head)
    return int(status[1]), headers, blank[1]


def _find_blank(data: bytes, end: int) -> tuple[int, int] | None:
    r"""Where the first empty line is that ends by `end`: `\r?\n\r?\n`, which takes long as it may begin at any byte."""
    blank = _BLANK.search(data, 0, end)
    return blank and (blank.start() - (data[blank.start() - 1 : blank.start()] == b"\r"), blank.end())


def _fields(head: bytes) -> list[tuple[str, str]]:
    """Names in lower case, and values, of the lines after the first that have a colon."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # to be told line by line
        parts = [line.partition(b":") for line in head.split(b"\n")[1:1001]]
        return [(text_of(name).strip().lower(), text_of(value).strip()) for name, colon, value in parts if colon]
    lines = [line.partition(":") for line in text.split("\n")[1:1001]]
    return [(name.strip().lower(), value.strip()) for name, colon, value in lines if colon]


def _folded(head: bytes) -> list[tuple[str, str]]:
    """The same, with values that go on in the next line, as old servers wrote them."""
    headers: list[tuple[str, str]] = []
    for line in head.split(b"\n")[1:1001]:
        name, colon, value = line.partition(b":")
        if colon and not line.startswith((b" ", b"\t")):
            headers.append((text_of(name).strip().lower(), text_of(value).strip()))
        elif headers and line.strip():
            headers[-1] = (headers[-1][0], f"{headers[-1][1]} {text_of(line).strip()}"[:8192])
    return headers


def text_of(raw: bytes) -> str:
    """Header bytes as text that can be written: UTF-8, else Latin-1, without NUL."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return text.replace("\0", "")


def rights_headers(headers: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Those HTTP headers that state rights, eight at most, 500 characters each."""
    found = [
        (name, value[:500])
        for name, value in headers
        if name in _RIGHTS or (name == "link" and re.search(r"""rel\s*=\s*["']?license""", value[:8192], re.IGNORECASE))
    ]
    return tuple(found[:8])


def _encodings(headers: dict[str, str]) -> tuple[str, ...]:
    """Content encodings and then the transfer encoding, in the order they were applied."""
    if "content-encoding" not in headers and "transfer-encoding" not in headers:
        return ()
    names = f"{headers.get('content-encoding', '')[:1000]},{headers.get('transfer-encoding', '')[:1000]}".lower().split(",")
    return tuple(name.strip() for name in names if name.strip() not in ("", "identity"))


def _kind(content_type: str, body: bytes, encoded: bool) -> str | None:
    """The kind of a record, None for what is neither HTML nor text. Without a type, or with a generic one, the body decides."""
    name = content_type.lower()
    if name in _HTML:
        return "html"
    if name == "text/plain":
        return "html" if not encoded and looks_like_html(body) else "text"
    if name in ("", "application/octet-stream", "unknown", "none", "no-type") and not encoded and not is_binary(body):
        return "html" if looks_like_html(body) else None
    return None


def looks_like_html(body: bytes) -> bool:
    """Whether the beginning of a body is that of an HTML page."""
    head = body[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return head.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or (head.startswith(b"<") and b"<html" in head)


def _dump(stream: BinaryIO, place: str, magic: bytes) -> str | None:
    """The crawl that a file is of: what its warcinfo says it is part of, else what its path says."""
    stream.seek(0)
    head: bytes | None = stream.read(64 << 10)
    if magic[:3] == GZIP:
        head = unfold(head or b"", 64 << 10)
    elif magic == ZSTD:
        head = _unfold_zstd(head or b"", 64 << 10)
    first = re.split(rb"\r?\n\r?\n(?=WARC/)", head or b"", maxsplit=1)[0]
    part = _IS_PART_OF.search(first) if re.search(rb"(?im)^WARC-Type:[ \t]*warcinfo", first[:2000]) else None
    told = _DUMP.search(place)
    return part[1].decode() if part else told[0] if told else None


def _unfold_zstd(head: bytes, count: int) -> bytes:
    import zstandard

    try:
        return bytes(zstandard.ZstdDecompressor().stream_reader(head).read(count))
    except zstandard.ZstdError:
        return b""


class Warc:
    """The grammar of WARC 0.17 to 1.1 (ISO 28500:2017, section 4)."""

    not_this = "not_warc"
    mark = re.compile(rb"WARC/[01]\.\d{1,3}\r?\n")

    def begins(self, head: bytes) -> bool:
        return head.startswith(b"WARC/")

    def head(self, window: Window) -> Head:
        """Read a record's header off the window. Raises Malformed when it has no end, or no length that makes sense."""
        count = PROBE
        while (blank := _find_blank(ahead := window.peek(count), count)) is None:
            if len(ahead) < count or count >= MAX_HEAD:
                raise Malformed("headers without end")
            count *= 4
        window.drop(blank[1])
        fields = dict(_fields(ahead[: blank[0]])[::-1])  # the first of several
        length = fields.get("content-length", "")
        if not _LENGTH.fullmatch(length):
            raise Malformed(f"its length is {length[:40]!r}")
        kind = fields.get("warc-type", "").lower()
        content_type = fields.get("content-type", "")
        url = fields.get("warc-target-uri", "").strip("<> ")
        http = kind == "response" and url[:4].lower() == "http"
        return Head(
            int(length), url or None, fields.get("warc-date", "")[:64] or None,
            fields.get("warc-record-id", "")[:1000].strip("<>").removeprefix("urn:uuid:") or None, content_type,
            http or content_type.lower().replace(" ", "").startswith("application/http"),
            kind in ("response", "resource", "conversion"), kind == "revisit",
        )  # fmt: skip
