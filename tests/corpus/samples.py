"""Small inputs for the tests of the corpus station."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

VOCABULARY = (
    *("river", "mountain", "forest", "village", "winter", "summer", "history", "people", "language", "science", "ocean"),
    *("island", "music", "theatre", "painter", "writer", "engine", "bridge", "castle", "market", "garden", "teacher"),
    *("student", "doctor", "weather", "journey", "kingdom", "battle", "letter", "machine"),
)
JOINTS = ("the", "of", "and", "to", "with", "that", "have", "be", "in", "on", "for", "from", "under", "between", "after")


def prose(seed: int, words: int = 120) -> str:
    """English-looking text that passes the quality rules and repeats nothing for long."""
    pick = random.Random(seed)
    out = []
    for index in range(words):
        out.append(pick.choice(JOINTS) if index % 2 else pick.choice(VOCABULARY) + str(pick.randrange(30)) * (index % 6 == 0))
        if index % 12 == 11:
            out[-1] += "."
    return " ".join(out)


def page(text: str, title: str = "A page") -> str:
    """An HTML page with a menu, the text in paragraphs, and a footer."""
    body = "".join(f"<p>{part}.</p>" for part in text.split(".") if part.strip())
    menu = "".join(f"<li><a href='/{n}'>Item {n}</a></li>" for n in range(5))
    return (
        f"<!doctype html><html><head><title>{title}</title></head><body><nav><ul>{menu}</ul></nav>"
        f"<main><article><h1>{title}</h1>{body}</article></main><footer>Imprint</footer></body></html>"
    )


def http(body: bytes, content_type: str = "text/html; charset=utf-8", status: str = "200 OK", *headers: str) -> bytes:
    """An HTTP response."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def warc_record(content: bytes, url: str, number: int = 0, kind: str = "response", content_type: str | None = None) -> bytes:
    """One WARC record."""
    content_type = content_type or "application/http; msgtype=response"
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:00000000-0000-4000-8000-{number:012d}>\r\n"
        f"WARC-Date: 2024-05-01T00:00:00Z\r\nWARC-Target-URI: {url}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content + b"\r\n\r\n"


def warc_gz(path: Path, records: list[bytes]) -> Path:
    """A gzip WARC with one member a record, as crawlers write them."""
    path.write_bytes(b"".join(gzip.compress(record, mtime=0) for record in records))
    return path


def jsonl(path: Path, texts: list[str], **fields: str) -> Path:
    """A jsonl file of documents."""
    path.write_text("".join(json.dumps({"id": f"doc-{n}", "text": text, **fields}) + "\n" for n, text in enumerate(texts)))
    return path
