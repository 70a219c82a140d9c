"""Many clients, slow ones, those that vanish, and the end: nothing is lost, no block stays held."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2 as httpx
import openai
import pytest

from herdbook.infer.engine import EngineConfig
from herdbook.serve.config import Limits

from .conftest import Live, events, live, make_served

LONG: dict[str, Any] = {"prompt": "x", "max_tokens": 200, "ignore_eos": True, "seed": 1}
BY_CLIENT: dict[str, Any] = {"prompt": "x", "max_tokens": 40, "extra_body": {"ignore_eos": True}, "seed": 1}


@pytest.fixture(scope="module")
def slow() -> Iterator[Live]:
    """A server whose every step takes a while."""
    with live(make_served("slow", slow=0.02)) as house:
        yield house
        assert house.quiet()


@contextmanager
def raw(house: Live, body: dict[str, Any], receive: int | None = None) -> Iterator[socket.socket]:
    """A connection that has sent a request and reads nothing by itself."""
    text = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(text)}"
    with socket.socket() as client:
        if receive is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        client.connect(("127.0.0.1", house.port))
        client.sendall(head.encode() + b"\r\n\r\n" + text)
        yield client


def running(house: Live, waiting: int = 0) -> bool:
    """Whether something runs, and so much waits, after a while at most."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        if any(stats.blocks_held and stats.waiting >= waiting for stats in house.server.driver.stats().values()):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_vanishes_frees_its_blocks(slow: Live, stream: bool) -> None:
    with raw(slow, {**LONG, "stream": stream}):
        assert running(slow)
    began = time.monotonic()
    assert slow.quiet(within=2)
    assert time.monotonic() - began < 2, "it would have taken four seconds to the end"


def test_a_reader_that_takes_nothing_is_dropped() -> None:
    limits = Limits(stall=0.3)
    with live(make_served("base", context=2048), limits=limits) as house:
        wanted = {**LONG, "max_tokens": 1500, "stream": True, "logprobs": 20, "n": 8}
        with raw(house, wanted, receive=1024) as client:
            assert running(house)
            assert house.quiet(within=15)
            client.settimeout(5)
            text = b""
            while piece := client.recv(65536):
                text += piece
            assert b"[DONE]" not in text


def test_a_slow_reader_loses_nothing(slow: Live) -> None:
    text = ""
    with slow.client().completions.create(model="slow", **BY_CLIENT, stream=True) as chunks:
        for chunk in chunks:
            time.sleep(0.03)
            text += chunk.choices[0].text
    assert text == slow.client().completions.create(model="slow", **BY_CLIENT).choices[0].text


def test_full_queue_is_429() -> None:
    served = make_served("slow", slow=0.02, cfg=EngineConfig(backend="torch", rows=1, queue=1))
    with live(served) as house:
        with raw(house, {**LONG, "stream": True}):
            assert running(house)
            with raw(house, {**LONG, "stream": True}):
                assert running(house, waiting=1)
                refused = httpx.post(house.url + "/v1/completions", json=LONG)
                assert refused.status_code == 429
                assert refused.headers["retry-after"] == "1"
                assert refused.json()["error"]["code"] == "queue_full"
                with pytest.raises(openai.RateLimitError):
                    house.client().completions.create(model="slow", **BY_CLIENT)
        assert house.quiet()


def test_too_many_requests_in_hand_is_429(slow: Live) -> None:
    slow.server.gate.limits = Limits(concurrency=1)
    with raw(slow, {**LONG, "stream": True}):
        assert running(slow)
        assert httpx.post(slow.url + "/v1/completions", json=LONG).json()["error"]["code"] == "too_many_requests"
        assert httpx.get(slow.url + "/health").status_code == 200
        assert httpx.get(slow.url + "/metrics").status_code == 200
    slow.server.gate.limits = Limits()


def test_time_limit_ends_a_text_with_what_it_has() -> None:
    with live(make_served("slow", slow=0.02), limits=Limits(seconds=0.4)) as house:
        choice = house.client().completions.create(model="slow", **{**BY_CLIENT, "max_tokens": 200}).choices[0]
        assert choice.finish_reason == "length"
        assert 0 < len(choice.text.encode()) < 200


def test_a_head_or_body_that_never_comes() -> None:
    with live(make_served("base"), limits=Limits(arrival=0.3)) as house:
        half = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{"
        for sent, told in ((b"", b""), (b"POST /v1/comp", b""), (half, b"HTTP/1.1 408")):
            with socket.create_connection(("127.0.0.1", house.port), timeout=5) as client:
                client.sendall(sent)
                assert client.recv(65536)[:12] == told
        with socket.create_connection(("127.0.0.1", house.port), timeout=5) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000)
            assert b"400" in client.recv(65536).split(b"\r\n")[0]


def test_drain_finishes_what_runs_and_refuses_what_comes() -> None:
    wanted = {**LONG, "max_tokens": 50, "stream": True}
    with live(make_served("slow", slow=0.02)) as house, raw(house, wanted) as client:
        assert running(house)
        house.call(lambda: house.running.end(signal.SIGTERM))
        time.sleep(0.2)
        late = httpx.post(house.url + "/v1/completions", json=LONG)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
        assert "retry-after" in late.headers
        assert httpx.get(house.url + "/health").json()["status"] == "draining"
        text = b""
        client.settimeout(10)
        while piece := client.recv(65536):
            text += piece
        assert b"[DONE]" in text
        assert b"error" not in text
        assert not house.running.cut_off


@pytest.mark.parametrize("stream", [True, False])
def test_drain_cuts_off_in_the_end(stream: bool) -> None:
    with live(make_served("slow", slow=0.02), limits=Limits(drain=0.2)) as house:
        with raw(house, {**LONG, "stream": stream}) as client:
            assert running(house)
            house.call(lambda: house.running.end(signal.SIGTERM))
            text = b""
            client.settimeout(10)
            while piece := client.recv(65536):
                text += piece
        assert b'"code":"draining"' in text
        assert house.running.cut_off


def test_a_step_that_fails_ends_only_what_was_in_it() -> None:
    served = make_served("base")
    with live(served, make_served("other", slow=0.01)) as house:
        other = house.client().completions.create(model="other", stream=True, **BY_CLIENT)
        next(iter(other))

        def health() -> tuple[int, str]:
            found = httpx.get(house.url + "/health")
            return found.status_code, found.json()["status"]

        def broken(spans: object) -> None:
            raise MemoryError("no memory for a step")

        backend = served.engine.scheduler.backend
        run, backend.run = backend.run, broken  # type: ignore[assignment, method-assign]
        for status in ((200, "ok"), (503, "failing")):
            with pytest.raises(openai.InternalServerError, match="engine failed") as caught:
                house.client().completions.create(model="base", **BY_CLIENT)
            assert caught.value.code == "engine_failed"
            assert health() == status
        backend.run = run  # type: ignore[method-assign]
        assert house.client().completions.create(model="base", **BY_CLIENT).choices[0].text
        assert health() == (200, "ok")
        assert list(other)[-1].choices[0].finish_reason == "length"
        assert 'herdbook_engine_failures_total{model="base"} 2.0' in httpx.get(house.url + "/metrics").text
        assert house.quiet()


def test_a_stream_whose_step_fails_ends_with_the_error() -> None:
    served = make_served("base", slow=0.01)
    with live(served) as house, raw(house, {**LONG, "stream": True}) as client:
        assert b"200 OK" in client.recv(15)
        backend = served.engine.scheduler.backend
        run = backend.run

        def broken(spans: object) -> None:
            backend.run = run  # type: ignore[method-assign]
            raise MemoryError("no memory for a step")

        backend.run = broken  # type: ignore[assignment, method-assign]
        text = b""
        client.settimeout(5)
        while not text.endswith(b"0\r\n\r\n"):
            text += client.recv(65536)
        assert text.count(b'"code":"engine_failed"') == 1
        assert text.count(b"data: [DONE]") == 1
        assert house.quiet()


async def _soak(house: Live, clients: int) -> list[str]:
    """Clients that read slowly, some of which leave early; the texts of those that stay."""

    async def one(number: int, http: httpx.AsyncClient) -> str:
        body = {"prompt": f"{number % 7}", "max_tokens": 40, "seed": number, "stream": True, "ignore_eos": True}
        text = ""
        async with http.stream("POST", house.url + "/v1/completions", json=body) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if number % 4 == 3 and len(text) > 5:
                    return "left"
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["text"]
                    await asyncio.sleep(0.005)
        return text

    async with httpx.AsyncClient(timeout=30, limits=httpx.Limits(max_connections=None)) as http:
        return list(await asyncio.gather(*(one(number, http) for number in range(clients))))


def test_soak(slow: Live) -> None:
    found = asyncio.run(_soak(slow, 40))
    assert slow.quiet(within=5)
    whole = {number: text for number, text in enumerate(found) if text != "left"}
    assert len(whole) == 30
    for number in (0, 21, 38):
        body = {"prompt": f"{number % 7}", "max_tokens": 40, "seed": number, "ignore_eos": True}
        assert whole[number] == httpx.post(slow.url + "/v1/completions", json=body, timeout=30).json()["choices"][0]["text"]


def test_streams_of_one_request_arrive_side_by_side(slow: Live) -> None:
    answer = httpx.post(slow.url + "/v1/completions", json={**LONG, "n": 3, "max_tokens": 5, "stream": True}, timeout=20)
    order = [chunk["choices"][0]["index"] for chunk in events(answer.text)]
    assert set(order[:4]) == {0, 1, 2}
