"""What clients may ask for: OpenAI's parameters, and those of ours that go beyond them.

Nothing is dropped in silence: a parameter that is not known, or not served, is refused by name. The exceptions are labels that
change no answer (`user`, `metadata`, …).
"""

from __future__ import annotations

import json
import secrets
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, FiniteFloat, ValidationError, field_validator

from herdbook.config import Config
from herdbook.infer.config import Sampling
from herdbook.serve.config import Limits
from herdbook.serve.failures import ApiError

Prompt = str | list[int]
AskedT = TypeVar("AskedT", bound="Asked")
ConfigT = TypeVar("ConfigT", bound=Config)
Penalty = Annotated[FiniteFloat, Field(ge=-2, le=2)]
Bias = Annotated[FiniteFloat, Field(ge=-100, le=100)]
# The names that Sampling has for what OpenAI's API or other servers call differently.
_NAMES = {"stop_ids": "stop_token_ids", "ignore_end": "ignore_eos", "json_schema": "response_format"}
_SAME = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
         "logit_bias", "n", "beams", "length_penalty", "regex", "grammar")  # fmt: skip


class StreamOptions(Config):
    """`stream_options`."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class JsonSchema(Config):
    """`response_format.json_schema`."""

    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class ResponseFormat(Config):
    """`response_format`: what the text must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def schema_wanted(self) -> dict[str, Any] | None:
        """The JSON schema of the text; None where any text will do. Raises ApiError when it is missing."""
        if self.type != "json_schema":
            return {"type": "object"} if self.type == "json_object" else None
        if self.json_schema is None:
            raise ApiError(400, "type json_schema needs a schema", param="response_format.json_schema")
        return self.json_schema.schema_


class Asked(Config):
    """What both endpoints take. null means the default, as if the parameter were not there."""

    model: str | None = None
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[int, Bias] | None = Field(default=None, max_length=10_000)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = Field(default=None, max_length=1000)
    stop_token_ids: list[int] | None = Field(default=None, max_length=1000)
    ignore_eos: bool | None = None
    n: int | None = None
    beams: int | None = None
    length_penalty: float | None = Field(default=None, ge=-10, le=10)
    regex: str | None = None
    grammar: str | None = None
    response_format: ResponseFormat | None = None
    prompt_logprobs: int | None = Field(default=None, ge=0)
    truncate_prompt: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # labels that change nothing
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @field_validator("stop")
    @classmethod
    def _few(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and (len(value) > 16 or max(map(len, value), default=0) > 1000):
            raise ValueError("at most 16 stop strings of 1,000 characters")
        return value

    @property
    def texts(self) -> int:
        """Texts that are made of each prompt."""
        return max(self.n or 1, self.beams or 0)

    @property
    def constrained(self) -> bool:
        """Whether the text must have a form."""
        formatted = self.response_format is not None and self.response_format.type != "text"
        return formatted or self.regex is not None or self.grammar is not None

    @property
    def usage_wanted(self) -> bool:
        """Whether a stream ends with the count of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, limits: Limits, **more: Any) -> Sampling:
        """The engine's settings. Raises ApiError for values out of range."""
        found = {name: value for name in _SAME if (value := getattr(self, name)) is not None}
        found["seed"] = secrets.randbelow(2**63) if self.seed is None else self.seed % 2**63
        found |= {"stop": self.stop or (), "stop_ids": self.stop_token_ids or (), "ignore_end": bool(self.ignore_eos)}
        found |= {"json_schema": None if self.response_format is None else self.response_format.schema_wanted()}
        found |= {"prompt_logprobs": self.prompt_logprobs is not None, "truncate_prompt": bool(self.truncate_prompt), **more}
        if found["max_tokens"] < 0 or (limits.max_tokens is not None and found["max_tokens"] > limits.max_tokens):
            raise ApiError(400, f"at most {limits.max_tokens:,} tokens" if limits.max_tokens else "fewer than no tokens",
                           param="max_tokens")  # fmt: skip
        if max(found["top_logprobs"], self.prompt_logprobs or 0) > limits.top_logprobs:
            raise ApiError(400, f"at most {limits.top_logprobs} alternatives at a token", param="top_logprobs")
        _bounded(self, found["json_schema"], limits)
        try:
            return Sampling.model_validate(found)
        except ValidationError as error:
            raise _first(error) from error


class CompletionAsked(Asked):
    """The body of `/v1/completions`."""

    prompt: Any = None
    suffix: str | None = None
    max_tokens: int | None = None
    logprobs: int | None = Field(default=None, ge=0)
    echo: bool | None = None
    best_of: int | None = None

    def prompts(self) -> list[Prompt]:
        """The prompts: a text, token ids, or a list of either. Raises ApiError for anything else."""
        value = "" if self.prompt is None else self.prompt
        value = [value] if isinstance(value, str) or (isinstance(value, list) and value and _is_id(value[0])) else value
        whole = isinstance(value, list) and len(value) > 0
        if not whole or not all(isinstance(one, str) or _are_ids(one) for one in value):
            raise ApiError(400, "a prompt is a text, a list of token ids, or a list of these", param="prompt")
        return list(value)

    @property
    def texts(self) -> int:
        """Texts that are made of each prompt."""
        return max(super().texts, self.best_of or 0)


class ChatAsked(Asked):
    """The body of `/v1/chat/completions`."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: Literal[True] | None = None

    def conversation(self) -> list[dict[str, Any]]:
        """The messages as chat templates take them: contents are text, arguments of calls are objects.

        Raises ApiError for a message that is none, and for contents that are no text.
        """
        return [_message(message, f"messages[{place}]") for place, message in enumerate(self.messages)]

    def tools_shown(self) -> list[dict[str, Any]] | None:
        """The tools that the template is to show. Raises ApiError for one that is none."""
        for place, tool in enumerate(self.tools or []):
            inner = tool.get("function")
            if tool.get("type") != "function" or not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
                raise ApiError(400, 'a tool is {"type": "function", "function": {"name": …}}', param=f"tools[{place}]")
        return None if self.tool_choice == "none" else self.tools or None


def parse(kind: type[ConfigT], value: Any) -> ConfigT:
    """The body of a request. Raises ApiError for what is no such body, by the parameter that is wrong."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _first(error) from error


def _first(error: ValidationError) -> ApiError:
    """The first mistake, in the words of the API."""
    row = error.errors(include_url=False, include_input=False, include_context=False)[0]
    path = ""
    for part in row["loc"]:
        part = _NAMES.get(str(part), part)
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    if row["type"] == "extra_forbidden":
        return ApiError(400, f"the parameter {path} is not known here", param=path, code="unknown_parameter")
    message = row["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{path}: {message}" if path else message, param=path or None, code="invalid_value")


def _bounded(asked: Asked, schema: dict[str, Any] | None, limits: Limits) -> None:
    forms = {"response_format": None if schema is None else json.dumps(schema), "regex": asked.regex, "grammar": asked.grammar}
    for name, form in forms.items():
        if form is not None and len(form) > limits.form:
            raise ApiError(400, f"longer than {limits.form:,} bytes", param=name)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_is_id, value))


def _message(message: dict[str, Any], where: str) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str):
        raise ApiError(400, "a message needs a role", param=f"{where}.role")
    changed: dict[str, Any] = {"role": "system" if role == "developer" else role}
    changed["content"] = _content(message.get("content"), f"{where}.content")
    calls = message.get("tool_calls")
    if calls is not None:
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise ApiError(400, "a list of calls is wanted", param=f"{where}.tool_calls")
        changed["tool_calls"] = [_call(call) for call in calls]
    return {**message, **changed}


def _content(content: Any, where: str) -> str:
    """The text of a content: given as it is, in parts, or not at all where a message only calls tools."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise ApiError(400, "a content is a text, or a list of parts", param=where)
    for place, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ApiError(400, "this model reads text alone", param=f"{where}[{place}]")
    return "".join(part["text"] for part in content)


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """A call whose arguments are an object, as templates want them, where clients send them as the text of one."""
    inner = call.get("function")
    if not isinstance(inner, dict) or not isinstance(inner.get("arguments"), str):
        return call
    try:
        return {**call, "function": {**inner, "arguments": json.loads(inner["arguments"])}}
    except (ValueError, RecursionError):
        return call
