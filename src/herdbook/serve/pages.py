"""The chat page at `/`: a few static files of this package, without a build step and without other hosts.

The policy lets the page load its own files and talk to this server, and nothing else; what a model writes is set as text
(`page/markdown.js`), so that no markup of it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from importlib import resources
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response

FILES = {
    "/": ("index.html", "text/html"),
    "/chat.css": ("chat.css", "text/css"),
    "/chat.js": ("chat.js", "text/javascript"),
    "/markdown.js": ("markdown.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_pages(app: FastAPI) -> None:
    """Serve the page's files."""
    folder = resources.files("herdbook.serve") / "page"
    for path, (name, kind) in FILES.items():
        app.add_api_route(path, _sender((folder / name).read_bytes(), kind), methods=["GET", "HEAD"], include_in_schema=False)


def _sender(body: bytes, kind: str) -> Callable[[], Coroutine[Any, Any, Response]]:
    async def send() -> Response:
        return Response(body, headers=HEADERS, media_type=kind)

    return send
