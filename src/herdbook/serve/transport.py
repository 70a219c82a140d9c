"""Bodies in, and what happens when a client goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from herdbook.serve.config import Limits
from herdbook.serve.failures import ApiError

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
    gone = asyncio.ensure_future(until_gone(receive))
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


async def until_gone(receive: Receive) -> None:
    """Wait until the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
