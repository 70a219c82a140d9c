"""The standard library's documentation as a WARC: pages by pydoc, written as a crawler would write them.

Modules are imported by other processes, with an empty environment, no network, no browser and nowhere to print to; one that
dies or hangs takes the module it was at with it and no other. Pages are freed of what differs between machines: memory
addresses, paths, and the values of data (`os.environ` would be among them), of which numbers and truth values stay.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from herdbook.console import Terminal
from herdbook.files import atomic_path

# Modules that open windows or browsers, print when imported, or are tests of Python itself.
LEFT_OUT = frozenset(
    {"antigravity", "this", "idlelib", "turtle", "turtledemo", "tkinter", "test", "lib2to3", "ensurepip", "__main__",
     "site", "sitecustomize", "usercustomize"}
)  # fmt: skip
_HUNG_S = 60.0  # no module of the standard library takes a second; whether one is left out never depends on load in practice
_FORBIDDEN = ("socket.connect", "socket.sendto", "socket.getaddrinfo", "subprocess.Popen", "os.exec", "os.system",
              "webbrowser.open", "ftplib.", "urllib.", "smtplib.")  # fmt: skip
_FILE_LINK = re.compile(r'<a href="file:[^"]*">[^<]*</a>')
_ADDRESS = re.compile(r"(?: |&nbsp;)at(?: |&nbsp;)0x[0-9a-fA-F]+")


def module_names() -> list[str]:
    """The public top-level modules of the standard library, sorted."""
    return sorted(name for name in sys.stdlib_module_names if not name.startswith("_") and name not in LEFT_OUT)


def harvest_pydoc(path: Path, terminal: Terminal, workers: int) -> None:
    """Render all modules and write the WARC to `path`, whole or not at all; the same bytes for any number of workers."""
    names = module_names()
    pages: dict[str, bytes] = {}
    with terminal.progress("rendering modules", len(names)) as progress:
        threads = [
            threading.Thread(target=_render_share, args=(names[start::workers], pages, progress.advance), daemon=True)
            for start in range(workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    failed = [name for name in names if name not in pages]
    if failed:
        terminal.say(f"  {len(failed)} modules cannot be imported here: {', '.join(failed[:12])}{' …' if failed[12:] else ''}")
    with atomic_path(path) as aside:
        write_warc(aside, [(f"pydoc://{name}.html", pages[name]) for name in names if name in pages], build_date())


def build_date() -> datetime:
    """When this Python was built: the date of its documentation."""
    try:
        text = " ".join(platform.python_build()[1].split())
        return datetime.strptime(text, "%b %d %Y %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        return datetime(2000, 1, 1, tzinfo=UTC)


def write_warc(path: Path, pages: list[tuple[str, bytes]], date: datetime) -> None:
    """Write (url, HTML) pairs as response records of a gzip WARC, one member a record, with ids made from the urls."""
    from fastwarc.stream_io import GzipWriter
    from fastwarc.warc import WarcRecord, WarcRecordType

    stamp = date.strftime("%Y-%m-%dT%H:%M:%SZ")
    with path.open("wb") as raw:
        for url, html in pages:
            record = WarcRecord()
            record.init_headers(WarcRecordType.response, record_urn=f"uuid:{uuid.uuid5(uuid.NAMESPACE_URL, url)}".encode())
            record.headers["WARC-Target-URI"] = url
            record.headers["WARC-Date"] = stamp
            record.headers["Content-Type"] = "application/http; msgtype=response"
            head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(html)}\r\n\r\n"
            record.set_bytes_content(head.encode() + html)
            stream = GzipWriter(raw)
            record.write(stream)
            stream.close()


def child_environment() -> dict[str, str]:
    """An environment that says nothing about the user: only what a Python process needs to start and to be repeatable."""
    kept = {key: os.environ[key] for key in ("SYSTEMROOT", "LD_LIBRARY_PATH", "TMPDIR", "TEMP") if key in os.environ}
    paths = os.pathsep.join(path for path in sys.path if path)
    fixed = {"PATH": os.defpath, "HOME": os.devnull, "LC_ALL": "C.UTF-8", "TZ": "UTC", "BROWSER": "false", "COLUMNS": "80"}
    python = {"PYTHONHASHSEED": "0", "PYTHONPATH": paths, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    return {**kept, **fixed, **python}


def _render_share(names: list[str], pages: dict[str, bytes], advance: Callable[[], None]) -> None:
    """Render modules in one process after another: each time one dies, the module it was at is left out."""
    left = list(names)
    while left:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from herdbook.corpus.harvest_pydoc import serve; serve()", *left],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=child_environment(),
        )  # fmt: skip
        assert process.stdout is not None
        try:
            while left:
                page = _next_page(process, process.stdout)
                if page is None:
                    left.pop(0)
                    advance()
                    break
                if page:
                    pages[left[0]] = page
                left.pop(0)
                advance()
        finally:
            process.kill()
            process.stdout.close()
            process.wait()


def _next_page(process: subprocess.Popen[bytes], stream: IO[bytes]) -> bytes | None:
    """The next page from a child: b"" for a module that cannot be imported, None when the child died or hangs."""
    watchdog = threading.Timer(_HUNG_S, process.kill)
    watchdog.start()
    try:
        head = stream.read(8)
        size = int.from_bytes(head, "little")
        page = stream.read(size) if len(head) == 8 else b""
        return page if len(head) == 8 and len(page) == size else None
    finally:
        watchdog.cancel()


def serve() -> None:
    """What the child does: render the modules named on its command line, a length and a page for each."""
    import tempfile

    pages = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _seal_off()
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)
        for name in sys.argv[1:]:
            page = render(name)
            pages.write(len(page).to_bytes(8, "little") + page)
            pages.flush()
        os.chdir("/")
    os._exit(0)  # without whatever the modules want to do at exit


def _seal_off() -> None:
    """Make sure that nothing a module does on import reaches a network or a browser."""

    def refuse(event: str, _: tuple[Any, ...]) -> None:
        if event.startswith(_FORBIDDEN):
            raise PermissionError(f"{event} while documentation is harvested")

    sys.addaudithook(refuse)


def render(name: str) -> bytes:
    """The HTML page of a module, without what differs between machines; b"" when it cannot be imported."""
    import importlib
    import pydoc

    class Renderer(pydoc.HTMLDoc):
        """pydoc's HTML, naming the type of data in place of its value."""

        def docother(self, object: object, name: str | None = None, mod: object = None, *ignored: object) -> str:
            plain = isinstance(object, bool | int | float) or object is None
            value = repr(object) if plain else f"a value of type {type(object).__name__}"
            return f"<strong>{name}</strong> = {self.escape(value)}" if name else self.escape(value)

    try:
        html = Renderer()
        module = importlib.import_module(name)
        page = html.page(pydoc.describe(module), html.document(module, name))
    except BaseException:  # modules raise what they like on import, SystemExit included
        return b""
    return neutral(page).encode("utf-8", "replace")


def neutral(page: str) -> str:
    """A page without links to files of this machine, memory addresses and paths."""
    page = _ADDRESS.sub("", _FILE_LINK.sub("", page))
    folders = {sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(os.__file__).parent), str(Path.cwd())}
    for folder in sorted((folder for folder in folders if len(folder) > 5), key=len, reverse=True):
        page = page.replace(folder, "…")
    return page
