"""Where something that could not be read lies, as documents say it: the file, and the place of the record in it.

Readers of archives name what they skip by its address, or by the byte it begins at; of lines and rows both are known.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeVar

from herdbook.corpus.records import Record, Skip

_BYTE = re.compile(r" (?:at|after) byte (\d+)\Z")
ItemT = TypeVar("ItemT", Record | Skip, Skip)


@dataclass(frozen=True, slots=True)
class Located(Skip):
    """A `Skip` that knows its file, and its offset there (see `Record`) where it is that of one record."""

    file: str | None = None
    offset: int | None = None


def locate(item: ItemT, place: str, offset: int | None = None) -> ItemT:
    """A `Skip` with the file it is from; records, and what is located already, as they are.

    Args:
        offset: of the record; else what the `Skip` says of bytes, if it does.
    """
    if isinstance(item, Record | Located):
        return item
    if offset is None and item.where.startswith(place) and (found := _BYTE.match(item.where, len(place))):
        offset = int(found[1])
    return Located(item.reason, item.where, item.bytes, item.detail, place, offset)
