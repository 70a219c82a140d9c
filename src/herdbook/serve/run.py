"""A server on a port, until it is told to end.

SIGTERM and SIGINT have it refuse new requests with 503, finish those in hand, and end; a second one ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from herdbook.errors import Interrupted
from herdbook.serve.app import Server, create_app
from herdbook.serve.config import Limits
from herdbook.serve.stream import WIRE

if TYPE_CHECKING:
    from asyncio import TimerHandle, Transport

# Seconds that the loop may keep Python to itself while the engine's thread waits for it to go on with a step; Python's own
# 5 ms are the length of a step.
SWITCH = 0.0005


def serve(server: Server, at: socket.socket) -> None:
    """Answer until a signal comes. Raises Interrupted when requests were cut off."""
    running = Running(configured(server), server)
    sys.setswitchinterval(SWITCH)
    running.run(sockets=[at])
    if running.cut_off:
        raise Interrupted("requests were cut off", todo="give them longer with limits.drain=5min", signal_number=running.signal)


def configured(server: Server) -> uvicorn.Config:
    """Uvicorn's settings for a server: no defaults that listen to proxies, log addresses or tell versions."""
    limits = server.limits
    return uvicorn.Config(
        create_app(server), http=_protocol(limits), ws="none", loop="asyncio", log_config=None, access_log=False, lifespan="on",
        h11_max_incomplete_event_size=limits.head, limit_concurrency=limits.connections, backlog=1024, proxy_headers=False,
        server_header=False, timeout_graceful_shutdown=5,
    )  # fmt: skip


class Running(uvicorn.Server):
    """Uvicorn, but that it goes on listening while it drains, so that late clients get an answer."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._server = server
        self._drained: asyncio.Task[None] | None = None
        self.cut_off = False
        self.signal = int(signal.SIGTERM)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain at the first signal, end at the second."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM)
        with contextlib.suppress(ValueError, RuntimeError):  # only the main thread may
            for number in numbers:
                loop.add_signal_handler(number, self.end, number)
        try:
            yield
        finally:
            for number in numbers:
                with contextlib.suppress(ValueError, RuntimeError):
                    loop.remove_signal_handler(number)

    def end(self, number: int = signal.SIGTERM) -> None:
        """Begin to end; when called again, end at once."""
        if self._drained is None:
            self.signal = int(number)
            self._drained = asyncio.get_running_loop().create_task(self._drain())
        else:
            self.cut_off = self.cut_off or self._server.gate.busy > 0
            self._server.driver.cut_off()
            self.should_exit = True

    async def _drain(self) -> None:
        finished = await self._server.drain()
        self.cut_off = self.cut_off or not finished
        self.should_exit = True


class _Wire:
    """See `herdbook.serve.stream.Wire`.

    Args:
        chunked: whether the body goes in chunks (RFC 9112, 7.1), each of which stands for itself, so that what uvicorn sends
            before and after does not depend on them. HTTP/1.0 knows none: there the end of the connection ends the body.
    """

    def __init__(self, protocol: H11Protocol, *, chunked: bool) -> None:
        self._flow, self._transport, self._chunked = protocol.flow, protocol.transport, chunked
        self.abort = protocol.transport.abort

    @property
    def ready(self) -> bool:
        return not (self._flow.write_paused or self._transport.is_closing())

    def write(self, piece: bytes) -> None:
        if piece and not self._transport.is_closing():
            self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)

    async def drain(self) -> None:
        await self._flow.drain()


def _protocol(limits: Limits) -> type[H11Protocol]:
    """Uvicorn's HTTP with a time limit for heads, and a way to drop a connection whose reader takes nothing."""

    class Protocol(H11Protocol):
        _timer: TimerHandle | None = None

        def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._idle():
                self._wait()
            elif self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def handle_events(self) -> None:
            super().handle_events()
            if self.scope is not None:
                # Its task begins to run only after this.
                extensions: dict[str, Any] = self.scope.setdefault("extensions", {})
                extensions.setdefault(WIRE, _Wire(self, chunked=self.scope["http_version"] == "1.1"))

        def connection_lost(self, exc: Exception | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
            super().connection_lost(exc)

        def _idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _wait(self) -> None:
            if self._timer is None:
                self._timer = self.loop.call_later(limits.arrival, self._late)

        def _late(self) -> None:
            self._timer = None
            if self._idle():
                self.transport.close()

    return Protocol
