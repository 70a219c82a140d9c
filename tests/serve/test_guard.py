"""Who may come in."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2 as httpx
import openai
import pytest

from herdbook.serve.door import LOOPBACK

from .conftest import Live, live, make_served

KEY = "k" * 20


@pytest.fixture(scope="module")
def locked() -> Iterator[Live]:
    """A server with a key."""
    with live(make_served("base"), keys=[KEY, "another key of ours"]) as house:
        yield house


@pytest.fixture(scope="module")
def homely() -> Iterator[Live]:
    """A server that answers to its own machine's names alone."""
    with live(make_served("base"), hosts=frozenset(LOOPBACK)) as house:
        yield house


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer k\u00e9"])
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/absent"])
def test_without_the_key_nothing_is_told(locked: Live, header: str | None, path: str) -> None:
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    found = httpx.get(locked.url + path, headers=headers)
    assert found.status_code == 401
    assert found.json()["error"]["code"] == "invalid_api_key"
    assert found.headers["www-authenticate"] == "Bearer"


def test_with_the_key(locked: Live) -> None:
    assert locked.client(api_key=KEY).models.list().data[0].id == "base"
    assert httpx.get(locked.url + "/health").status_code == 200
    with pytest.raises(openai.AuthenticationError):
        locked.client(api_key="no").completions.create(model="base", prompt="x")


def test_other_names_and_origins_are_refused(homely: Live) -> None:
    url = homely.url + "/v1/models"
    assert httpx.get(url, headers={"host": "evil.example"}).json()["error"]["code"] == "wrong_host"
    assert httpx.get(url, headers={"host": "[::"}).status_code == 403
    assert httpx.get(url, headers={"host": f"localhost:{homely.port}"}).status_code == 200
    assert httpx.get(url, headers={"origin": "https://evil.example"}).json()["error"]["code"] == "wrong_origin"
    assert httpx.get(url, headers={"origin": homely.url}).status_code == 200
    assert httpx.get(url, headers={"origin": "null"}).status_code == 403
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in httpx.options(url, headers=asked).headers
