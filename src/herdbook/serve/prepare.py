"""From what a client asked for to what an engine runs: text to ids, chat templates, limits. Runs beside asyncio's thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from herdbook.errors import UserError
from herdbook.infer.constraint import guide
from herdbook.infer.request import Request
from herdbook.infer.sampling import Sampling
from herdbook.serve.asked import Asked, ChatAsked, CompletionAsked, Prompt
from herdbook.serve.config import Limits
from herdbook.serve.failures import ApiError, of_user
from herdbook.serve.served import Served
from herdbook.serve.shapes import ChatShape, CompletionShape, Shape
from herdbook.serve.tools import takes_tools

DEFAULT_TOKENS = 16  # of a completion, as in OpenAI's API


def completion(asked: CompletionAsked, served: Served, limits: Limits) -> tuple[Shape, list[Request]]:
    """What `/v1/completions` runs. Raises ApiError for what is not served, or not within the limits."""
    if asked.suffix is not None:
        raise ApiError(400, "suffix is not served: the models here continue a text and fill no gaps", param="suffix")
    if asked.stream and asked.echo and asked.logprobs is not None:
        raise ApiError(400, "echo with logprobs cannot be streamed: leave out stream, echo or logprobs", param="stream")
    _no_ranked_stream(asked, (asked.best_of or 0) > (asked.n or 1))
    prompts = asked.prompts()
    _count(len(prompts) * asked.texts, limits)
    room = min(DEFAULT_TOKENS, limits.max_tokens or DEFAULT_TOKENS) if asked.max_tokens is None else asked.max_tokens
    more = {"best_of": asked.best_of, "logprobs": asked.logprobs is not None, "max_tokens": room}
    sampling = asked.sampling(limits, top_logprobs=max(asked.logprobs or 0, asked.prompt_logprobs or 0), **more)
    if asked.echo and asked.logprobs is not None:
        sampling = sampling.model_copy(update={"prompt_logprobs": True})
    _check(sampling, served)
    texts = [
        prompt if isinstance(prompt, str) else served.tokenizer.decode(prompt, skip_special=False)
        for prompt in (prompts if asked.echo else [])
    ]
    requests = [_request(prompt, sampling, served, limits, "prompt") for prompt in prompts]
    return CompletionShape(asked, served, texts), _own_seeds(requests, asked.texts)


def chat(asked: ChatAsked, served: Served, limits: Limits) -> tuple[Shape, list[Request]]:
    """What `/v1/chat/completions` runs. Raises ApiError for what is not served, or not within the limits."""
    _no_ranked_stream(asked, ranked=False)
    _count(asked.texts, limits)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    ids = chat_ids(asked, served)
    wanted = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    if wanted is None:
        wanted = max(1, min(served.room - len(ids), limits.max_tokens or served.room))
    top = max(asked.top_logprobs or 0, asked.prompt_logprobs or 0)
    sampling = asked.sampling(limits, max_tokens=wanted, logprobs=bool(asked.logprobs), top_logprobs=top)
    _check(sampling, served)
    return ChatShape(asked, served, ()), [_request(ids, sampling, served, limits, "messages")]


def chat_ids(asked: ChatAsked, served: Served) -> list[int]:
    """A conversation as the model reads it. Raises ApiError when the template is missing or refuses it."""
    tools = asked.tools_shown()
    if tools and not takes_tools(served.template):
        raise ApiError(400, f"the chat template of {served.name} shows no tools to the model", param="tools")
    try:
        return served.tokenizer.encode_chat(asked.conversation(), tools=tools)
    except UserError as error:
        raise of_user(error, "messages") from error


def _request(prompt: Prompt, sampling: Sampling, served: Served, limits: Limits, param: str) -> Request:
    try:
        request = served.engine.request(prompt, sampling, timeout=limits.seconds)
    except UserError as error:
        ids = served.tokenizer.encode_prompt(prompt) if isinstance(prompt, str) and _encodes(prompt, served) else prompt
        long = len(ids) > served.engine.context and not isinstance(ids, str)
        raise of_user(error, param, "context_length_exceeded" if long else None) from error
    if limits.prompt is not None and len(request.prompt) > limits.prompt:
        message = f"the prompt has {len(request.prompt):,} tokens, and at most {limits.prompt:,} are taken here"
        raise ApiError(400, message, param=param, code="context_length_exceeded")
    return request


def _encodes(text: str, served: Served) -> bool:
    try:
        served.tokenizer.encode_prompt(text)
    except UserError:
        return False
    return True


def _own_seeds(requests: Sequence[Request], texts: int) -> list[Request]:
    """The same prompt twice in a request is not to give the same text twice."""
    return [replace(one, sampling=_seeded(one.sampling, place * texts)) for place, one in enumerate(requests)]


def _seeded(sampling: Sampling, by: int) -> Sampling:
    return sampling.model_copy(update={"seed": (sampling.seed + by) % 2**63}) if by else sampling


def _no_ranked_stream(asked: Asked, ranked: bool) -> None:
    if not asked.stream:
        if asked.stream_options is not None:
            raise ApiError(400, "stream_options needs stream: true", param="stream_options")
        return
    if ranked or asked.beams:
        name = "beams" if asked.beams else "best_of"
        raise ApiError(400, f"{name} ranks whole texts, so there is nothing to stream", param=name)
    if asked.prompt_logprobs is not None:
        raise ApiError(400, "prompt_logprobs is not streamed: leave out stream", param="prompt_logprobs")


def _count(texts: int, limits: Limits) -> None:
    if texts > limits.choices:
        raise ApiError(400, f"{texts:,} texts are asked for, and at most {limits.choices:,} are made for a request", param="n")


def _check(sampling: Sampling, served: Served) -> None:
    """What the engine would refuse, or stumble over, once a request is in its thread. Compiles the form, which is kept."""
    vocabulary = served.engine.model.cfg.vocabulary
    wrong = next((index for index in sampling.logit_bias if not 0 <= index < vocabulary), None)
    if wrong is not None:
        raise ApiError(400, f"{wrong} is no token id: the vocabulary has {vocabulary:,} entries", param="logit_bias")
    try:
        guide(sampling, served.tokenizer)
    except UserError as error:
        raise of_user(error, {"json_schema": "response_format"}.get(error.where or "", error.where)) from error
