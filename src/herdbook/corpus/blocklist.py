"""Millions of blocked domains as one sorted array of 64-bit hashes, mapped from a file and shared by all processes.

UT1's 4.5 million domains take over 500 MB as a set of strings and 36 MB like this. Two of so many names have the same xxh3
hash with a probability of 6·10⁻⁷, and a name that is not in the list meets one that is with 2·10⁻¹³. A prepared list is a
file of its own: a mark, a line of JSON that says what it was made from, padding to 64 bytes, and the hashes, little-endian
and rising.

    build_blocklist(Path("blacklists.tar.gz"), Path("ut1.blocklist"), ["adult", "gambling"])

The lists of the university of Toulouse (UT1, Fabrice Prigent) are under a Creative Commons BY-SA licence; none comes with
herdbook.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
import xxhash

from herdbook.corpus.words import Array
from herdbook.errors import UserError
from herdbook.files import atomic_path, sha256_file, sha256_json

MARK = b"herdbook blocklist 1\n"
_KINDS = ("domains", "urls")
_PLAIN = re.compile(r"[a-z0-9.-]+")
_SCHEME = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//")
_DEEPEST = 16
_LONGEST_NAME = 253  # RFC 1035; longer ones would take time that grows with the square of it
_BROKEN = (tarfile.TarError, zlib.error, EOFError, OSError)
File = TypeVar("File")


def hash_entry(entry: str) -> int:
    """The 64 bits that stand for an entry."""
    return int(xxhash.xxh3_64_intdigest(entry.encode("utf-8", "replace")))


class Blocklist:
    """A prepared list.

    Args:
        hashes: of the entries, rising.
        made_from: source, its hash, the categories, and how many lines were no domain.
    """

    def __init__(self, hashes: Array, made_from: dict[str, Any]) -> None:
        self.made_from = made_from
        # Bisecting a view of Python integers is several times as fast as asking numpy for one value.
        self._view: memoryview[int] = memoryview(cast(Any, hashes))

    def __len__(self) -> int:
        return len(self._view)

    def __contains__(self, entry: str) -> bool:
        """Whether a normalised domain, or a normalised host with a path, is in the list itself."""
        value = hash_entry(entry)
        at = bisect_left(self._view, value)
        return at < len(self._view) and self._view[at] == value

    def match(self, host: str, rest: str) -> str | None:
        """The entry that blocks a normalised host or one of its parent domains, or a path above `rest`; None if none does."""
        for name in domains_above(host):
            if name in self:
                return name
        return next((entry for entry in _paths_above(host, rest) if entry in self), None)


def domains_above(host: str) -> Iterator[str]:
    """`a.b.example.com`, `b.example.com`, `example.com`, but not `com`."""
    yield host
    if "." not in host or host.replace(".", "").isdigit():  # the end of an IP address is no parent
        return
    at = host.find(".", max(0, len(host) - _LONGEST_NAME)) + 1
    while "." in host[at:]:
        yield host[at:]
        at = host.find(".", at) + 1


def _paths_above(host: str, rest: str) -> Iterator[str]:
    """`host/a`, `host/a/b`, … up to the path as it stands and the path with its query; each without `www.` too."""
    path, _, query = rest.partition("#")[0].partition("?")
    parts = path.strip("/").split("/", _DEEPEST)
    if not parts[0]:
        return
    for name in dict.fromkeys((host, host.removeprefix("www."))):
        for end in range(1, len(parts) + 1):
            yield f"{name}/{'/'.join(parts[:end])}"
        if query:
            yield f"{name}/{'/'.join(parts)}?{query}"


def normal_host(host: str) -> str:
    """A host name in lower case, in ASCII (IDNA), without the dot at its end; one that IDNA refuses stays in lower case."""
    name = host.strip().lower().rstrip(".")
    if name.isascii() or len(name) > _LONGEST_NAME:
        return name
    try:
        return name.encode("idna").decode("ascii")
    except UnicodeError:
        return name


def _normal_entry(line: str) -> str | None:
    """A line of a list in the form that is hashed: a domain, or a host with a path. None for one that is neither."""
    entry = line.partition("#")[0].strip().lower()
    if not _PLAIN.fullmatch(entry):
        words = entry.split()
        if not words:
            return None
        entry = _SCHEME.sub("", words[-1], count=1)  # of `0.0.0.0 example.com` (a hosts file) the second
    host, slash, path = entry.partition("/")
    host = normal_host(host.lstrip(".")).removeprefix("*.")
    path = path.rstrip("/")
    return (f"{host}/{path}" if slash and path else host) if "." in host else None


def build_blocklist(source: Path, out: Path, categories: Sequence[str] | None = None) -> Blocklist:
    """Prepare a list at `out`, whole or not at all; one that was made from the same source is opened as it is.

    Args:
        source: a folder or a tar (packed or not) in UT1's layout, `CATEGORY/domains` and `CATEGORY/urls`; or a text file with a
            domain or an address a line (the form of hosts files too).
        categories: of UT1's; None is all of them.

    Raises UserError when the source is absent or broken, has no such category, or no domain at all.
    """
    wanted = None if categories is None else sorted(set(categories))
    if not source.exists():
        raise UserError("there is no such list of domains", where=source, todo="check corpus.urls.blocklists")
    found = {"source": source.name, "sha256": _source_hash(source), "categories": wanted}
    if out.is_file() and is_prepared(out):
        known = open_blocklist(out)
        if found.items() <= known.made_from.items():
            return known
    refused = [0]

    def hashes() -> Iterator[int]:
        for line in _lines(source, wanted):
            entry = _normal_entry(line)
            if entry is not None:
                yield hash_entry(entry)
            elif line.strip() and not line.lstrip().startswith("#"):
                refused[0] += 1

    array = np.unique(np.fromiter(hashes(), np.uint64))
    if not len(array):
        raise UserError("there is no domain in this list", where=source, todo="give UT1's folder or tar, or a domain a line")
    with atomic_path(out) as aside:
        _write(aside, array, {**found, "refused": refused[0]})
    return open_blocklist(out)


def _write(path: Path, hashes: Array, made_from: dict[str, Any]) -> None:
    header = MARK + json.dumps({**made_from, "entries": len(hashes)}, sort_keys=True).encode()
    with path.open("wb") as stream:
        stream.write(header + b" " * (-(len(header) + 1) % 64) + b"\n")
        stream.write(hashes.astype("<u8").tobytes())


def is_prepared(path: Path) -> bool:
    """Whether a file is a prepared list."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(len(MARK)) == MARK


def open_blocklist(path: Path) -> Blocklist:
    """Map a prepared list into memory. Raises UserError when it is none, or is cut off."""
    if not is_prepared(path):
        raise UserError("this is no prepared list of domains", where=path, todo="build_blocklist makes one from UT1's lists")
    with path.open("rb") as stream:
        stream.readline()
        try:
            made_from = json.loads(stream.readline(1 << 20))
            count = int(made_from["entries"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError("this prepared list is broken", where=path, todo="delete it; it is made again") from error
        start = stream.tell()
    if path.stat().st_size != start + 8 * count:
        raise UserError("this prepared list is cut off", where=path, todo="delete it; it is made again")
    return Blocklist(np.memmap(path, "<u8", "r", start, (count,)), made_from)


def _source_hash(source: Path) -> str:
    if source.is_file():
        return sha256_file(source)
    return sha256_json({str(path.relative_to(source)): sha256_file(path) for path in _folder_files(source)})


def _folder_files(folder: Path) -> list[Path]:
    return sorted(
        path for kind in _KINDS for above in ("", "*/", "*/*/") for path in folder.glob(above + kind) if path.is_file()
    )


def _lines(source: Path, wanted: Sequence[str] | None) -> Iterator[str]:
    """The lines of all files of a source that are wanted."""
    if source.is_dir():
        files = _folder_files(source)
        for path in _choose(files, lambda path: path.parent.name, wanted, source):
            with path.open("rb") as stream:
                yield from _decoded(stream)
    elif _is_tar(source):
        yield from _tar_lines(source, wanted)
    else:
        with source.open("rb") as stream:
            yield from _decoded(stream)


def _is_tar(source: Path) -> bool:
    try:
        return tarfile.is_tarfile(source)
    except _BROKEN as error:
        raise UserError(f"this archive is broken ({error})", where=source, todo="fetch it again") from error


def _tar_lines(source: Path, wanted: Sequence[str] | None) -> Iterator[str]:
    try:
        with tarfile.open(source, "r:*") as archive:
            members = archive.getmembers()
            # UT1 keeps old names of categories as links to folders (`porn` is `adult`).
            links = {PurePosixPath(row.name).name: PurePosixPath(row.linkname).name for row in members if row.issym()}
            names = None if wanted is None else [links.get(name, name) for name in wanted]
            files = [row for row in members if row.isfile() and PurePosixPath(row.name).name in _KINDS]
            for row in _choose(files, lambda row: PurePosixPath(row.name).parent.name, names, source):
                stream = archive.extractfile(row)
                assert stream is not None
                yield from _decoded(stream)
    except _BROKEN as error:
        raise UserError(f"this archive is broken ({error})", where=source, todo="fetch it again") from error


def _choose(files: Iterable[File], category: Callable[[File], str], wanted: Sequence[str] | None, source: Path) -> list[File]:
    files = list(files)
    known = {category(file) for file in files}
    absent = [name for name in wanted or [] if name not in known]
    if absent:
        raise UserError(
            f"there is no category {absent[0]!r} in this list", where=source, todo=f"choose of: {', '.join(sorted(known))}"
        )
    return [file for file in files if wanted is None or category(file) in wanted]


def _decoded(stream: BinaryIO | Any) -> Iterator[str]:
    return io.TextIOWrapper(stream, encoding="utf-8", errors="replace")


def cached_name(source: Path, categories: Sequence[str] | None) -> str:
    """What a prepared list is called in a cache folder: the same for the same source and categories."""
    key = json.dumps([str(source.resolve()), None if categories is None else sorted(set(categories))])
    return f"{source.name.split('.')[0] or 'list'}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.blocklist"
