"""What is looked at before anything else of a request: who asks, from where, and whether there is room for it."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from herdbook.serve import pages
from herdbook.serve.config import Limits
from herdbook.serve.failures import ApiError, draining
from herdbook.serve.metrics import Metrics

OPEN_PATHS = frozenset({"/health", *pages.FILES})  # without a key, and however much there is to do
COUNTED = ("/v1/", "/tokenize", "/detokenize", "/health", "/metrics")  # paths that get a number of their own in the metrics


class Gate:
    """The state of the door.

    Args:
        keys: one of which a client must name; none: no key is wanted.
        hosts: names that a client may call the server by; None: any. Without keys this keeps out pages of other origins whose
            name was pointed at this machine (DNS rebinding).

    Attributes:
        draining: whether new requests are refused because the server ends.
        busy: requests in hand.
    """

    def __init__(self, limits: Limits, keys: Sequence[str] = (), hosts: frozenset[str] | None = None) -> None:
        self.limits, self.hosts = limits, hosts
        self._keys = [_digest(key) for key in keys]
        self.draining = False
        self.busy = 0

    def check(self, path: str, headers: Headers) -> None:
        """Raises ApiError when a request may not come in."""
        if self.hosts is not None and _host(headers.get("host", "")) not in self.hosts:
            raise ApiError(403, "this server answers to the name of its own machine alone", code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            raise ApiError(403, "requests from pages of other origins are refused", code="wrong_origin")
        if path in OPEN_PATHS:
            return
        self._check_key(headers.get("authorization", ""))
        if path == "/metrics":
            return
        if self.draining:
            raise draining()
        if self.busy >= self.limits.concurrency:
            message = f"{self.busy:,} requests are in hand already"
            raise ApiError(429, message, code="too_many_requests", retry_after=1)

    def _check_key(self, header: str) -> None:
        if not self._keys:
            return
        kind, _, key = header.partition(" ")
        given = _digest(key.strip())
        # All are compared, each in the same time whatever is given.
        matches = [hmac.compare_digest(given, known) for known in self._keys]
        if kind.lower() != "bearer" or not any(matches):
            message = "no valid API key: send the header `Authorization: Bearer KEY`"
            raise ApiError(401, message, code="invalid_api_key")


class Guard:
    """Lets requests in, and counts those in hand and the answers."""

    def __init__(self, app: ASGIApp, gate: Gate, metrics: Metrics) -> None:
        self._app, self._gate, self._metrics = app, gate, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                name = path if path.startswith(COUNTED) and len(path) < 30 and "models/" not in path else "other"
                self._metrics.responses.labels(name, message["status"]).inc()
            await send(message)

        try:
            self._gate.check(path, Headers(scope=scope))
        except ApiError as error:
            await error.response()(scope, receive, counted)
            return
        inside = path not in OPEN_PATHS
        self._gate.busy += inside
        try:
            await self._app(scope, receive, counted)
        finally:
            self._gate.busy -= inside


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="surrogateescape")).digest()


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
