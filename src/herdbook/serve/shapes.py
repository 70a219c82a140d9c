"""How a text is written down for a client: `/v1/completions` and `/v1/chat/completions`, whole and in pieces.

A shape knows one request. `delta` writes what came with an event, `choice` a finished text; a stream's pieces joined are the
whole answer, because both are made by the same steps.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from herdbook.infer.request import Completion, Event, Token
from herdbook.infer.text import FinishReason
from herdbook.serve.asked import Asked, ChatAsked, CompletionAsked
from herdbook.serve.failures import dumps
from herdbook.serve.pieces import Offsets
from herdbook.serve.served import Served
from herdbook.serve.tools import ToolReader, tells_calls

LEAST = -9999.0  # OpenAI's log-probability of what is impossible; JSON has no infinity
# A time limit ends a text as the other limits do; the API has no name of its own for it.
REASONS: Mapping[FinishReason, str] = {"stop": "stop", "length": "length", "timeout": "length", "cancelled": "length"}


@dataclass
class _Text:
    """One of the texts on its way: where its tokens begin, and what of it calls tools."""

    offsets: Offsets
    tools: ToolReader
    begun: bool = False


@dataclass
class Shape:
    """What the shapes have in common.

    Attributes:
        asked: what the client wants.
        prompts: the prompts' texts, as `echo` shows them.
    """

    asked: Asked
    served: Served
    prompts: Sequence[str]
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    _texts: dict[int, _Text] = field(default_factory=dict)

    prefix = ""
    whole = ""
    part = ""

    def __post_init__(self) -> None:
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"

    def delta(self, place: int, event: Event) -> Iterator[dict[str, Any]]:
        """The choices of a chunk that an event makes."""
        raise NotImplementedError

    def choice(self, index: int, completion: Completion, prompt: Sequence[Token] | None) -> dict[str, Any]:
        """A finished text; `prompt` are the prompt's tokens with their log-probabilities, where they are wanted."""
        raise NotImplementedError

    def index(self, place: int, choice: int) -> int:
        """The number of a text among all of the request's."""
        return place * (self.asked.n or 1) + choice

    def text_of(self, index: int) -> _Text:
        """What is known of a text so far."""
        if index not in self._texts:
            tools = ToolReader()
            self._texts[index] = _Text(Offsets(self.served.pieces, len(self._echoed(index))), tools)
        return self._texts[index]

    def _echoed(self, index: int) -> str:
        return ""

    def answer(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The whole answer."""
        choices = []
        for place, completion in enumerate(completions):
            for choice, one in enumerate((completion, *completion.others)):
                choices.append(self.choice(self.index(place, choice), one, completion.prompt))
        return {**self.head(self.whole), "choices": choices, "usage": usage(completions)}

    def head(self, kind: str) -> dict[str, Any]:
        """What stands before the choices."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.served.name}

    def chunk(self, choice: dict[str, Any]) -> bytes:
        """A piece of a stream with one choice, as JSON."""
        before, after = self._around
        return before + dumps(choice) + after

    @cached_property
    def _around(self) -> tuple[bytes, bytes]:
        """What stands before and behind the choice in every piece; it is written once."""
        more = {"usage": None} if self.asked.usage_wanted else {}
        before, end, after = dumps({**self.head(self.part), "choices": [], **more}).rpartition(b"]")
        return before, end + after

    def last(self, completions: Sequence[Completion]) -> bytes:
        """The piece with the counts that ends a stream, where it is wanted, as JSON."""
        return dumps({**self.head(self.part), "choices": [], "usage": usage(completions)})

    def prompt_logprobs(self, prompt: Sequence[Token] | None) -> dict[str, Any]:
        """`prompt_logprobs` as vLLM's server has it: of each token but the first its own and the likeliest ids."""
        count = self.asked.prompt_logprobs
        if count is None or prompt is None:
            return {}
        rows: list[dict[str, Any] | None] = []
        for token in prompt:
            if token.logprob is None:
                rows.append(None)
                continue
            named = {**dict(itertools.islice(token.top.items(), count)), token.id: token.logprob}
            rows.append({
                str(index): {"logprob": _finite(value), "decoded_token": self.served.pieces.shown(index)}
                for index, value in named.items()
            })  # fmt: skip
        return {"prompt_logprobs": rows}


class CompletionShape(Shape):
    """`/v1/completions`."""

    asked: CompletionAsked
    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def _echoed(self, index: int) -> str:
        return self.prompts[index // (self.asked.n or 1)] if self.asked.echo else ""

    def delta(self, place: int, event: Event) -> Iterator[dict[str, Any]]:
        """The choices of a chunk that an event makes."""
        index = self.index(place, event.choice)
        text = self.text_of(index)
        shown = event.text if text.begun else self._echoed(index) + event.text
        reason = None if event.reason is None else REASONS[event.reason]
        if shown or event.tokens or reason:
            text.begun = True
            logprobs = None if self.asked.logprobs is None else self._logprobs(event.tokens, text.offsets)
            yield {"index": index, "text": shown, "logprobs": logprobs, "finish_reason": reason}

    def choice(self, index: int, completion: Completion, prompt: Sequence[Token] | None) -> dict[str, Any]:
        """A finished text."""
        logprobs = None
        if self.asked.logprobs is not None:
            before = prompt if self.asked.echo and prompt else ()
            offsets = Offsets(self.served.pieces, 0 if before else len(self._echoed(index)))
            logprobs = self._logprobs([*before, *tokens_of(completion)], offsets)
        return {
            "index": index, "text": self._echoed(index) + completion.text, "logprobs": logprobs,
            "finish_reason": REASONS[completion.finish_reason], **self.prompt_logprobs(prompt),
        }  # fmt: skip

    def _logprobs(self, tokens: Iterable[Token], offsets: Offsets) -> dict[str, Any]:
        names, values, tops, places = [], [], [], []
        for token in tokens:
            names.append(self.served.pieces.shown(token.id))
            values.append(None if token.logprob is None else _finite(token.logprob))
            tops.append(self._top(token))
            places.append(offsets.next(token.id))
        return {"tokens": names, "token_logprobs": values, "top_logprobs": tops if self.asked.logprobs else None,
                "text_offset": places}  # fmt: skip

    def _top(self, token: Token) -> dict[str, float] | None:
        if token.logprob is None:
            return None
        named: dict[str, float] = {}
        for index, value in itertools.islice(token.top.items(), self.asked.logprobs or 0):
            named.setdefault(self.served.pieces.shown(index), _finite(value))
        named.setdefault(self.served.pieces.shown(token.id), _finite(token.logprob))
        return named


class ChatShape(Shape):
    """`/v1/chat/completions`."""

    asked: ChatAsked
    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    @property
    def _calls(self) -> bool:
        """Whether the text may call tools."""
        return bool(self.asked.tools_shown()) and tells_calls(self.served.template)

    def delta(self, place: int, event: Event) -> Iterator[dict[str, Any]]:
        """The choices of a chunk that an event makes."""
        index = self.index(place, event.choice)
        text = self.text_of(index)
        over = event.reason is not None
        shown, calls = text.tools.push(event.text, last=over) if self._calls else (event.text, [])
        reason = None if event.reason is None else self._reason(event.reason, text.tools)
        if not (shown or calls or event.tokens or reason):
            return
        delta: dict[str, Any] = {} if text.begun else {"role": "assistant"}
        delta |= {"content": shown} if shown or not text.begun else {}
        delta |= {"tool_calls": calls} if calls else {}
        text.begun = True
        logprobs = self._logprobs(event.tokens) if self.asked.logprobs else None
        yield {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def choice(self, index: int, completion: Completion, prompt: Sequence[Token] | None) -> dict[str, Any]:
        """A finished text."""
        tools = ToolReader()
        shown, calls = tools.push(completion.text, last=True) if self._calls else (completion.text, [])
        message: dict[str, Any] = {"role": "assistant", "content": shown if shown.strip() or not calls else None}
        if calls:
            message["tool_calls"] = [{name: value for name, value in call.items() if name != "index"} for call in calls]
        logprobs = self._logprobs(tokens_of(completion)) if self.asked.logprobs else None
        return {
            "index": index, "message": message, "logprobs": logprobs,
            "finish_reason": self._reason(completion.finish_reason, tools), **self.prompt_logprobs(prompt),
        }  # fmt: skip

    @staticmethod
    def _reason(reason: FinishReason, tools: ToolReader) -> str:
        return "tool_calls" if tools.calls and reason == "stop" else REASONS[reason]

    def _logprobs(self, tokens: Iterable[Token]) -> dict[str, Any]:
        count = self.asked.top_logprobs or 0
        rows = []
        for token in tokens:
            top = [self._named(index, value) for index, value in itertools.islice(token.top.items(), count)]
            rows.append({**self._named(token.id, token.logprob or 0.0), "top_logprobs": top})
        return {"content": rows, "refusal": None}

    def _named(self, index: int, logprob: float) -> dict[str, Any]:
        raw = self.served.pieces.bytes_of(index)
        return {"token": raw.decode("utf-8", errors="replace"), "logprob": _finite(logprob), "bytes": list(raw)}


def tokens_of(completion: Completion) -> list[Token]:
    """The tokens of a finished text with what is known of each."""
    values: Sequence[float | None] = completion.logprobs or [None] * len(completion.ids)
    tops = completion.top_logprobs or [{}] * len(completion.ids)
    return [Token(index, value, top) for index, value, top in zip(completion.ids, values, tops, strict=True)]


def usage(completions: Sequence[Completion]) -> dict[str, int]:
    """Tokens read and written."""
    read = sum(completion.prompt_tokens for completion in completions)
    wrote = sum(len(one.ids) for completion in completions for one in (completion, *completion.others))
    return {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}


def _finite(value: float) -> float:
    return max(value, LEAST)
