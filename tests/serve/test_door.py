"""Addresses and keys, before anything is loaded."""

from __future__ import annotations

import pytest

from herdbook.errors import UserError
from herdbook.serve.door import LOOPBACK, bind, hosts, is_loopback, keys_of, require_door

NEAR = {"127.0.0.1": True, "::1": True, "localhost": True, "127.9.9.9": True, "0.0.0.0": False, "::": False, "10.0.0.1": False,
        "box.example": False}  # fmt: skip


@pytest.mark.parametrize(("host", "near"), NEAR.items())
def test_wide_addresses_want_a_key(host: str, near: bool) -> None:
    assert is_loopback(host) == near
    require_door(host, ["k"], open_to_the_network=False)
    require_door(host, [], open_to_the_network=True)
    if near:
        require_door(host, [], open_to_the_network=False)
    else:
        with pytest.raises(UserError, match="HERDBOOK_API_KEY"):
            require_door(host, [], open_to_the_network=False)


def test_names() -> None:
    assert hosts("127.0.0.1", [], open_to_the_network=False) == {*LOOPBACK}
    assert hosts("127.0.0.1", ["k"], open_to_the_network=False) is None
    assert hosts("0.0.0.0", [], open_to_the_network=True) is None


def test_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERDBOOK_API_KEY", "a" * 16 + "," + "b" * 16)
    assert keys_of([]) == ["a" * 16, "b" * 16]
    assert keys_of(["c" * 16]) == ["c" * 16]
    for wrong in ("short", "with spaces in the middle", "é" * 20):
        with pytest.raises(UserError, match="16 characters"):
            keys_of([wrong])
    monkeypatch.delenv("HERDBOOK_API_KEY")
    assert keys_of([]) == []


def test_a_port_in_use_and_an_address_of_nobody() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UserError, match=str(port)):
            bind("127.0.0.1", port)
    with pytest.raises(UserError):
        bind("not a host", 0)
    with pytest.raises(UserError):
        bind("192.0.2.1", 0)
