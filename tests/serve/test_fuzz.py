"""Whatever is sent, the server says what is wrong with it, and lives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from herdbook.serve.asked import ChatAsked, CompletionAsked
from herdbook.serve.config import Limits

from .conftest import CHAT, TOOLS, Live, live, make_served

scalars = (
    st.none() | st.booleans() | st.integers() | st.integers(-3, 30) | st.floats(-5, 5) | st.floats(allow_nan=False) | st.text()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool"]) | values},
        optional={"content": st.text(max_size=9) | values, "tool_calls": values, "name": values},
    ),
    max_size=4,
)
likely = {
    "prompt": st.text(max_size=20) | st.lists(st.integers(-2, 300), max_size=5) | st.lists(st.text(max_size=5), max_size=3),
    "messages": messages, "max_tokens": st.integers(0, 5), "n": st.integers(0, 4), "best_of": st.integers(0, 5),
    "beams": st.integers(0, 3), "logprobs": st.integers(0, 6) | st.booleans(), "echo": st.booleans(), "stream": st.booleans(),
    "temperature": st.floats(0, 3),
    "logit_bias": st.dictionaries(st.integers(-1, 300).map(str), st.floats(-101, 101), max_size=3),
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=2), max_size=3),
    "prompt_logprobs": st.integers(0, 4),
    "response_format": st.sampled_from([{"type": "json_object"}, {"type": "json_schema", "json_schema": {"schema": {}}}]),
    "regex": st.sampled_from(["a*", "(", "[0-9]{2,}", "\\p{L}+$"]), "model": st.sampled_from(["base", "chat", "x"]),
    "tools": st.just([{"type": "function", "function": {"name": "f"}}]), "top_logprobs": st.integers(0, 25),
    **dict.fromkeys(["user", "service_tier", "safety_identifier", "prompt_cache_key", "suffix"], st.none() | st.just("x")),
    **dict.fromkeys(["top_p", "typical_p", "min_p", "repetition_penalty", "presence_penalty"], st.floats(0, 1)),
    **dict.fromkeys(["top_k", "seed", "max_completion_tokens"], st.integers(0, 9)), "frequency_penalty": st.floats(-2, 2),
    **dict.fromkeys(["ignore_eos", "truncate_prompt", "store"], st.booleans()), "grammar": st.just('start: "a"+'),
    "stop_token_ids": st.lists(st.integers(0, 300), max_size=3), "tool_choice": st.sampled_from(["auto", "none", "required"]),
}  # fmt: skip
HELLO = [{"role": "user", "content": "hello"}]
ROOM = {"max_tokens": 3, "max_completion_tokens": 3}
STATUSES = {200, 400, 404}


@st.composite
def bodies(draw: st.DrawFn, kind: type[CompletionAsked] | type[ChatAsked]) -> dict[str, Any]:
    """Bodies with a few parameters, each of the right kind as often as not."""
    names = draw(st.lists(st.sampled_from(sorted(kind.model_fields)), max_size=4, unique=True))
    return {name: draw(likely.get(name, scalars) | values if draw(st.integers(0, 3)) == 0 else likely.get(name, scalars))
            for name in names}  # fmt: skip


@pytest.fixture(scope="module")
def house() -> Iterator[Live]:
    """A server of short texts."""
    with live(make_served("base"), make_served("chat", template=TOOLS + CHAT), limits=Limits(max_tokens=8)) as running:
        yield running
        assert running.quiet(), "something is still running, or holds blocks"
        assert "herdbook_engine_failures_total{" not in httpx.get(running.url + "/metrics").text


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    """One connection for all."""
    with httpx.Client(timeout=30) as client:
        yield client


def send(http: httpx.Client, house: Live, path: str, body: bytes) -> httpx.Response:
    found = http.post(house.url + path, content=body, headers={"content-type": "application/json"})
    assert found.status_code in STATUSES, (found.status_code, found.text, body)
    if found.status_code == 200 and "event-stream" in found.headers["content-type"]:
        assert found.text.endswith("data: [DONE]\n\n")
        assert "defect" not in found.text
        assert '"error"' not in found.text
    else:
        assert isinstance(json.loads(found.text, parse_constant=lambda name: pytest.fail(name)), dict)
    return found


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies(CompletionAsked))
def test_completions(house: Live, http: httpx.Client, body: dict[str, Any]) -> None:
    send(http, house, "/v1/completions", json.dumps({"prompt": "x", **body}).encode())


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies(ChatAsked))
def test_chat(house: Live, http: httpx.Client, body: dict[str, Any]) -> None:
    send(http, house, "/v1/chat/completions", json.dumps({"model": "chat", "messages": HELLO, **ROOM, **body}).encode())


@settings(max_examples=60)
@given(value=values | st.binary().map(lambda raw: raw.decode("latin-1")), path=st.sampled_from(["/tokenize", "/detokenize"]))
def test_tokenizing(house: Live, http: httpx.Client, value: Any, path: str) -> None:
    for body in (value, {"prompt": value}, {"tokens": value}, {"messages": value}):
        send(http, house, path, json.dumps(body).encode())


@settings(max_examples=60)
@given(raw=st.binary(max_size=60))
def test_bytes(house: Live, http: httpx.Client, raw: bytes) -> None:
    assert send(http, house, "/v1/completions", raw).status_code == 400 or raw.strip()[:1] == b"{"
