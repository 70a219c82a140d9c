"""Whole gzip members unfolded at once, where that is safe; and what both ways of unfolding them share.

Inflating takes most of the time of reading an archive, and fastwarc, which is installed anyway, has an inflate twice as fast as
zlib's. It cannot be left alone with a file: it gives what is cut off without a word, and reads one member into the next. So it
is asked only for what can be shown: a member counts if it unfolds to as much as its last bytes say, its checksum is right, and
the next one, of which all is there too, begins where the next magic is. Everything else (the last member of a file, large ones,
damage, padding) is left to the slow way, and what is read never depends on the way.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any, BinaryIO, NamedTuple

GZIP = b"\x1f\x8b\x08"
BLOCK = 1 << 20
_MARK = re.compile(re.escape(GZIP))  # finds faster than `bytes.find`
_LARGEST = 2 << 20  # what a member may unfold to
_LEAST = 18  # bytes of the smallest member: a header without names, and the checksum and length
PROBE = 4096  # packed bytes at the beginning of a member in which a record has to show itself


class Raw:
    """The packed bytes of a file, one block at a time."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._begin, self._block = stream, 0, b""

    def read(self, pos: int, count: int) -> bytes:
        """Up to `count` bytes at `pos`, fewer only at the end of the file."""
        if not self._begin <= pos <= pos + count <= self._begin + len(self._block):
            self._load(pos, max(count, BLOCK))
        return self._block[pos - self._begin : pos - self._begin + count]

    def find(self, mark: bytes, pos: int, end: int | None) -> int | None:
        """Where `mark` first begins in `[pos, end)`."""
        while end is None or pos < end:
            if not self._begin <= pos <= pos + len(mark) <= self._begin + len(self._block):
                self._load(pos, BLOCK)
            stop = None if end is None else end - self._begin + len(mark) - 1
            found = self._block.find(mark, pos - self._begin, stop)
            if found >= 0:
                return self._begin + found
            if len(self._block) - (pos - self._begin) < len(mark):
                return None
            pos = self._begin + len(self._block) - len(mark) + 1
        return None

    def _load(self, pos: int, count: int) -> None:
        self._stream.seek(pos)
        self._begin, self._block = pos, self._stream.read(count)


class Member(NamedTuple):
    """What a member unfolds to, and where it ends in the file."""

    data: bytes
    end: int


class Ahead:
    """Unfolds members one after the other, always one more than is asked for.

    Args:
        begins: whether a record begins with these bytes; what is true of some bytes is true of more.
    """

    def __init__(self, raw: Raw, begins: Callable[[bytes], bool]) -> None:
        self._raw, self._begins = raw, begins
        self._block, self._base = b"", 0
        self._reader: Any = None
        self._next: tuple[int, Member | None] = (-1, None)  # where the reader stands after it, and what was read there

    def unit(self, start: int) -> Member | None:
        """The member at `start`, a known one, if it is intact and all of its unit: a record begins with the next one."""
        if _reader_type() is None:
            return None
        if not self._base <= start < self._base + len(self._block):
            self._load(start)
        unit = self._pair(start)
        if unit is None and start - self._base > BLOCK // 2:  # the next one may go on behind the block
            self._load(start)
            unit = self._pair(start)
        return unit

    def _load(self, start: int) -> None:
        self._block, self._base, self._next = self._raw.read(start, BLOCK), start, (-1, None)

    def _pair(self, start: int) -> Member | None:
        at, member = self._next
        self._next = (-1, None)
        try:
            if at != start or member is None:
                packed = io.BytesIO(self._block)
                packed.seek(start - self._base)
                self._reader = _reader_type()(packed)
                member = self._unfold(start)
            after = member and self._unfold(member.end)  # which shows that the member's checksum and length are right
        except OSError:
            return None
        if member is None or after is None or not self._is_start(member.end, after):
            return None
        self._next = member.end, after
        return member

    def _unfold(self, at: int) -> Member | None:
        """The member at which the reader stands, not verified."""
        begin = at - self._base
        mark = _MARK.search(self._block, begin + _LEAST)
        if mark is None or self._block[begin + 3]:  # fields in the header are for the slow way
            return None
        end = mark.start()
        size = int.from_bytes(self._block[end - 4 : end], "little")
        if not 0 < size <= _LARGEST:
            return None
        data = self._reader.read(size)
        if len(data) != size or self._reader.frame_start_position() != begin:
            return None
        return Member(data, end + self._base)

    def _is_start(self, at: int, member: Member) -> bool:
        if not self._begins(member.data[:2048]):
            return False
        if member.end - at <= PROBE:
            return True
        # Blocks without content may stand before the record, and the slow way looks at no more than this.
        packed = self._block[at - self._base : at - self._base + PROBE]
        return any(self._begins(unfold(packed, count) or b"") for count in (5, 2048))


def unfold(head: bytes, count: int = 2048) -> bytes | None:
    """The first bytes that a gzip member unfolds to, up to where it is damaged; None for what is no member."""
    if not head.startswith(GZIP):
        return None
    inflate, out = zlib.decompressobj(31), b""
    try:
        for at in range(0, len(head), 512):
            out += inflate.decompress(head[at : at + 512], count - len(out))
            if len(out) == count or inflate.eof:
                break
    except zlib.error:
        return out or None
    return out


@cache
def _reader_type() -> Any:
    """fastwarc's reader of gzip; None in versions that do not have it."""
    try:
        from fastwarc.stream_io import GzipReader
    except ImportError:
        return None
    return GzipReader if hasattr(GzipReader, "frame_start_position") else None
