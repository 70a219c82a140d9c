"""The tokenizer inside a GGUF file, `tokenizer.ggml.*`, and the way back.

Two of llama.cpp's models are known: `gpt2`, byte-level BPE with merges, and `llama`, SentencePiece BPE with scores. How
`gpt2` cuts a text into words hangs on `tokenizer.ggml.pre`, the name of a model that cuts in that way; a name stands here
for what that model's own tokenizer.json does. llama.cpp does the same but for three things: it does not bring text into
Unicode's form C, as `olmo`, `mpt`, `qwen2` and `command-r` do; it does not cut inside of characters, as `falcon` does, which
shows only with vocabularies that are not Falcon's; and of plain text it may make a control token, which is never done here.

Ids that no token uses are called `[PAD50431]` in GGUF; they are left out on reading and put in on writing.

Source: the behaviour of llama.cpp (llama-vocab.cpp and its converter).
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from herdbook.errors import UserError
from herdbook.interop.sentencepiece import (
    MAX_PIECE,
    SPACE,
    UNLESS,
    Definition,
    Kind,
    Piece,
    added_token,
    begin_with,
    bpe_definition,
    cuts,
)
from herdbook.tokenizer import Tokenizer

PREFIX = "tokenizer.ggml."
TEMPLATE = "tokenizer.chat_template"
NAMES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
LLAMA_IDS = {"bos": 1, "eos": 2, "unknown": 0}  # what llama.cpp assumes of a `llama` vocabulary that does not say
MAX_TOKEN = 1 << 14  # characters


# ---- how texts are cut into words ----


def _split(pattern: str) -> Definition:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _bytes(*, words: bool) -> Definition:
    """Bytes to printable characters; with `words` also GPT-2's way of cutting words."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": words}


DIGITS: Definition = {"type": "Digits", "individual_digits": True}
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
GPT4_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Words:
    """How a `pre` cuts: the pre-tokenizer's steps, Unicode's form C before them, whole words before merges, bos unless said."""

    steps: tuple[Definition, ...]
    composed: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


_PLAIN = Words((_bytes(words=True),))
_DIGITS = Words((DIGITS, _bytes(words=True)))
_COMPOSED = Words(_PLAIN.steps, composed=True)
_LLAMA3 = (_split(GPT4_WORDS % "{1,3}"), _bytes(words=False))
_QWEN2 = (_split(GPT4_WORDS % ""), _bytes(words=False))
_BLOOM = Words((_split(" ?[^(\\s|[.,!?…。，、।۔،])]+"), _bytes(words=False)))
# Of several names for one way the first is written.
WORDS: dict[str, Words] = {
    "gpt-2": _PLAIN, "phi-2": _PLAIN, "jais": _PLAIN, "exaone4": _PLAIN,
    "smollm": _DIGITS, "starcoder": _DIGITS, "refact": _DIGITS, "codeshell": _DIGITS, "exaone": _DIGITS, "minerva-7b": _DIGITS,
    "olmo": _COMPOSED, "mpt": _COMPOSED, "command-r": Words(_DIGITS.steps, composed=True),
    "llama-bpe": Words(_LLAMA3, ignore_merges=True, add_bos=True), "dbrx": Words(_LLAMA3), "smaug-bpe": Words(_LLAMA3),
    "qwen2": Words(_QWEN2, composed=True), "deepseek-r1-qwen": Words(_QWEN2, composed=True), "stablelm2": Words(_QWEN2),
    "bloom": _BLOOM, "gpt3-finnish": _BLOOM, "poro-chat": _BLOOM,
    "falcon": Words((
        {"type": "Punctuation", "behavior": "Contiguous"}, _bytes(words=True),
        {"type": "Digits", "individual_digits": False}, _split("[0-9][0-9][0-9]"),
    )),
    "default": Words((
        _split(r"[\p{P}\$\+<=>\^~\|]+"), _split(GPT2_WORDS), _split(r"\p{N}+"), _split("[0-9][0-9][0-9]"), _bytes(words=False),
    )),
}  # fmt: skip
WORDS |= dict.fromkeys(("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), WORDS["llama-bpe"])


# ---- reading ----


def tokenizer_from_gguf(metadata: Mapping[str, Any], where: Path | str) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describes, with its special tokens and chat template.

    Args:
        metadata: as `open_gguf` gives it.
        where: the file, for errors.

    Raises UserError when there is none, it is not in order, or of a kind that is not supported.
    """
    source = _Source(metadata, where)
    model = source.get("model", str)
    if model not in ("gpt2", "llama"):
        todo = "models `gpt2` (byte-level BPE) and `llama` (SentencePiece BPE) are supported"
        raise source.wrong("model", f"is {model!r}, which is not one we read", todo)
    pieces = source.pieces(model)
    ids = {name: source.token_id(name, pieces, LLAMA_IDS.get(name) if model == "llama" else None)
           for name in (*NAMES.values(), "eot", "eom")}  # fmt: skip
    for name in ("bos", "eos", "eot", "eom"):  # these stand for no text, whatever the file says of them
        index = ids[name]
        if index is not None and pieces[index].kind is not Kind.UNKNOWN:
            pieces[index] = pieces[index]._replace(kind=Kind.CONTROL)
    names = {name: pieces[index].text for name, short in NAMES.items() if (index := ids[short]) is not None}
    words = source.words() if model == "gpt2" else Words((), add_bos=True)
    add_bos = source.get("add_bos_token", bool, words.add_bos) and "bos_token" in names
    bos = names["bos_token"] if add_bos else None
    if model == "gpt2":
        vocabulary = {piece.text: index for index, piece in pieces.items()}
        added = [(index, piece) for index, piece in pieces.items() if piece.kind in (2, 3, 4)]
        tokens = [added_token(index, piece.text, special=piece.kind is not Kind.USER_DEFINED) for index, piece in added]
        definition = byte_level_definition(vocabulary, source.merges(vocabulary), words, tokens, bos)
    else:
        unk = names.get("unk_token")
        definition = bpe_definition(pieces, unk=unk, prefix=source.get("add_space_prefix", bool, True), bos=bos)
    config = {"add_bos_token": add_bos, "add_eos_token": source.get("add_eos_token", bool, False), **names}
    template = metadata.get(TEMPLATE)
    stop_ids = [index for index in (ids["eot"], ids["eom"]) if index is not None]
    return Tokenizer(
        json.dumps(definition, ensure_ascii=False), {"clean_up_tokenization_spaces": False, **config},
        chat_template=template if isinstance(template, str) else None, stop_ids=stop_ids, where=where,
    )  # fmt: skip


class _Source:
    """The `tokenizer.ggml.*` keys of a file, each held against the type it should have."""

    def __init__(self, metadata: Mapping[str, Any], where: Path | str) -> None:
        self.metadata, self.where = metadata, where

    def wrong(self, key: str, what: str, todo: str = "this file is damaged, or was made by a broken tool") -> UserError:
        """The error to raise about a key."""
        return UserError(f"{PREFIX}{key} {what}", where=self.where, todo=todo)

    def get(self, key: str, form: type, default: Any = None) -> Any:
        """The value of a key; the default where there is none, and an error where there is no default either."""
        value = self.metadata.get(PREFIX + key, default)
        if value is None:
            raise self.wrong(key, "is missing", "name a GGUF file that holds a tokenizer")
        if not isinstance(value, form) or (isinstance(value, bool) and form is not bool):
            raise self.wrong(key, f"is of another type than it should be ({type(value).__name__})")
        return value

    def entries(self, key: str, form: type | tuple[type, ...], count: int | None = None) -> list[Any]:
        """A list whose entries are of one type, of a length that is known unless `count` is None."""
        found: list[Any] = self.get(key, list)
        if not all(isinstance(entry, form) and not isinstance(entry, bool) for entry in found):
            raise self.wrong(key, "has entries of another type than it should")
        if count is not None and len(found) != count:
            raise self.wrong(key, f"has {len(found)} entries, and there are {count} tokens")
        return found

    def pieces(self, model: str) -> dict[int, Piece]:
        """Ids to tokens, without those that only fill the vocabulary up."""
        texts = self.entries("tokens", str)
        if not texts:
            raise self.wrong("tokens", "is empty")
        kinds = self.entries("token_type", int, len(texts)) if PREFIX + "token_type" in self.metadata else [1] * len(texts)
        scores = self.entries("scores", (int, float), len(texts)) if model == "llama" else [0.0] * len(texts)
        if not all(map(math.isfinite, scores)):
            raise self.wrong("scores", "has entries that are no numbers")
        known, longest = frozenset(Kind), MAX_PIECE if model == "llama" else MAX_TOKEN
        pieces: dict[int, Piece] = {}
        for index, (text, score, kind) in enumerate(zip(texts, scores, kinds, strict=True)):
            kind = Kind(kind) if kind in known else Kind.NORMAL
            fills_up = kind in (Kind.UNUSED, Kind.USER_DEFINED) and text == f"[PAD{index}]"
            if len(text) > longest:
                raise self.wrong("tokens", f"has a token of {len(text)} characters, with the id {index}")
            if text and not fills_up:
                pieces[index] = Piece(text, score, kind)
        if len({piece.text for piece in pieces.values()}) < len(pieces):
            seen: dict[str, int] = {}
            twice = next((seen[p.text], i) for i, p in pieces.items() if seen.setdefault(p.text, i) != i)
            raise self.wrong("tokens", f"has the same token for the ids {twice[0]} and {twice[1]}")
        return pieces

    def token_id(self, name: str, pieces: Mapping[int, Piece], default: int | None) -> int | None:
        """The id of a special token, or None."""
        key = f"{name}_token_id"
        if PREFIX + key not in self.metadata:
            return default if default in pieces else None
        index: int = self.get(key, int)
        if index not in pieces:
            raise self.wrong(key, f"is {index}, and there is no such token")
        return index

    def words(self) -> Words:
        """How the text is cut into words."""
        if PREFIX + "pre" not in self.metadata:
            warnings.warn(f"{self.where} does not say how text is cut into words; like llama.cpp we guess", stacklevel=3)
        pre = self.get("pre", str, "default")
        if pre not in WORDS:
            raise self.wrong("pre", f"is {pre!r}, which is not one we read", f"known: {', '.join(WORDS)}")
        return WORDS[pre]

    def merges(self, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
        """The pairs to merge, the first one first."""
        lines = self.entries("merges", str)
        if len(set(lines)) < len(lines):
            raise self.wrong("merges", "has an entry twice")
        pairs = []
        for line in lines:
            left, _, right = line[1:].partition(" ")
            pair = line[:1] + left, right
            if not all(part in vocabulary for part in (*pair, "".join(pair))):
                raise self.wrong("merges", f"has the entry {line[:80]!r}, whose tokens are not all in the vocabulary")
            pairs.append(pair)
        return pairs


def byte_level_definition(
    vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], words: Words, added: Sequence[Definition],
    bos: str | None,
) -> Definition:  # fmt: skip
    """`tokenizer.json` for a byte-level BPE vocabulary; with a `bos`, every text begins with it."""
    steps = [*words.steps]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": list(added),
        "normalizer": {"type": "NFC"} if words.composed else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0],
        "post_processor": None if bos is None else begin_with(bos, vocabulary[bos]),
        "decoder": _bytes(words=True),
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": words.ignore_merges,
            "vocab": dict(vocabulary), "merges": list(merges),
        },
    }  # fmt: skip


# ---- writing ----


def gguf_metadata_of(tokenizer: Tokenizer, vocab_rows: int) -> dict[str, Any]:
    """The metadata with which llama.cpp gives the ids of a tokenizer, and `tokenizer_from_gguf` the tokenizer.

    Args:
        tokenizer: a byte-level BPE that cuts words in a way llama.cpp knows, or a SentencePiece BPE.
        vocab_rows: how many tokens the model has; ids that the tokenizer does not use are filled up.

    Raises UserError, naming it, for what GGUF cannot express. Warns where llama.cpp differs on some unusual texts.
    """
    definition: Definition = json.loads(tokenizer.definition)
    if tokenizer.vocab_size > vocab_rows:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} ids, and the model {vocab_rows} rows for them")
    model, added = definition["model"], definition["added_tokens"]
    odd = [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if model["type"] != "BPE" or odd:
        raise _inexpressible(f"{' and '.join(odd)} of BPE" if odd else f"a model of type {model['type']}")
    for token in added:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise _inexpressible(f"that the token {token['content']!r} takes the spaces or words beside it into account")
    kinds = {token["id"]: Kind.CONTROL if token["special"] else Kind.USER_DEFINED for token in added}
    steps = _flat(definition["pre_tokenizer"], "pretokenizers")
    byte_level = any(step["type"] == "ByteLevel" for step in steps)
    keys, texts = (_byte_level if byte_level else _sentencepiece)(definition, steps, kinds)
    texts |= {token["id"]: token["content"] for token in added}
    if not byte_level:  # llama.cpp looks for these in the text as it is
        texts |= {token["id"]: token["content"].replace(SPACE, " ") for token in added if token["normalized"]}
    taken = set(texts.values())
    for index in range(vocab_rows):
        if index not in texts:
            kinds[index], texts[index] = Kind.UNUSED, f"[PAD{index}]"
            while texts[index] in taken:
                texts[index] = f"[{texts[index]}]"
    scores = keys.pop("scores", None)
    keys["tokens"] = [texts[index] for index in range(vocab_rows)]
    if scores is not None:  # what no merge makes comes after everything that one makes
        keys["scores"] = [float(scores.get(text, -len(scores))) for text in keys["tokens"]]
    keys["token_type"] = [int(kinds.get(index, Kind.NORMAL)) for index in range(vocab_rows)]
    keys |= _special_tokens(tokenizer)
    template = {} if tokenizer.chat_template is None else {TEMPLATE: tokenizer.chat_template}
    return {**{PREFIX + key: value for key, value in keys.items()}, **template}


def _inexpressible(what: str) -> UserError:
    todo = "save the model as a Hugging Face folder instead, or train a tokenizer of kind bpe or llama"
    return UserError(f"GGUF cannot express {what}", where="the tokenizer", todo=todo)


def _flat(step: Definition | None, parts: str) -> list[Definition]:
    """The steps of a normaliser or pre-tokenizer, sequences in sequences written out."""
    if step is None:
        return []
    return [inner for part in step[parts] for inner in _flat(part, parts)] if step["type"] == "Sequence" else [step]


def _differs(what: str) -> None:
    warnings.warn(f"llama.cpp {what}: on such texts its ids will differ", stacklevel=4)


Keys = tuple[dict[str, Any], dict[int, str]]  # the keys of a model, and ids to texts


def _byte_level(definition: Definition, steps: list[Definition], kinds: dict[int, Kind]) -> Keys:
    """Keys of a `gpt2` vocabulary."""
    model = definition["model"]
    cleaning = _flat(definition["normalizer"], "normalizers")
    composed = [step["type"] for step in cleaning] == ["NFC"]
    if cleaning and not composed:
        raise _inexpressible(f"a normaliser of type {cleaning[0]['type']}")
    plain = [{**step, "trim_offsets": True} if step["type"] == "ByteLevel" else step for step in steps]
    wanted = Words(tuple(plain), composed, model["ignore_merges"])
    same_steps = {name: words for name, words in WORDS.items() if words.steps == wanted.steps}
    names = [name for name, words in same_steps.items() if words.ignore_merges == wanted.ignore_merges]
    if not names:
        raise _inexpressible(f"a pre-tokenizer of these steps: {json.dumps(steps, ensure_ascii=False)}")
    if composed:
        _differs("does not bring text into Unicode's form C")
    pre = next((name for name in names if WORDS[name].composed == composed), names[0])
    merges = [" ".join(pair) for pair in model["merges"]]
    if any(" " in part for pair in model["merges"] for part in pair):
        raise _inexpressible("merges of tokens with spaces")
    texts = {index: text for text, index in model["vocab"].items()}
    return {"model": "gpt2", "pre": pre, "merges": merges}, texts


def _sentencepiece(definition: Definition, steps: list[Definition], kinds: dict[int, Kind]) -> Keys:
    """Keys of a `llama` vocabulary."""
    model = definition["model"]
    prefix = _has_prefix(_flat(definition["normalizer"], "normalizers"), steps)
    if model["ignore_merges"]:
        raise _inexpressible("whole words before merges, with SentencePiece")
    texts: dict[int, str] = {index: text for text, index in model["vocab"].items()}
    if model["byte_fallback"]:
        names = (f"<0x{byte:02X}>" for byte in range(256))
        kinds |= {model["vocab"][name]: Kind.BYTE for name in names if name in model["vocab"]}
    if model["unk_token"] in model["vocab"]:
        kinds[model["vocab"][model["unk_token"]]] = Kind.UNKNOWN
    normal = {text for index, text in texts.items() if index not in kinds}
    scores = _scores([(left, right) for left, right in model["merges"]], normal)
    return {"model": "llama", "pre": "default", "add_space_prefix": prefix, "scores": scores}, texts


def _has_prefix(cleaning: list[Definition], steps: list[Definition]) -> bool:
    """Whether a space is put before a text; an error where spaces are handled in another way than SentencePiece's."""
    mark = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if len(steps) == 1 and steps[0]["type"] == "Metaspace" and not cleaning:
        scheme = steps[0]["prepend_scheme"]
        if steps[0]["replacement"] == SPACE and not steps[0]["split"]:
            if scheme != "never":
                _differs("puts a space before every text, also where there is one, and after each special token")
            return bool(scheme != "never")
    if not steps and cleaning[-1:] == [mark]:
        first = cleaning[:-1]
        if first in ([], [{"type": "Prepend", "prepend": SPACE}]):
            return bool(first)
        if len(first) == 1 and str(first[0].get("pattern", {}).get("Regex", "")).startswith(UNLESS):
            _differs("puts a space behind each user-defined piece")
            return True
    raise _inexpressible(f"this way to handle spaces: {json.dumps([*cleaning, *steps], ensure_ascii=False)[:500]}")


def _scores(merges: list[tuple[str, str]], normal: set[str]) -> dict[str, int]:
    """Scores that make SentencePiece merge in the order of `merges`; an error where none do.

    SentencePiece merges whatever makes a piece, so all pairs that make one have to be there, and next to each other.
    """
    scores: dict[str, int] = {}
    last = ""
    for left, right in merges:
        if (made := left + right) != last and made in scores:
            raise _inexpressible(f"the order of its merges, which come back to {made!r}")
        scores.setdefault(made, -len(scores))
        last = made
    pairs = set(merges)
    for text in normal:
        missing = next((pair for pair in cuts(text) if normal.issuperset(pair) and pair not in pairs), None)
        if missing is not None:
            raise _inexpressible(f"that {missing[0]!r} and {missing[1]!r} do not merge, though {text!r} is a token")
    return scores


def _special_tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    """Ids of the special tokens, and which of them every text has."""
    ids = {short: tokenizer.token_id(tokenizer.special_token(name)) for name, short in NAMES.items()}
    if ids["eos"] is None:
        raise _inexpressible("that no token ends a text (eos_token in tokenizer_config.json)")
    bos, eos, probe = ids["bos"], ids["eos"], tokenizer.encode("a")
    whole = tokenizer.encode_prompt("a")
    before, behind = whole[:1] == [bos] and bos is not None, whole[-1:] == [eos] and len(whole) > len(probe)
    if whole != [*([bos] if before else []), *probe, *([eos] if behind else [])]:
        raise _inexpressible("a post-processor that adds other tokens than bos_token and eos_token")
    # llama.cpp takes the token with the id 11 for bos unless it is told which one is.
    keys: dict[str, Any] = {
        f"{name}_token_id": index for name, index in {**ids, "bos": bos if bos is not None else eos}.items()
    }
    # A config may name ends of the tokenizer that the model had before.
    known = {index for index in tokenizer.end_ids if index < tokenizer.vocab_size}
    others = sorted(known - {eos}, key=lambda index: index != tokenizer.turn_end_id)
    keys |= {f"{name}_token_id": index for name, index in zip(("eot", "eom"), others, strict=False)}
    keys = {key: index for key, index in keys.items() if index is not None}
    return {**keys, "add_bos_token": before, "add_eos_token": behind or bool(tokenizer.config.get("add_eos_token"))}
