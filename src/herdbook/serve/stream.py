"""Streams out: server-sent events, written where they come from.

Most of what a server costs are the layers between a token and its socket: a task that is woken, the wrappers of ASGI, an HTTP
library. The cores that they run on are those of the engine, whose threads wait for the last of them. So a piece is written to
the connection in the turn of the loop that brings it, as long as the connection takes it. Only when a reader is behind a task
waits for it, and what has come meanwhile goes out as one piece.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from herdbook.infer.request import Completion, Event
from herdbook.serve.driver import Ticket
from herdbook.serve.failures import ApiError, draining, dumps
from herdbook.serve.shapes import Shape
from herdbook.serve.transport import ClientGone, until_gone, while_connected

WIRE = "herdbook.wire"  # the connection of a request, in its scope's extensions


class Wire(Protocol):
    """A connection, past ASGI. For a body without a length whose head has been sent."""

    @property
    def ready(self) -> bool:
        """Whether it takes more now."""

    def write(self, piece: bytes) -> None:
        """Send a piece of the body; nothing when it is empty, or the client has gone."""

    async def drain(self) -> None:
        """Wait until it is ready, or the client has gone."""

    def abort(self) -> None:
        """Drop it at once."""


class EventStream(Response):
    """Server-sent events, one JSON document each, and `[DONE]`.

    Args:
        ticket: what they tell of. What the engine fails with as ApiError ends the stream, as a document.
        shape: how it is written down.
        stall: seconds that the reader may take nothing; then its connection is dropped.
        close: called in the end, whatever happened.
    """

    def __init__(self, ticket: Ticket, shape: Shape, stall: float, close: Callable[[], None]) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"}, media_type="text/event-stream")
        del self.headers["content-length"]
        self._ticket, self._shape, self._stall, self._close = ticket, shape, stall, close
        self._done: dict[int, Completion] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        wire: Wire = scope["extensions"][WIRE]
        try:
            await while_connected(receive, self._send(wire, send))
        except ClientGone:
            pass
        except TimeoutError:
            wire.abort()
            await until_gone(receive)
        finally:
            self._ticket.reader = None
            self._close()

    async def _send(self, wire: Wire, send: Send) -> None:
        async with asyncio.timeout(self._stall):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await self._pour(wire)
            last = b""
            if self._shape.asked.usage_wanted:
                last = _event(self._shape.last([self._done[place] for place in sorted(self._done)]))
        except ApiError as error:
            last = _event(dumps(error.body()))
        self._ticket.reader = None
        async with asyncio.timeout(self._stall):
            await send({"type": "http.response.body", "body": last + _event(b"[DONE]")})

    async def _pour(self, wire: Wire) -> None:
        """Write what comes, until the end."""

        def read() -> bool:
            if not wire.ready:
                return False
            wire.write(self._written(self._ticket.taken()))
            return True

        self._ticket.reader = read
        while await self._ticket.some():
            async with asyncio.timeout(self._stall):
                await wire.drain()
            wire.write(self._written(self._ticket.taken()))

    def _written(self, events: Sequence[tuple[int, Event]]) -> bytes:
        """Events as documents. Raises ApiError when the server has cut one off."""
        documents = []
        for place, event in events:
            if event.reason == "cancelled":
                raise draining()
            documents += [_event(self._shape.chunk(choice)) for choice in self._shape.delta(place, event)]
            if event.completion is not None:
                self._done[place] = event.completion
        return b"".join(documents)


def _event(document: bytes) -> bytes:
    return b"data: %b\n\n" % document
