"""The address of a server, and whom it answers: this machine alone, unless there is a key or one is told otherwise."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Sequence

from herdbook.errors import UserError

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address, before the models are loaded: who has the port wrong should not wait for them.

    Raises UserError when the address is none of this machine's, or is in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"{host!r} is no address ({error})", where="--host", todo="give a name or number of this machine"
        ) from error
    found = socket.socket(family, kind, protocol)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
        found.listen(1024)  # without it two servers could both bind; nobody is answered before the models are there
    except (OSError, OverflowError) as error:
        found.close()
        todo = "choose another with --port, or end what listens there"
        raise UserError(f"port {port} at {host} is not to be had: {error}", where="--port", todo=todo) from error
    return found


def require_door(host: str, keys: Sequence[str], *, open_to_the_network: bool) -> None:
    """Raises UserError when a server would answer to everybody on the network and nobody has said that it should."""
    if not is_loopback(host) and not keys and not open_to_the_network:
        raise UserError(
            f"{host} can be reached by others, and no API key keeps them out", where="--host",
            todo="set HERDBOOK_API_KEY or give --api-key; or say --open-to-the-network",
        )  # fmt: skip


def hosts(host: str, keys: Sequence[str], *, open_to_the_network: bool) -> frozenset[str] | None:
    """The names that clients may call the server by; None: any."""
    return None if keys or open_to_the_network or not is_loopback(host) else frozenset({*LOOPBACK, host})


def keys_of(given: Sequence[str]) -> list[str]:
    """API keys from the command line, or else from the environment. Raises UserError for one that is too short to be secret."""
    keys = list(given) or [key for key in os.environ.get("HERDBOOK_API_KEY", "").split(",") if key]
    if any(len(key) < 16 or not key.isascii() or key.split() != [key] for key in keys):
        todo = f"make one: {sys.executable.rpartition('/')[2]} -c 'import secrets; print(secrets.token_urlsafe())'"
        raise UserError("an API key needs at least 16 characters of ASCII without spaces", where="--api-key", todo=todo)
    return keys
