"""Bodies in, streams out, and what happens when a client goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from herdbook.serve.config import Limits
from herdbook.serve.failures import ApiError, dumps

ABORT = "herdbook.abort"  # what drops a connection at once, in the scope's extensions
DEEPEST = 64  # levels of a body
ResultT = TypeVar("ResultT")


class ClientGone(Exception):  # noqa: N818  it is no error of anybody's
    """The client has closed its connection."""


async def read_json(request: Request, limits: Limits) -> Any:
    """The JSON of a request's body.

    Raises ApiError when it is too large (413), takes too long to arrive (408), or is no JSON (400); ClientGone.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(415, "the body must be JSON: send the header `Content-Type: application/json`")
    body = await _read(request, limits)
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is no JSON ({str(error)[:200]})", code="invalid_json") from error
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    _shallow(value)
    return value


async def _read(request: Request, limits: Limits) -> bytes:
    length = request.headers.get("content-length", "0")
    too_large = ApiError(413, f"the body is larger than {limits.body:,} bytes", code="body_too_large")
    if length.isascii() and length.isdigit() and int(length[:20]) > limits.body:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.arrival):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                body += message.get("body", b"")
                if len(body) > limits.body:
                    raise too_large
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError as error:
        raise ApiError(408, f"the body did not arrive within {limits.arrival:g} seconds") from error


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _shallow(value: Any) -> None:
    """Templates, schemas and validators recurse; what no client needs is refused before it reaches them."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ApiError(400, f"the body is nested more than {DEEPEST} levels deep", code="invalid_json")
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner += one.values()
            elif isinstance(one, list):
                inner += (part for part in one if isinstance(part, dict | list))
        level = inner


async def while_connected(receive: Receive, work: Awaitable[ResultT]) -> ResultT:
    """The result of some work, which is cancelled when the client goes away; then ClientGone is raised."""
    task: asyncio.Future[ResultT] = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        both: tuple[asyncio.Future[Any], ...] = (task, gone)
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events, one JSON document each, and `[DONE]`.

    Args:
        pieces: the documents. What it raises as ApiError ends the stream with the error as a document.
        stall: seconds that the reader may take nothing; then its connection is dropped.
        close: called in the end, whatever happened.
    """

    def __init__(self, pieces: AsyncIterator[dict[str, Any]], stall: float, close: Callable[[], None]) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"}, media_type="text/event-stream")
        del self.headers["content-length"]
        self._pieces, self._stall, self._close = pieces, stall, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await while_connected(receive, self._pump(send))
        except ClientGone:
            pass
        except TimeoutError:
            abort = scope.get("extensions", {}).get(ABORT)
            if abort is not None:
                abort()
                await _gone(receive)
        finally:
            self._close()

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for piece in self._pieces:
                await self._send(send, dumps(piece))
        except ApiError as error:
            await self._send(send, dumps(error.body()))
        await self._send(send, b"[DONE]", last=True)

    async def _send(self, send: Send, text: bytes, *, last: bool = False) -> None:
        async with asyncio.timeout(self._stall):
            await send({"type": "http.response.body", "body": b"data: " + text + b"\n\n", "more_body": not last})
