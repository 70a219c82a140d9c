"""Tokens that are kept elsewhere: shards are fetched when they are first read, and stay in a cache on this machine.

`s3://…`, `gs://…`, `memory://…` go through fsspec, `https://…` through the standard library. A file of the cache is called by
its SHA-256, which the index names: it takes that name only when it is whole and hashes to it, so that any number of processes
may share a cache, and what was fetched for one run serves the next. Of an address there is a folder in the cache that has
its index and its pedigree, and can be handed about like a tokens folder of this machine.

`HERDBOOK_CACHE` says where the cache is (default: `~/.cache/herdbook`), `HERDBOOK_CACHE_SIZE` how large it may grow (100GB).
Over that, what was not used for longest goes. Sequences are drawn from all shards of a mixture at once, so a mixture has to
fit into the cache.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from herdbook.errors import UserError
from herdbook.files import lock, read_json, require_space, write_json, write_text
from herdbook.tokens.shards import INDEX
from herdbook.tokens.source import Files, Local
from herdbook.units import human_bytes, parse_bytes

ATTEMPTS = 5
PAUSE_S = 0.5  # before the second attempt; twice as long before each further one
MARK = "remote.json"
_PEDIGREE = "pedigree.json"
_BLOCK = 8 << 20
_TIMEOUT_S = 30.0
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_T = TypeVar("_T")


class _FinalError(Exception):
    """An answer that another attempt would not change."""


def cache_folder() -> Path:
    """Where things are kept that can be had again."""
    place = os.environ.get("HERDBOOK_CACHE")
    return Path(place) if place else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "herdbook"


def cache_size() -> int:
    """How many bytes of shards the cache may hold. Raises UserError when the setting is not a size."""
    text = os.environ.get("HERDBOOK_CACHE_SIZE", "100GB")
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise UserError(f"{error}", where="HERDBOOK_CACHE_SIZE", todo="as in HERDBOOK_CACHE_SIZE=500GB") from None


def open_tokens(place: Path | str) -> tuple[Path, Files]:
    """The folder of this machine that stands for a tokens folder or an address, and its files.

    Raises UserError when an address cannot be reached.
    """
    folder = attach(place) if isinstance(place, str) and _URL.match(place) else Path(place)
    if (folder / MARK).is_file():
        return folder, Remote(read_json(folder / MARK)["address"], cache_folder() / "shards", cache_size())
    return folder, Local(folder)


def attach(address: str) -> Path:
    """The folder in the cache that stands for an address, with the index that is there now and its pedigree."""
    address = address.rstrip("/")
    folder = cache_folder() / "tokens" / hashlib.sha256(address.encode()).hexdigest()[:16]
    index = _persist(lambda: _read(address, INDEX), f"{address}/{INDEX}")
    with suppress(UserError):  # tokens may have been brought there without it
        write_text(folder / _PEDIGREE, _persist(lambda: _read(address, _PEDIGREE), address).decode())
    write_text(folder / INDEX, index.decode("utf-8", "replace"))
    write_json(folder / MARK, {"address": address})
    return folder


@dataclass(frozen=True)
class Remote:
    """The files at an address, by way of the cache.

    Attributes:
        cache: folder of files that are called by their SHA-256.
        size: bytes that it may hold.
    """

    address: str
    cache: Path
    size: int

    def require(self, needed: int) -> None:
        """Raise UserError when files that are read all at once do not fit into the cache."""
        if needed > self.size:
            raise UserError(
                f"these tokens take {human_bytes(needed)}, and the cache may hold {human_bytes(self.size)}", where=self.address,
                todo="set HERDBOOK_CACHE_SIZE higher, or take fewer sources: sequences are drawn from all shards at once",
            )  # fmt: skip

    def find(self, name: str, size: int, sha256: str) -> Path:
        """The file, fetched unless it is there. Raises UserError when it cannot be had or is not what the index says."""
        if "/" in name or name in ("", ".", "..") or not re.fullmatch("[0-9a-f]{64}", sha256):
            raise UserError(f"the name {name!r} leads out of its folder", where=self.address, todo="do not use these tokens")
        path = self.cache / sha256
        if self._touch(path, size):
            return path
        self.require(size)
        with lock(self.cache / f".{sha256}.lock", wait=True):
            if not self._touch(path, size):  # another process may have fetched it while we waited
                require_space(self.cache, size, purpose="a shard in the cache")
                for leftover in self.cache.glob(f".{sha256}.*.partial"):  # of a process that was killed
                    leftover.unlink(missing_ok=True)
                _persist(lambda: self._fetch(name, size, sha256, path), f"{self.address}/{name}")
        self._evict(path)
        return path

    @staticmethod
    def _touch(path: Path, size: int) -> bool:
        """Whether the file is there; if so, note that it was used."""
        try:
            whole = path.stat().st_size == size
            if whole:
                os.utime(path)
        except OSError:
            return False
        return whole

    def _fetch(self, name: str, size: int, sha256: str, path: Path) -> None:
        aside = path.with_name(f".{sha256}.{os.getpid()}.partial")
        digest, got = hashlib.sha256(), 0
        try:
            with _opened(self.address, name) as stream, aside.open("wb") as out:
                while block := stream.read(_BLOCK):
                    digest.update(block)
                    got += len(block)
                    out.write(block)
            if got < size:
                raise ConnectionError(f"{got:,} of {size:,} bytes came")
            if got > size or digest.hexdigest() != sha256:
                raise _FinalError("this is not the file that the index describes")
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def _evict(self, keep: Path) -> None:
        """Let go of what was not used for longest; a process that has mapped such a file can read it still."""
        with lock(self.cache / ".evict.lock", wait=True):
            files = []
            for file in self.cache.glob("[0-9a-f]*"):
                with suppress(OSError):
                    stat = file.stat()
                    files.append((stat.st_mtime_ns, stat.st_size, file))
            over = sum(size for _, size, _ in files) - self.size
            for _, size, file in sorted(files):
                if over <= 0:
                    return
                if file != keep:
                    file.unlink(missing_ok=True)
                    over -= size


def _read(address: str, name: str) -> bytes:
    with _opened(address, name) as stream:
        data: bytes = stream.read()
    if name.endswith(".json"):
        json.loads(data)  # half an answer is asked for again
    return data


@contextmanager
def _opened(address: str, name: str) -> Iterator[IO[bytes]]:
    if address.lower().startswith(("http://", "https://")):
        with _http(f"{address}/{urllib.parse.quote(name)}") as answer:
            yield answer
    else:
        fs, folder = _filesystem(address)
        with fs.open(f"{folder.rstrip('/')}/{name}", "rb") as stream:
            yield stream


def _http(url: str) -> Any:
    request = urllib.request.Request(url, headers={"User-Agent": "herdbook", "Accept-Encoding": "identity"})
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (408, 425, 429) or error.code >= 500:
            raise
        raise _FinalError(f"the server answers {error.code} {error.reason}") from None
    except (ValueError, http.client.InvalidURL) as error:
        raise _FinalError(str(error)) from None


def _filesystem(address: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and the path in it."""
    scheme = address.partition("://")[0]
    try:
        import fsspec  # type: ignore[import-untyped,unused-ignore]

        fs, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise UserError(f"addresses with {scheme}:// need a package that is not installed ({error})", where=address,
                        todo="pip install 'herdbook[remote]'") from error  # fmt: skip
    except ValueError as error:
        raise UserError(f"there is no way to read {scheme}:// addresses ({error})", where=address) from error
    return fs, path


def _persist(ask: Callable[[], _T], place: str) -> _T:
    """What `ask` gives, asked again a few times when the network fails. Raises UserError at last."""
    for attempt in range(ATTEMPTS):
        try:
            return ask()
        except UserError:
            raise
        except (FileNotFoundError, PermissionError, IsADirectoryError, _FinalError) as error:
            raise UserError(f"this cannot be had: {_words(error)}", where=place, todo="check the address") from error
        except Exception as error:  # every backend has exceptions of its own
            if attempt == ATTEMPTS - 1:
                raise UserError(f"this cannot be had ({ATTEMPTS} attempts): {_words(error)}", where=place,
                                todo="try again when the network is better") from error  # fmt: skip
            time.sleep(PAUSE_S * 2**attempt)
    raise AssertionError(place)


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, _FinalError) else f"{type(error).__name__}: {error}"[:300]
