"""Conversations from files: messages, prompt and completion, or Alpaca's instruction, input and output.

Each line of a `.jsonl` (or item of a `.json` list) is one of

    {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}, …]}
    {"prompt": …, "completion": …}
    {"instruction": …, "input": …, "output": …}          as in Alpaca; `input` may be empty or absent

Nothing is dropped in silence: what cannot be used is counted by reason, with the lines it stands in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herdbook import pedigree
from herdbook.align.chat import BadConversationError, ChatFormat, Sample, with_system
from herdbook.align.config import ChatData
from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.facts.licenses import find_expression
from herdbook.interop.licenses import license_of, require_commercial
from herdbook.tokenizer import Message

LINES_SHOWN = 5


@dataclass(frozen=True)
class Conversation:
    """Messages and where they are from.

    Attributes:
        origin: `file.jsonl:12`, or the id of a document of the corpus.
        license: SPDX id, or None where it is unknown.
        kind: what sort of pair it is, for those made from the corpus.
    """

    messages: list[Message]
    origin: str
    license: str | None = None
    kind: str | None = None


@dataclass
class Skipped:
    """What could not be used: by reason, how often and where first."""

    where: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, reason: str, origin: str) -> None:
        """Note one."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        places = self.where.setdefault(reason, [])
        if len(places) < LINES_SHOWN:
            places.append(origin)

    def lines(self) -> list[str]:
        """One line a reason: `12 × no answer to learn (a.jsonl:3, a.jsonl:9, …)`."""
        rows = []
        for reason, count in sorted(self.counts.items(), key=lambda item: -item[1]):
            more = ", …" if count > len(self.where[reason]) else ""
            rows.append(f"{count:,} × {reason} ({', '.join(self.where[reason])}{more})")
        return rows

    def warn(self, terminal: Terminal) -> None:
        """Show the lines."""
        if self.counts:
            total = sum(self.counts.values())
            noun = "sample is" if total == 1 else "samples are"
            terminal.warn("\n  ".join([f"{total:,} {noun} left out:", *self.lines()]))


def data_files(path: Path) -> list[Path]:
    """The file, or the .jsonl and .json files of a folder. Raises UserError when there are none."""
    if path.is_dir():
        files = sorted(found for pattern in ("*.jsonl", "*.json") for found in path.glob(pattern))
        if not files:
            raise UserError(
                "there are no .jsonl or .json files here", where=path, todo="give a file, or a folder that has some"
            )
        return files
    if not path.is_file():
        raise UserError("there is no such file or folder", where=path, todo="check sft.data")
    return [path]


def read_conversations(path: Path, skipped: Skipped, *, license_id: str | None = None) -> Iterator[Conversation]:
    """The conversations of a file or folder; what is malformed goes to `skipped`. Raises UserError when it cannot be read."""
    for file in data_files(path):
        for origin, row in _rows(file, skipped):
            try:
                yield Conversation(_messages(row), origin, license_id)
            except BadConversationError as error:
                skipped.add(str(error), origin)


def _rows(file: Path, skipped: Skipped) -> Iterator[tuple[str, Any]]:
    if file.suffix == ".json":
        try:
            rows = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"this is not valid JSON ({error})", where=file) from error
        if not isinstance(rows, list):
            raise UserError("a .json file of conversations holds a list", where=file, todo="or use .jsonl, one a line")
        yield from ((f"{file.name}:item {number}", row) for number, row in enumerate(rows, 1))
        return
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                yield f"{file.name}:{number}", json.loads(line)
            except ValueError:
                skipped.add("not valid JSON", f"{file.name}:{number}")


def _messages(row: Any) -> list[Message]:
    """The messages of a row in any of the three forms. Raises BadConversationError when it is none of them."""
    if not isinstance(row, dict):
        raise BadConversationError("not a JSON object")
    if "messages" in row:
        messages = row["messages"]
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise BadConversationError("`messages` is not a list of objects")
        return messages
    if "prompt" in row and "completion" in row:
        return _pair(row["prompt"], row["completion"])
    if "instruction" in row and "output" in row:
        extra = row.get("input") or ""
        if not isinstance(row["instruction"], str) or not isinstance(extra, str):
            raise BadConversationError("a message without text")
        return _pair(f"{row['instruction']}\n\n{extra}" if extra.strip() else row["instruction"], row["output"])
    raise BadConversationError("neither messages, nor prompt and completion, nor instruction and output")


def _pair(question: Any, answer: Any) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@dataclass(frozen=True)
class Tokenized:
    """A conversation and its tokens."""

    conversation: Conversation
    sample: Sample


def tokenize(
    conversations: Iterable[Conversation], chat: ChatFormat, skipped: Skipped, *, system: str | None, longest: int
) -> list[Tokenized]:
    """The conversations that can be trained on; the others go to `skipped`.

    Args:
        system: system message for conversations that have none.
        longest: tokens of the longest sample that fits; longer ones are left out whole, since a cut one has lost its end.
    """
    kept = []
    for conversation in conversations:
        try:
            sample = chat.sample(with_system(conversation.messages, system))
        except BadConversationError as error:
            skipped.add(str(error), conversation.origin)
            continue
        if len(sample.tokens) > longest:
            skipped.add(f"longer than the context of {longest - 1} tokens", conversation.origin)
        elif not any(sample.trained[1:]):
            skipped.add("no token to train on", conversation.origin)
        else:
            kept.append(Tokenized(conversation, sample))
    return kept


def require_commercial_sources(model: Path, data: Sequence[ChatData], corpus: Path | None) -> None:
    """Raise UserError when the base model, a file of conversations or the corpus may not be used commercially."""
    require_commercial(license_of(model), model)
    for source in data:
        todo = f"leave it out, or state its licence: 'sft.data=[{{path: {source.path}, license: …}}]'"
        require_commercial(find_expression(source.license), source.path, todo)
    if corpus is not None and pedigree.exists(corpus):
        require_commercial(find_expression(pedigree.read(corpus)["license"]["id"]), corpus)
