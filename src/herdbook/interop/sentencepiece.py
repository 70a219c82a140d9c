"""SentencePiece vocabularies (`tokenizer.model`, of LLaMA, Mistral and others) as a tokenizer of the `tokenizers` library.

The file is a protobuf message; the few fields that matter are read by hand, because a reader of forty lines can refuse what
is not in order, and saves a dependency. BPE and Unigram are supported. Ids are those of SentencePiece but for rare corners:
with `nmt_nfkc` some unusual runs of combining characters are normalised differently; BPE pieces of equal score merge in the
order of their ids, not of the text; user-defined pieces that hold spaces are found where a prefix makes one; and a text that
is nothing but a user-defined piece, or of which normalising leaves nothing, gets no prefix.

`tokenizers` panics where it meets a broken character map, so the map is checked here first.

Source: sentencepiece_model.proto and the library's normaliser, which this follows.
"""

from __future__ import annotations

import base64
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from herdbook.errors import UserError, user_errors
from herdbook.tokenizer import Tokenizer

SPACE = "▁"
MAX_BYTES = 1 << 26
MAX_PIECES = 1 << 22
MAX_PIECE = 512  # characters; a piece is tried at every place where it can be cut
MAX_KEY = 64  # bytes that the character map looks at together; nmt_nfkc has 18
UNLESS = r"\A(?!(?:"  # how the pattern begins that sets the prefix unless the text is a user-defined piece
Definition = dict[str, Any]  # what tokenizer.json holds


class Kind(IntEnum):
    """What a piece is for; SentencePiece and GGUF number them alike."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    """An entry of a vocabulary."""

    text: str
    score: float
    kind: Kind


@dataclass(frozen=True)
class SentencePieceModel:
    """What a `tokenizer.model` says; `names` are the texts of bos, eos, unk and pad where there are such pieces."""

    unigram: bool
    pieces: dict[int, Piece]
    byte_fallback: bool
    charsmap: bytes
    prefix: bool
    squeeze: bool  # leave out spaces at both ends and more than one in a row
    names: dict[str, str] = field(default_factory=dict)


def load_sentencepiece(path: Path | str) -> Tokenizer:
    """The tokenizer in a `tokenizer.model`. Raises UserError as `read_sentencepiece` does."""
    definition, config = read_sentencepiece(path, {})
    return Tokenizer(json.dumps(definition, ensure_ascii=False), config, where=path)


def read_sentencepiece(path: Path | str, config: Mapping[str, Any]) -> tuple[Definition, dict[str, Any]]:
    """What `tokenizer.json` and `tokenizer_config.json` say for a `tokenizer.model`.

    Args:
        path: the file.
        config: what `tokenizer_config.json` says already. A text begins with bos unless it says `add_bos_token: false`; the
            file itself does not know.

    Raises UserError when the file is absent, broken, or of a kind that is not supported.
    """
    with user_errors(), Path(path).open("rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    model = read_model(content, path)
    settings = {"add_bos_token": "bos_token" in model.names, **model.names, **config}
    bos = settings.get("bos_token") if settings["add_bos_token"] else None
    bos = bos.get("content") if isinstance(bos, dict) else bos
    return definition_of(model, bos if isinstance(bos, str) else None), settings


# ---- the file ----

Fields = dict[int, list[Any]]  # number to values: int, bytes, or float for four bytes


def read_model(content: bytes, where: Path | str) -> SentencePieceModel:
    """Read the bytes of a `tokenizer.model`; raises UserError when they are not in order or not supported."""
    if len(content) > MAX_BYTES:
        raise UserError(f"a SentencePiece model of more than {MAX_BYTES:,} bytes is not read", where=where)
    try:
        top = _fields(content)
        # In protobuf a message that is there twice is one message, as if the bytes followed each other.
        trainer, normalizer = _fields(b"".join(_all(top, 2, bytes))), _fields(b"".join(_all(top, 3, bytes)))
        return _model(_all(top, 1, bytes), trainer, normalizer)
    except _BrokenError as error:
        todo = "name a file that SentencePiece wrote, or fetch it again"
        raise UserError(f"this is not a SentencePiece model we can read: {error}", where=where, todo=todo) from None


class _BrokenError(Exception):
    """What is wrong with the file."""


def _model(rows: list[Any], trainer: Fields, normalizer: Fields) -> SentencePieceModel:
    if not rows or len(rows) > MAX_PIECES:
        raise _BrokenError(f"it has {len(rows)} pieces")
    kind = _one(trainer, 3, int, 1)
    if kind not in (1, 2):
        raise _BrokenError(f"its type is {'WORD' if kind == 3 else 'CHAR' if kind == 4 else kind}, and not BPE or UNIGRAM")
    if _one(trainer, 24, int, 0) or not _one(normalizer, 5, int, 1):
        raise _BrokenError("it marks spaces in a way that is not supported")
    pieces = {index: _piece(index, _fields(row)) for index, row in enumerate(rows)}
    known = {piece.text: piece.kind for piece in pieces.values()}
    if len(known) < len(pieces):
        raise _BrokenError("two of its pieces are the same")
    unknown = [piece.text for piece in pieces.values() if piece.kind is Kind.UNKNOWN]
    if len(unknown) != 1:
        raise _BrokenError(f"it has {len(unknown)} pieces for what is unknown, and needs one")
    names = {"unk_token": unknown[0]}
    for name, number, usual in (("bos_token", 46, b"<s>"), ("eos_token", 47, b"</s>"), ("pad_token", 48, b"<pad>")):
        text = _text(_one(trainer, number, bytes, usual), name)
        if known.get(text) is Kind.CONTROL:
            names[name] = text
    charsmap = _one(normalizer, 2, bytes, b"")
    if charsmap:
        _check_charsmap(charsmap)
    flags = {"prefix": bool(_one(normalizer, 3, int, 1)), "squeeze": bool(_one(normalizer, 4, int, 1))}
    return SentencePieceModel(kind == 1, pieces, bool(_one(trainer, 35, int, 0)), charsmap, **flags, names=names)


def _piece(index: int, fields: Fields) -> Piece:
    text, score, kind = (
        _text(_one(fields, 1, bytes, b""), f"piece {index}"),
        _one(fields, 2, float, 0.0),
        _one(fields, 3, int, 1),
    )
    if not text or len(text) > MAX_PIECE:
        raise _BrokenError(f"piece {index} has {len(text)} characters")
    if not math.isfinite(score):
        raise _BrokenError(f"the score of piece {index} is no number")
    if kind not in tuple(Kind):
        raise _BrokenError(f"piece {index} is of the unknown kind {kind}")
    return Piece(text, score, Kind(kind))


def _fields(content: bytes) -> Fields:
    """The fields of a protobuf message, in order; those of groups, which SentencePiece does not use, are refused."""
    found: Fields = {}
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(content, at)
            found.setdefault(number, []).append(value)
            continue
        if wire not in (1, 2, 5):
            raise _BrokenError(f"there is no field at byte {at}")
        size, at = _varint(content, at) if wire == 2 else (8 if wire == 1 else 4, at)
        if size > len(content) - at:
            raise _BrokenError("it is cut off")
        part = content[at : at + size]
        found.setdefault(number, []).append(struct.unpack("<f", part)[0] if wire == 5 else part)
        at += size
    return found


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where the next thing is."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise _BrokenError("it is cut off")
        value |= (content[at] & 127) << shift
        at += 1
        if content[at - 1] < 128:
            return value, at
    raise _BrokenError(f"there is no number at byte {at}")


def _all(fields: Fields, number: int, form: type) -> list[Any]:
    values = fields.get(number, [])
    if not all(isinstance(value, form) for value in values):
        raise _BrokenError(f"field {number} is of another type than it should be")
    return values


def _one(fields: Fields, number: int, form: type, default: Any) -> Any:
    """A field that is there once; as in all of protobuf the last one counts."""
    return [default, *_all(fields, number, form)][-1]


def _text(value: bytes, what: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise _BrokenError(f"{what} is not UTF-8 text") from None


def _check_charsmap(charsmap: bytes) -> None:
    """Raise unless every walk through the character map stays inside it: a double-array trie, then the replacements."""
    size = int.from_bytes(charsmap[:4], "little")
    if len(charsmap) < 8 or size % 4 or not 1024 <= size <= len(charsmap) - 4:
        raise _BrokenError("its character map has an impossible size")
    units = np.frombuffer(charsmap, "<u4", size // 4, 4).astype(np.int64)
    texts = np.frombuffer(charsmap, np.uint8, offset=4 + size)
    _text(texts.tobytes(), "its character map")
    places = np.arange(len(units))
    labels = units & 0x800000FF  # of a unit that holds a value the highest bit is set, so that it is no one's label
    onward = places ^ (units >> 10 << ((units & 512) >> 6))
    # A unit belongs to the node that its place, without its label, is the base of.
    owners = np.where((labels > 0) & (labels < 256), places ^ labels, len(units))
    owners = np.where(owners < len(units), owners, len(units))
    bases, seen = onward[:1], np.zeros(len(units), bool)
    for _ in range(MAX_KEY):
        if (bases | 255).max() >= len(units):
            raise _BrokenError("its character map leads out of the file")
        inside = np.zeros(len(units) + 1, bool)
        inside[bases] = True
        fresh = inside[owners] & ~seen
        if not fresh.any():
            return
        seen |= fresh
        bases = onward[fresh]
        ends = bases[(units[fresh] & 256) > 0]
        values = units[ends[ends < len(units)]] & 0x7FFFFFFF
        if len(values) and (values.max() >= len(texts) or (texts[values] & 0xC0 == 0x80).any()):
            raise _BrokenError("its character map has no text for a character")
    raise _BrokenError("its character map has no end")


# ---- what `tokenizers` makes of it ----


def definition_of(model: SentencePieceModel, bos: str | None) -> Definition:
    """`tokenizer.json` for a SentencePiece model; with a `bos`, every text begins with it."""
    clean: list[Definition] = []
    if model.charsmap:
        encoded = base64.b64encode(model.charsmap).decode()
        clean.append({"type": "Precompiled", "precompiled_charsmap": encoded})
    if model.squeeze:
        clean.append({"type": "Replace", "pattern": {"Regex": r"\A +|[ ▁]+\z"}, "content": ""})
        clean.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if model.unigram:
        # User-defined pieces are pieces of the model here, with a score that nothing beats.
        definition = _assemble(_unigram(model), model.pieces, prefix=model.prefix, bos=bos)
        definition["pre_tokenizer"] = _keep_apart(model.pieces)
    else:
        definition = bpe_definition(model.pieces, unk=model.names["unk_token"], prefix=model.prefix, bos=bos)
        definition["model"]["byte_fallback"] = model.byte_fallback
        _keep_going(definition, prefix=model.prefix)
    definition["normalizer"]["normalizers"][:0] = clean
    return definition


def _keep_going(definition: Definition, *, prefix: bool) -> None:
    """Have user-defined pieces found in the text after it was cleaned, so that what follows one does not begin anew.

    `tokenizers` cleans what it looks for in the same way, so the prefix must spare a text that is nothing but such a piece.
    """
    users = [token for token in definition["added_tokens"] if not token["special"]]
    for token in users:
        token["normalized"] = True
    if users and prefix:
        names = "|".join(re.escape(token["content"]) for token in users)
        step = {"type": "Replace", "pattern": {"Regex": f"{UNLESS}{names})?\\z)"}, "content": SPACE}
        definition["normalizer"]["normalizers"][0] = step


def bpe_definition(pieces: Mapping[int, Piece], *, unk: str | None, prefix: bool, bos: str | None) -> Definition:
    """`tokenizer.json` for a vocabulary of pieces with scores that are merged as SentencePiece does.

    Args:
        pieces: ids to pieces; control and user-defined ones are found in the text as they are.
        unk: the text of the piece for what is unknown.
        prefix: put a space before every text, and after every control or user-defined piece.
        bos: the text of the piece that every text begins with.
    """
    model = {
        "type": "BPE", "dropout": None, "unk_token": unk, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": True, "byte_fallback": any(piece.kind is Kind.BYTE for piece in pieces.values()), "ignore_merges": False,
        "vocab": {piece.text: index for index, piece in pieces.items()}, "merges": _merges(pieces),
    }  # fmt: skip
    return _assemble(model, pieces, prefix=prefix, bos=bos)


def _merges(pieces: Mapping[int, Piece]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, that of the highest score first.

    SentencePiece merges the neighbours that make the piece of the highest score, so a pair ranks as what it makes.
    """
    mergeable = {piece.text for piece in pieces.values() if piece.kind is Kind.NORMAL}
    ordered = sorted(
        (index for index, piece in pieces.items() if piece.kind is Kind.NORMAL), key=lambda i: (-pieces[i].score, i)
    )
    return [pair for index in ordered for pair in cuts(pieces[index].text) if mergeable.issuperset(pair)]


def cuts(text: str) -> Iterator[tuple[str, str]]:
    """Every way to cut a text in two."""
    return ((text[:at], text[at:]) for at in range(1, len(text)))


def _unigram(model: SentencePieceModel) -> Definition:
    """The model of a Unigram vocabulary. Pieces that no text has are given the lowest score: `_keep_apart` sees to the rest."""
    scores = [piece.score for piece in model.pieces.values() if piece.kind is Kind.NORMAL] or [0.0]
    vocab = []
    for piece in model.pieces.values():
        score = piece.score if piece.kind is Kind.NORMAL else min(scores)
        if piece.kind is Kind.USER_DEFINED:  # SentencePiece's rule: always better than what else could stand there
            score = len(piece.text) * max(scores) - 0.1
        vocab.append((piece.text, score))
    unknown = next(index for index, piece in model.pieces.items() if piece.kind is Kind.UNKNOWN)
    return {"type": "Unigram", "unk_id": unknown, "vocab": vocab, "byte_fallback": model.byte_fallback}


def _keep_apart(pieces: Mapping[int, Piece]) -> Definition | None:
    """Cut a text that spells out a control or byte piece behind its first character, so that the model cannot take it."""
    rests: dict[str, list[str]] = {}
    for piece in pieces.values():
        if piece.kind not in (Kind.NORMAL, Kind.USER_DEFINED) and len(piece.text) > 1:
            rests.setdefault(piece.text[0], []).append(re.escape(piece.text[1:]))
    places = [f"(?<={re.escape(first)})(?={'|'.join(sorted(tails))})" for first, tails in sorted(rests.items())]
    if not places:
        return None
    return {"type": "Split", "pattern": {"Regex": "|".join(places)}, "behavior": "Isolated", "invert": False}


def _assemble(model: Definition, pieces: Mapping[int, Piece], *, prefix: bool, bos: str | None) -> Definition:
    """A model with what stands before and behind it: spaces to `▁` and back, control pieces, the first token."""
    ids = {piece.text: index for index, piece in pieces.items()}
    steps: list[Definition] = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    back: list[Definition] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    found = (Kind.CONTROL, Kind.UNKNOWN) if model["type"] == "Unigram" else (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED)
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            added_token(index, piece.text, special=piece.kind is not Kind.USER_DEFINED)
            for index, piece in sorted(pieces.items()) if piece.kind in found
        ],
        "normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None,
        "post_processor": None if bos is None or bos not in ids else begin_with(bos, ids[bos]),
        "decoder": {"type": "Sequence", "decoders": back}, "model": model,
    }  # fmt: skip


def added_token(index: int, text: str, *, special: bool) -> Definition:
    """A token that is found in the text before anything else; special ones stand for no text."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": text, **flags, "special": special}


def begin_with(text: str, index: int) -> Definition:
    """A post-processor that puts a token before every text."""
    first, one, two = ({"SpecialToken": {"id": text, "type_id": 0}}, *({"Sequence": {"id": s, "type_id": 0}} for s in "AB"))
    names = {text: {"id": text, "ids": [index], "tokens": [text]}}
    return {"type": "TemplateProcessing", "single": [first, one], "pair": [first, one, first, two], "special_tokens": names}
