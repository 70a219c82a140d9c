"""The bytes that a token stands for, which its text alone does not tell: a character can be spread over several tokens."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from typing import Any

from herdbook.tokenizer import Tokenizer

SPACE = "\u2581"  # SentencePiece's mark of a space
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Pieces:
    """Ids to bytes, for byte-level vocabularies and for those that fall back on bytes; others by their text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        definition = json.loads(tokenizer.definition)
        self._tokenizer = tokenizer
        self._plain = {row["id"]: row["content"] for row in definition.get("added_tokens") or []}
        vocabulary = definition["model"].get("vocab") or {}
        rows = vocabulary.items() if isinstance(vocabulary, dict) else ((row[0], place) for place, row in enumerate(vocabulary))
        self._pieces = {index: piece for piece, index in rows}
        decoders = set(_types(definition.get("decoder")))
        self._letters = _byte_letters() if "ByteLevel" in decoders else None
        self._marked = bool({"ByteFallback", "Metaspace"} & decoders)

    def bytes_of(self, index: int) -> bytes:
        """The bytes of a token; none for an id that the tokenizer does not know."""
        if index in self._plain:
            return _encoded(self._plain[index])
        piece = self._pieces.get(index)
        if piece is None:
            return b""
        if self._letters is not None and all(letter in self._letters for letter in piece):
            return bytes(self._letters[letter] for letter in piece)
        if self._marked:
            byte = _BYTE.fullmatch(piece)
            return bytes([int(byte[1], 16)]) if byte else _encoded(piece.replace(SPACE, " "))
        return _encoded(self._tokenizer.decode([index], skip_special=False))

    def shown(self, index: int) -> str:
        """The token as text; as `bytes:\\xe2\\x80` where it is part of a character, which is how OpenAI's API writes it."""
        raw = self.bytes_of(index)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class Offsets:
    """Where in a text each token begins, in characters."""

    def __init__(self, pieces: Pieces, start: int = 0) -> None:
        self._pieces, self._place = pieces, start
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def next(self, index: int) -> int:
        """The offset of the next token."""
        place = self._place
        self._place += len(self._decoder.decode(self._pieces.bytes_of(index)))
        return place


def _types(decoder: Mapping[str, Any] | None) -> list[str]:
    """The kinds of a decoder and of those it is made of."""
    if not decoder:
        return []
    return [decoder["type"], *(kind for part in decoder.get("decoders", []) for kind in _types(part))]


def _byte_letters() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for what follows U+0100 in order."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {**{chr(byte): byte for byte in plain}, **{chr(256 + place): byte for place, byte in enumerate(rest)}}


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", errors="replace")
