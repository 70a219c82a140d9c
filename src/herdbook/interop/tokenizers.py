"""One door for every form that a tokenizer lies in.

    tokenizer.json             what the `tokenizers` library writes, and this project
    tokenizer.model            SentencePiece's: LLaMA, Mistral
    vocab.json + merges.txt    what GPT-2 and OPT were published with
    *.gguf                     inside a model for llama.cpp

A folder is searched in this order. Nothing that is read is executed, and files of absurd size are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from herdbook.errors import UserError
from herdbook.files import read_json
from herdbook.interop.gguf.container import open_gguf
from herdbook.interop.gguf.vocabulary import Words, byte_level_definition, tokenizer_from_gguf
from herdbook.interop.sentencepiece import Definition, added_token, read_sentencepiece
from herdbook.tokenizer import SPECIAL_NAMES, Tokenizer

MAX_BYTES = 1 << 28  # the largest published tokenizer.json has some 34 MB
CONFIG, SPECIALS, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
MAX_ID = 1 << 31
GPT2_END = "<|endoftext|>"


def load_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer in a folder or file, told by its name. Raises UserError when there is none or it is broken."""
    path = Path(path)
    if path.is_dir():
        if (path / "tokenizer.json").is_file():
            return _from_json(path / "tokenizer.json")
        if (path / "tokenizer.model").is_file():
            return _from_model(path / "tokenizer.model")
        if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
            return _from_vocab(path)
        todo = "a folder should hold tokenizer.json, tokenizer.model, or vocab.json and merges.txt"
        raise UserError("there is no tokenizer here", where=path, todo=todo)
    if not path.is_file():
        raise UserError("there is no such file or folder", where=path, todo="check the path")
    if path.suffix == ".gguf":
        return tokenizer_from_gguf(open_gguf(path).metadata, path)
    if path.suffix == ".json":
        return _from_json(path)
    if ".model" in path.suffixes:  # Mistral's are called tokenizer.model.v3
        return _from_model(path)
    raise UserError(
        "this file is no tokenizer that we know", where=path, todo="name a .json, .model or .gguf file, or a folder"
    )


def _from_json(path: Path) -> Tokenizer:
    _bounded(path)
    if path.name == "tokenizer.json":
        return Tokenizer.load(path.parent)
    try:
        return Tokenizer(path.read_text(encoding="utf-8"), where=path)
    except UnicodeDecodeError as error:
        raise UserError("this tokenizer is not UTF-8 text", where=path) from error


def _from_model(path: Path) -> Tokenizer:
    """SentencePiece's file, and where it has its usual name what the other files in the folder add to it."""
    folder = path.parent if path.name == "tokenizer.model" else None
    definition, config = read_sentencepiece(path, _config(folder))
    return _complete(definition, config, folder, path)


def _from_vocab(folder: Path) -> Tokenizer:
    """GPT-2's two files, with what the other files in the folder add to them."""
    where = folder / "vocab.json"
    vocabulary, config = _object(where), _config(folder)
    if not vocabulary or not all(type(index) is int and 0 <= index < MAX_ID for index in vocabulary.values()):
        raise UserError("a vocabulary maps tokens to ids", where=where)
    if len(set(vocabulary.values())) < len(vocabulary):
        raise UserError("two tokens have the same id", where=where)
    if GPT2_END in vocabulary and not any(name in config for name in SPECIAL_NAMES):
        config |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), GPT2_END)  # as it was published: nothing says so
    specials = sorted(_specials(config) & vocabulary.keys())
    added = [added_token(vocabulary[name], name, special=True) for name in specials]
    bos = _content(config.get("bos_token")) if config.get("add_bos_token") is True else None
    spaced = config.get("add_prefix_space") is True
    step = {"type": "ByteLevel", "add_prefix_space": spaced, "trim_offsets": True, "use_regex": True}
    merges = _merges(folder / "merges.txt", vocabulary)
    definition = byte_level_definition(vocabulary, merges, Words((step,)), added, bos if bos in vocabulary else None)
    return _complete(definition, config, folder, where)


def _merges(path: Path, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    _bounded(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError("these merges are not UTF-8 text", where=path) from error
    pairs: dict[tuple[str, str], None] = {}
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if right.endswith("</w>"):
            raise UserError("this is a BPE of words, not of bytes, which is not supported", where=f"{path}:{number}")
        if not all(part in vocabulary for part in (left, right, left + right)):
            raise UserError("a merge is of two tokens of vocab.json that make a third", where=f"{path}:{number}")
        pairs[left, right] = None
    return list(pairs)


# ---- the files beside ----


def _complete(definition: Definition, config: dict[str, Any], folder: Path | None, where: Path) -> Tokenizer:
    """The tokenizer with what lies beside it in `folder`: tokens added after it was trained, chat template, end tokens."""
    there = {token["content"] for token in definition["added_tokens"]}
    wanted = {} if folder is None else _wanted(folder, config)
    for index, (text, special) in sorted(wanted.items()):
        if text not in there:
            definition["added_tokens"].append(added_token(index, text, special=special))
    template, ends = None, None
    if folder is not None:
        ends = _object(folder / "generation_config.json").get("eos_token_id")
        if (jinja := folder / "chat_template.jinja").is_file():
            _bounded(jinja)
            template = jinja.read_text(encoding="utf-8", errors="replace")
    stop_ids = [end for end in (ends if isinstance(ends, list) else [ends]) if type(end) is int]
    content = json.dumps(definition, ensure_ascii=False)
    tokenizer = Tokenizer(content, config, chat_template=template, stop_ids=stop_ids, where=where)
    for index, (text, _) in wanted.items():
        if tokenizer.token_id(text) != index:
            raise UserError(f"the added token {text!r} should have the id {index}, which is taken or too large", where=where)
    return tokenizer


def _wanted(folder: Path, config: Mapping[str, Any]) -> dict[int, tuple[str, bool]]:
    """Ids of tokens that were added: their text, and whether they stand for none."""
    specials = _specials(config)
    found = {_index(index, folder / ADDED): (text, text in specials) for text, index in _object(folder / ADDED).items()}
    decoder = config.get("added_tokens_decoder")
    for index, token in (decoder if isinstance(decoder, dict) else {}).items():
        text = _content(token)
        if text is None or not isinstance(token, dict):
            raise UserError(f"added_tokens_decoder has no text for {index!r}", where=folder / CONFIG)
        found[_index(index, folder / CONFIG)] = (text, token.get("special") is True or text in specials)
    return found


def _config(folder: Path | None) -> dict[str, Any]:
    """What `tokenizer_config.json` says, and for special tokens that it does not name `special_tokens_map.json`."""
    if folder is None:
        return {}
    config, specials = _object(folder / CONFIG), _object(folder / SPECIALS)
    named = {name: _content(specials.get(name)) for name in SPECIAL_NAMES}
    return {**{name: text for name, text in named.items() if text is not None}, **config}


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is no file."""
    if not path.is_file():
        return {}
    _bounded(path)
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError("this should be a JSON object", where=path)
    return value


def _content(token: Any) -> str | None:
    """The text of a token, which stands there plain or with flags."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _specials(config: Mapping[str, Any]) -> set[str]:
    """The texts of the special tokens."""
    return {text for name in SPECIAL_NAMES if (text := _content(config.get(name))) is not None}


def _index(value: Any, where: Path) -> int:
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        return int(value)
    if type(value) is int and 0 <= value < MAX_ID:
        return value
    raise UserError(f"an added token has the id {value!r}", where=where)


def _bounded(path: Path) -> None:
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"a tokenizer of more than {MAX_BYTES >> 20} MiB is not read", where=path)
