"""Streams: the same documents however the connection takes them, whoever reads it."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.infer.request import Completion, Event, Token
from herdbook.serve import prepare
from herdbook.serve.asked import ChatAsked, CompletionAsked, parse
from herdbook.serve.config import Limits
from herdbook.serve.driver import Ticket
from herdbook.serve.failures import ApiError, dumps
from herdbook.serve.stream import WIRE, EventStream

from .conftest import Live, events, live, make_served

SERVED = make_served("base")
ASKED: dict[str, Any] = {"prompt": ["x", "y"], "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 9}


class Reader:
    """A connection that takes some pieces, and then none until the loop has gone round a few times."""

    def __init__(self, takes: list[int]) -> None:
        self._takes, self.body, self.aborted = takes, b"", False

    @property
    def ready(self) -> bool:
        return not self._takes or self._takes[0] > 0

    def write(self, piece: bytes) -> None:
        self.body += piece
        if self._takes:
            self._takes[0] -= 1

    async def drain(self) -> None:
        if not self.ready:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self._takes.pop(0)

    def abort(self) -> None:
        self.aborted = True


async def streamed(steps: list[list[tuple[int, Event] | Exception]], takes: list[int], asked: dict[str, Any] = ASKED) -> bytes:
    """The body of a stream to which these steps are delivered, some of them before it listens."""
    shape, requests = prepare.completion(parse(CompletionAsked, asked), SERVED, Limits())
    ticket, wire, closed = Ticket(SERVED, requests), Reader(takes), []

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def send(message: Any) -> None:
        wire.body += message.get("body", b"")

    stream = EventStream(ticket, shape, 5, lambda: closed.append(True))
    task = asyncio.ensure_future(stream({"type": "http", "extensions": {WIRE: wire}}, receive, send))
    for step in steps:
        for news in step:
            if isinstance(news, Exception):
                ticket.fail(news)
            else:
                ticket.deliver([news])
        await asyncio.sleep(0)
    await asyncio.wait_for(task, 5)
    assert (closed, ticket.reader) == ([True], None)
    return wire.body


def texts_of(body: bytes) -> dict[int, str]:
    """The text of each choice."""
    found: dict[int, str] = {}
    for document in events(body.decode()):
        for choice in document["choices"]:
            found[choice["index"]] = found.get(choice["index"], "") + choice["text"]
    return found


pieces = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=4), min_size=1, max_size=9)


@settings(deadline=None, max_examples=100)
@given(first=pieces, second=pieces, takes=st.lists(st.integers(0, 3), max_size=8), together=st.integers(1, 5))
def test_a_reader_gets_everything_once_and_in_order(
    first: list[str], second: list[str], takes: list[int], together: int
) -> None:
    news: list[tuple[int, Event] | Exception] = []
    for number in range(max(len(first), len(second))):
        for place, texts in enumerate((first, second)):
            if number < len(texts):
                last = number == len(texts) - 1
                done = Completion(list(range(len(texts))), "".join(texts), "length", 1) if last else None
                news.append((place, Event(place, 0, [Token(number)], texts[number], "length" if last else None, done)))
    steps = [news[start : start + together] for start in range(0, len(news), together)]
    body = asyncio.run(streamed(steps, takes))
    assert texts_of(body) == {0: "".join(first), 1: "".join(second)}
    usage = events(body.decode())[-1]["usage"]
    assert usage["completion_tokens"] == len(first) + len(second)


def test_failures_come_behind_what_was_there() -> None:
    token = (0, Event(0, 0, [Token(1)], "a"))
    for takes in ([], [0, 0, 0], [1, 0]):
        body = asyncio.run(streamed([[token], [ApiError(500, "broken", code="broken")]], takes))
        first, second = events(body.decode())
        assert (first["choices"][0]["text"], second["error"]["code"]) == ("a", "broken")
    cut = (0, Event(0, 0, [Token(1)], "a", "cancelled", Completion([1], "a", "cancelled", 1)))
    assert events(asyncio.run(streamed([[cut]], [])).decode())[0]["error"]["code"] == "draining"


def test_a_defect_in_a_shape_is_no_matter_of_other_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("herdbook.serve.shapes.CompletionShape.delta", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        asyncio.run(streamed([[], [(0, Event(0, 0, [Token(1)], "a"))]], []))


@settings(deadline=None)
@given(text=st.text(), more=st.sampled_from([{}, {"stream_options": {"include_usage": True}}]), chat=st.booleans())
def test_a_piece_is_the_document_written_whole(text: str, more: dict[str, Any], chat: bool) -> None:
    asked: dict[str, Any] = {"stream": True, "model": "base", **more}
    if chat:
        shape, _ = prepare.chat(parse(ChatAsked, {**asked, "messages": [{"role": "user", "content": "x"}]}), SERVED, Limits())
    else:
        shape, _ = prepare.completion(parse(CompletionAsked, {**asked, "prompt": "x"}), SERVED, Limits())
    (choice,) = shape.delta(0, Event(0, 0, [Token(1)], text))
    ending = {"usage": None} if more else {}
    assert shape.chunk(choice) == dumps({**shape.head(shape.part), "choices": [choice], **ending})


@pytest.fixture(scope="module")
def house() -> Any:
    """A server."""
    with live(make_served("base")) as running:
        yield running
        assert running.quiet()


def answer(house: Live, version: str) -> tuple[str, bytes]:
    """Head and body of a stream for a client of a version of HTTP, as they are on the wire."""
    text = json.dumps({**ASKED, "temperature": 0, "ignore_eos": True}).encode()
    head = f"POST /v1/completions HTTP/{version}\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(text)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", house.port), timeout=10) as client:
        client.sendall(head.encode() + text)
        found = b""
        while block := client.recv(65536):
            found += block
    start, _, body = found.partition(b"\r\n\r\n")
    return start.decode().lower(), body


def unchunked(body: bytes) -> bytes:
    """A body without the borders of its chunks."""
    whole = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        assert rest[length : length + 2] == b"\r\n"
        whole, body = whole + rest[:length], rest[length + 2 :]
        assert length > 0 or body == b""
    return whole


def test_streams_for_old_and_new_clients(house: Live) -> None:
    head, body = answer(house, "1.1")
    assert "transfer-encoding: chunked" in head
    old_head, old_body = answer(house, "1.0")
    assert "transfer-encoding" not in old_head
    assert texts_of(unchunked(body)) == texts_of(old_body)
    assert [len(text.encode()) > 0 for text in texts_of(old_body).values()] == [True, True]
