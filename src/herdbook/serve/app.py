"""The endpoints: OpenAI's `/v1/completions`, `/v1/chat/completions` and `/v1/models`, and a few beside them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from herdbook import __version__
from herdbook.config import Config
from herdbook.errors import UserError
from herdbook.infer import constraint
from herdbook.infer.request import Busy, Completion
from herdbook.infer.request import Request as EngineRequest
from herdbook.serve import prepare
from herdbook.serve.asked import AskedT, ChatAsked, CompletionAsked, parse
from herdbook.serve.config import Limits
from herdbook.serve.driver import Driver, Ticket
from herdbook.serve.failures import ApiError, as_json, draining, of_user
from herdbook.serve.guard import Gate, Guard
from herdbook.serve.metrics import Metrics
from herdbook.serve.pages import add_pages
from herdbook.serve.served import Served
from herdbook.serve.shapes import Shape
from herdbook.serve.stream import EventStream
from herdbook.serve.transport import ClientGone, read_json, while_connected

log = logging.getLogger("herdbook.serve")
Prepare = Callable[[AskedT, Served, Limits], tuple[Shape, list[EngineRequest]]]


class TokenizeAsked(Config):
    """The body of `/tokenize`: a text, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool = True
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None


class DetokenizeAsked(Config):
    """The body of `/detokenize`."""

    model: str | None = None
    tokens: list[int] = Field(max_length=1_000_000)


class Server:
    """Some models behind one address.

    Args:
        served: the models; the first one answers requests that name none.
        gate: who may come in.
    """

    def __init__(self, served: Sequence[Served], gate: Gate) -> None:
        self.served = {model.name: model for model in served}
        self.gate, self.metrics = gate, Metrics()
        self.driver = Driver(served, self.metrics)
        self.metrics.watch(self.driver.stats)
        # Forms have a thread of their own: one that takes long delays other forms, but no other request.
        self._forms = ThreadPoolExecutor(1, "herdbook-forms")
        for model in served:
            constraint.prepare(model.tokenizer)

    @property
    def limits(self) -> Limits:
        """What a request may take."""
        return self.gate.limits

    def find(self, name: str | None) -> Served:
        """The model of this name. Raises ApiError when there is none."""
        if name is None:
            return next(iter(self.served.values()))
        if name not in self.served:
            message = f"there is no model {name[:100]!r} here; there is {', '.join(self.served)}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return self.served[name]

    async def answer(self, request: Request, kind: type[AskedT], make: Prepare[AskedT]) -> Response:
        """The answer to a request for text, whole or as a stream."""
        asked = parse(kind, await read_json(request, self.limits))
        served = self.find(asked.model)
        shape, requests = await self._prepared(request, asked, served, make)
        try:
            ticket = await while_connected(request.receive, self.driver.submit(served, requests))
        except Busy as error:
            raise ApiError(429, error.what, code="queue_full", retry_after=1) from error
        except UserError as error:
            raise of_user(error) from error
        if asked.stream:
            return EventStream(ticket, shape, self.limits.stall, lambda: self.driver.cancel(ticket))
        try:
            return as_json(shape.answer(await while_connected(request.receive, self._finished(ticket))))
        finally:
            self.driver.cancel(ticket)

    async def _prepared(
        self, request: Request, asked: AskedT, served: Served, make: Prepare[AskedT]
    ) -> tuple[Shape, list[EngineRequest]]:
        """What `make` makes of it, beside the loop's thread."""
        if not asked.constrained:
            return await asyncio.to_thread(make, asked, served, self.limits)
        job = self._forms.submit(make, asked, served, self.limits)
        try:
            async with asyncio.timeout(self.limits.form_seconds):
                return await while_connected(request.receive, asyncio.wrap_future(job))
        except TimeoutError as error:
            if job.cancelled():
                raise ApiError(503, "other forms are being compiled", code="forms_queue_full", retry_after=5) from error
            message = f"this form is not compiled within {self.limits.form_seconds:g} seconds: make it simpler"
            raise ApiError(400, message, code="form_too_complex") from error

    async def _finished(self, ticket: Ticket) -> list[Completion]:
        done: dict[int, Completion] = {}

        def keep() -> bool:
            done.update({place: event.completion for place, event in ticket.taken() if event.completion is not None})
            return True

        ticket.reader = keep
        while await ticket.some():
            keep()
        completions = [done[place] for place in range(len(ticket.requests))]
        for one in completions:
            _require_text(one)
        return completions

    async def tokenize(self, request: Request) -> Response:
        """Ids of a text or a conversation, as vLLM's server gives them."""
        asked = parse(TokenizeAsked, await read_json(request, self.limits))
        served = self.find(asked.model)
        ids = await asyncio.to_thread(_tokens, asked, served)
        pieces = [served.pieces.shown(index) for index in ids]
        facts = {"count": len(ids), "max_model_len": served.engine.context, "tokens": ids, "token_strs": pieces}
        return as_json(facts)

    async def detokenize(self, request: Request) -> Response:
        """The text of ids."""
        asked = parse(DetokenizeAsked, await read_json(request, self.limits))
        served = self.find(asked.model)
        vocabulary = served.engine.model.cfg.vocabulary
        if any(not 0 <= index < vocabulary for index in asked.tokens):
            raise ApiError(400, f"ids lie between 0 and {vocabulary - 1:,}", param="tokens")
        return as_json({"prompt": served.tokenizer.decode(asked.tokens, skip_special=False)})

    async def health(self, request: Request) -> Response:
        """Whether requests are taken, and answered."""
        engines = "stopped" if not self.driver.alive else "failing" if self.driver.failing else "ok"
        status = "draining" if self.gate.draining else engines
        return as_json({"status": status, "version": __version__}, 200 if status == "ok" else 503)

    def stop(self) -> None:
        """End the threads; requests that are not over get nothing more."""
        self._forms.shutdown(wait=False, cancel_futures=True)
        self.driver.stop()

    async def drain(self) -> bool:
        """Refuse new requests and wait for those in hand, `limits.drain` seconds at most; whether all were finished."""
        self.gate.draining = True
        try:
            async with asyncio.timeout(self.limits.drain):
                while self.gate.busy:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            log.warning("%d requests are cut off", self.gate.busy)
            self.driver.cut_off()
            return False
        return True


def create_app(server: Server) -> FastAPI:
    """The ASGI application of a server; the engines' thread runs as long as it does."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.driver.start()
        try:
            yield
        finally:
            await asyncio.to_thread(server.stop)

    # The pages that FastAPI makes of the schema load scripts from elsewhere.
    app = FastAPI(title="Herdbook", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    _add_routes(app, server)
    add_pages(app)
    app.add_exception_handler(ApiError, _explain)
    app.add_exception_handler(HTTPException, _explain_http)
    app.add_exception_handler(ClientGone, _nobody)
    app.add_exception_handler(Exception, _defect)
    app.add_middleware(Guard, gate=server.gate, metrics=server.metrics)
    return app


def _add_routes(app: FastAPI, server: Server) -> None:
    @app.post("/v1/completions", openapi_extra=_body(CompletionAsked))
    async def completions(request: Request) -> Response:
        """Continue a text."""
        return await server.answer(request, CompletionAsked, prepare.completion)

    @app.post("/v1/chat/completions", openapi_extra=_body(ChatAsked))
    async def chat(request: Request) -> Response:
        """Answer in a conversation."""
        return await server.answer(request, ChatAsked, prepare.chat)

    @app.get("/v1/models")
    async def models() -> Response:
        """The models here, with their licences."""
        return as_json({"object": "list", "data": [served.facts() for served in server.served.values()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        """One of them."""
        return as_json(server.find(name).facts())

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counts and times for Prometheus."""
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.post("/tokenize", openapi_extra=_body(TokenizeAsked))(server.tokenize)
    app.post("/detokenize", openapi_extra=_body(DetokenizeAsked))(server.detokenize)
    app.get("/health")(server.health)


def _body(kind: type[Config]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": kind.model_json_schema()}}}}


def _tokens(asked: TokenizeAsked, served: Served) -> list[int]:
    if asked.messages is not None:
        return prepare.chat_ids(parse(ChatAsked, {"messages": asked.messages, "tools": asked.tools}), served)
    text = asked.prompt or ""
    try:
        return served.tokenizer.encode_prompt(text) if asked.add_special_tokens else served.tokenizer.encode(text)
    except UserError as error:
        raise of_user(error, "prompt") from error


def _require_text(completion: Completion) -> None:
    if completion.finish_reason == "cancelled":
        raise draining()
    if completion.finish_reason == "timeout" and not completion.ids:
        raise ApiError(503, "the time ran out before the first token", code="timeout", retry_after=5)


async def _explain(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _explain_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}").response()


async def _nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # as nginx calls it; nobody reads it


async def _defect(request: Request, error: Exception) -> Response:
    return ApiError(500, f"a defect of the server ({type(error).__name__}); its log says more").response()
