"""A trained tokenizer as a model folder holds it: text to ids and back, special tokens, and the chat template.

Files read: `tokenizer.json` (the `tokenizers` format), `tokenizer_config.json` (names of the special tokens, chat template),
`chat_template.jinja` (where newer tools put the template), `generation_config.json` (the ids that end a text). Nothing in
them is executed, but for the chat template, which is a Jinja program and runs in a sandbox (`chat_template.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from herdbook.errors import UserError
from herdbook.files import read_json, write_json, write_text

Message = Mapping[str, Any]  # {"role": "user", "content": "…"}

# Without these transformers 4 looks for a tokenizer in Python, and makes token types that no decoder takes.
FOR_TRANSFORMERS_4 = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


class Tokenizer:
    """Text to ids and back.

    Attributes:
        config: what `tokenizer_config.json` says.
        chat_template: the Jinja template that turns messages to text, or None.
        stop_ids: the ids after which a text is over: the end of text, and what `generation_config.json` adds to it.
    """

    def __init__(
        self, definition: str, config: dict[str, Any] | None = None, *, chat_template: str | None = None,
        stop_ids: Sequence[int] = (), where: Path | str = "tokenizer.json",
    ) -> None:  # fmt: skip
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the library raises bare Exception for every kind of broken file
            raise UserError(f"this is not a tokenizer that `tokenizers` reads ({error})", where=where) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._definition, self.config = definition, dict(config or {})
        self.chat_template = chat_template or _template_of(self.config)
        self.stop_ids = frozenset({*stop_ids, *(() if self.eos_id is None else (self.eos_id,))})

    @classmethod
    def load(cls, folder: Path | str) -> Tokenizer:
        """The tokenizer of a model folder. Raises UserError when there is none or it is broken."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        try:
            definition = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            todo = "name a folder that `herdbook tokenizer`, or another tool, wrote one to"
            raise UserError("there is no tokenizer here", where=path, todo=todo) from None
        except UnicodeDecodeError as error:
            raise UserError("this tokenizer is not UTF-8 text", where=path) from error
        config = _optional_json(folder / "tokenizer_config.json")
        template = folder / "chat_template.jinja"
        text = template.read_text(encoding="utf-8", errors="replace") if template.is_file() else None
        ends = _optional_json(folder / "generation_config.json").get("eos_token_id")
        stop_ids = [end for end in (ends if isinstance(ends, list) else [ends]) if isinstance(end, int)]
        return cls(definition, config, chat_template=text, stop_ids=stop_ids, where=path)

    def with_chat_template(self, chat_template: str) -> Tokenizer:
        """The same tokenizer with another chat template."""
        return Tokenizer(self._definition, self.config, chat_template=chat_template, stop_ids=sorted(self.stop_ids))

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, the chat template in the latter."""
        template = {} if self.chat_template is None else {"chat_template": self.chat_template}
        write_text(folder / "tokenizer.json", self._definition)
        write_json(folder / "tokenizer_config.json", {**FOR_TRANSFORMERS_4, **self.config, **template})
        (folder / "chat_template.jinja").unlink(missing_ok=True)  # else it would win over the one just written

    @property
    def definition(self) -> str:
        """The whole tokenizer as the JSON of `tokenizer.json`."""
        text: str = self._tokenizer.to_str()
        return text

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id: what a model's vocabulary must hold."""
        ids: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return max(ids.values(), default=-1) + 1

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the tokens that stand for no text: separators, turn marks, padding."""
        added: dict[int, Any] = self._tokenizer.get_added_tokens_decoder()
        return frozenset(index for index, token in added.items() if token.special)

    def special_token(self, name: str) -> str | None:
        """The text of `bos_token`, `eos_token`, `pad_token` or `unk_token`, or None where there is none."""
        token = self.config.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        return content if isinstance(content, str) else None

    def token_id(self, token: str | None) -> int | None:
        """The id of a token by its text, or None."""
        found: int | None = None if token is None else self._tokenizer.token_to_id(token)
        return found

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text."""
        return self.token_id(self.special_token("bos_token"))

    @property
    def eos_id(self) -> int | None:
        """The token that ends a text."""
        return self.token_id(self.special_token("eos_token"))

    @property
    def pad_id(self) -> int | None:
        """The token that fills short rows."""
        return self.token_id(self.special_token("pad_token"))

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone; special tokens written out in it (`<|im_end|>`) are recognised."""
        return _ids(self._tokenizer, text)

    def encode_document(self, text: str) -> list[int]:
        """Ids of text nobody vouches for, as training shards hold it: special tokens written out in it are plain text."""
        return _ids(self._plain, text)

    @cached_property
    def _plain(self) -> Any:
        plain = tokenizers.Tokenizer.from_str(self._definition)
        plain.no_truncation()
        plain.no_padding()
        plain.encode_special_tokens = True
        return plain

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text that a model is to continue: with the token that begins a text, where the tokenizer wants one."""
        ids = _ids(self._tokenizer, text, special=True)
        if self.config.get("add_bos_token") and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids = [self.bos_id, *ids]
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD, ids the tokenizer does not know become nothing."""
        text: str = self._tokenizer.decode([int(index) for index in ids], skip_special_tokens=skip_special)
        return text

    def render_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **extra: Any) -> str:
        """The text of a conversation by the chat template, ready for `encode`.

        Args:
            messages: mappings with `role` and `content`.
            add_generation_prompt: end with what begins an answer.
            extra: further names the template may use (`tools`, …).

        Raises UserError when there is no template, it fails, or it refuses the messages.
        """
        from herdbook.chat_template import render

        if self.chat_template is None:
            todo = "use `generate`, or fine-tune it with `herdbook sft`, which stores a chat template"
            raise UserError("this model has no chat template: it continues text and was not taught to chat", todo=todo)
        names = {name: self.special_token(name) for name in SPECIAL_NAMES if self.special_token(name) is not None}
        # transformers hands over tools and documents even when there are none, and templates ask `tools is not none`.
        context = {"messages": list(messages), "add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}
        return render(self.chat_template, {**names, **context, **extra})

    def encode_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **extra: Any) -> list[int]:
        """Ids of a conversation; the template writes the special tokens, so none is added."""
        return self.encode(self.render_chat(messages, add_generation_prompt=add_generation_prompt, **extra))

    @cached_property
    def turn_end_id(self) -> int | None:
        """The special token that the chat template puts after an answer (`<|im_end|>`), found by rendering one; or None."""
        if self.chat_template is None:
            return None
        answer = "herdbook"
        try:
            chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": answer}]
            text = self.render_chat(chat, add_generation_prompt=False)
        except UserError:
            return None
        after = self.encode(text[text.rfind(answer) + len(answer) :]) if answer in text else []
        return next((index for index in after if index in self.special_ids), None)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """All ids after which a model has nothing more to say: `stop_ids`, and what ends a turn."""
        return self.stop_ids if self.turn_end_id is None else self.stop_ids | {self.turn_end_id}


class TextStream:
    """Ids one by one to text, cut only where the bytes so far are whole characters.

    The pieces, joined, are what `decode` gives for all ids at once. The ids of the last piece are decoded again in front of
    the new ones, because some tokenizers treat the first token of a text differently.

    Args:
        before: ids of a text that the pieces go on from, or its last ones: SentencePiece keeps the first space only then.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = list(before)
        self._pending: list[int] = []

    def push(self, index: int) -> str:
        """The text that became whole with this id, perhaps empty."""
        self._pending.append(index)
        text = self._new_text()
        if not text or text.endswith("\ufffd"):
            return ""
        self._before, self._pending = self._pending, []
        return text

    def flush(self) -> str:
        """What is left when no more ids come, with U+FFFD for a character that was cut off."""
        text = self._new_text()
        self._before, self._pending = self._pending, []
        return text

    def copy(self) -> TextStream:
        """Another stream at the same point, for a text that branches."""
        twin = TextStream(self._tokenizer, self._before)
        twin._pending = list(self._pending)
        return twin

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._before)
        return self._tokenizer.decode([*self._before, *self._pending])[len(before) :]


def _ids(tokenizer: Any, text: str, *, special: bool = False) -> list[int]:
    try:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=special).ids
    except TypeError:
        if any(0xD800 <= ord(char) < 0xE000 for char in text):
            todo = "it is no character, and no file in UTF-8 can hold it: take it out"
            raise UserError("the text holds half of a surrogate pair (U+D800 to U+DFFF)", todo=todo) from None
        raise
    return ids


def _optional_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = read_json(path, what="tokenizer setting" if "tokenizer" in path.name else "generation setting")
    if not isinstance(value, dict):
        raise UserError("this should be a JSON object", where=path)
    return value


def _template_of(config: Mapping[str, Any]) -> str | None:
    """The chat template in `tokenizer_config.json`: a text, or a list of named ones of which `default` counts."""
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {row.get("name"): row.get("template") for row in template if isinstance(row, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
