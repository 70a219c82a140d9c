"""The engine: text from a model for chat, server, evaluation and rollouts.

Generation goes through the scheduler (`scheduler`), log-likelihoods through a prefix tree (`scoring`); both run on one backend
and one pool of blocks, so that what one has read the other finds. Greedy tokens are those of a loop that recomputes
everything, and a sampled text depends on its own seed only.

Memory is taken with the first use, and again when the weights have changed since: what was kept of the old ones is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from herdbook.errors import UserError
from herdbook.infer.backend import BLOCK
from herdbook.infer.config import EngineConfig
from herdbook.infer.constraint import guide
from herdbook.infer.request import Completion, Event, Request, Stats
from herdbook.infer.sampling import Sampling
from herdbook.infer.scheduler import Scheduler
from herdbook.infer.scoring import score
from herdbook.infer.speculate import Drafter, DraftModel, Lookup
from herdbook.infer.torch_backend import TorchBackend
from herdbook.infer.twin import copied_bytes
from herdbook.model.decoder import Decoder
from herdbook.tokenizer import Tokenizer

if TYPE_CHECKING:
    from herdbook.infer.native.backend import NativeBackend

__all__ = ["Completion", "Engine", "EngineConfig", "Event", "Prompt", "Sampling"]

Prompt = str | Sequence[int]
KV_MEMORY = 2 * 2**30
NATIVE_FROM = 10_000_000  # parameters
GPU_SHARE = 0.8


class Engine:
    """Runs a decoder for users. One thread at a time may use it.

    Args:
        model: the decoder; it stays as it is, in its mode, and may be trained in between.
        tokenizer: needed for prompts and results that are text, for stop strings and end tokens.
        cfg: how it works.
        draft: a smaller model of the same vocabulary, for `speculate: draft`.

    Raises UserError when tokenizer, model, draft and settings do not go together.
    """

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer | None = None, cfg: EngineConfig = EngineConfig(), *,  # noqa: B008
        draft: Decoder | None = None,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.cfg, self.draft = model, tokenizer, cfg, draft
        self.context = self._context()
        if tokenizer is not None and tokenizer.vocab_size > model.cfg.vocabulary:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size:,} tokens and the model only {model.cfg.vocabulary:,}",
                todo="tokenizer and model do not belong together",
            )
        if (draft is not None) != (cfg.speculate == "draft"):
            raise UserError("a draft model and speculate: draft go together", where="engine.speculate", todo="give both")
        if draft is not None and draft.cfg.vocabulary != model.cfg.vocabulary:
            sizes = f"{draft.cfg.vocabulary:,} tokens and the model {model.cfg.vocabulary:,}"
            raise UserError(f"the draft model has {sizes}", todo="it must have the model's own tokenizer")
        self._desk: _Desk | None = None
        self._weights: object = None

    def _context(self) -> int:
        shape, wanted = self.model.cfg, self.cfg.context
        if wanted is None or wanted <= shape.context:
            return wanted or shape.context
        if shape.positions == "learned" or (shape.positions == "rope" and shape.rope_scaling == "none"):
            raise UserError(
                f"the model knows {shape.context:,} positions, and {wanted:,} are wanted", where="engine.context",
                todo="only ALiBi, and RoPE with rope_scaling, read more than they were trained on",
            )  # fmt: skip
        return wanted

    # ---- the scheduler, for those who drive it themselves ----

    @property
    def scheduler(self) -> Scheduler:
        """What runs requests, for the weights as they are now."""
        return self._now().scheduler

    def _now(self) -> _Desk:
        weights = [_fingerprint(one) for one in (self.model, self.draft) if one is not None]
        if self._desk is None or weights != self._weights:
            self._desk, self._weights = None, weights  # free the old memory first
            self._desk = _Desk(self._new_scheduler())
        return self._desk

    def request(self, prompt: Prompt, sampling: Sampling, *, timeout: float | None = None) -> Request:
        """What to submit for a prompt.

        Raises UserError when it is longer than the context and `truncate_prompt` is off, holds what is no id, or is empty
        where the tokenizer has no token to begin with, and when the form is wrong, which is compiled here.
        """
        if sampling.stop:
            self._needs_tokenizer()
        ids = self._needs_tokenizer().encode_prompt(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]
        ids = ids or self.start_ids()
        self._check_ids(ids)
        if sampling.truncate_prompt:
            ids = ids[-max(1, self.context - sampling.max_tokens) :]
        if len(ids) > self.context:
            raise UserError(
                f"the prompt has {len(ids):,} tokens and the model reads at most {self.context:,}",
                todo="shorten it, or set truncate_prompt=True to keep only its end",
            )
        # The last token generated is not read again, so a full context still gives one.
        room = min(sampling.max_tokens, self.context - len(ids) + 1)
        # Text that goes on from a text keeps its first space.
        before = ids[-8:] if isinstance(prompt, str) and self.tokenizer is not None else ()
        return Request(ids, sampling, room, before, timeout, guide(sampling, self.tokenizer))

    def stats(self) -> Stats:
        """How the engine stands."""
        return self.scheduler.stats()

    @property
    def kv_bytes_per_token(self) -> float:
        """Memory that a token's keys and values take."""
        return self._kind(self.model).block_bytes(self.model, self.cfg.kv) / BLOCK

    def describe(self) -> str:
        """What runs the model, in a few words."""
        backend = self.scheduler.backend
        if isinstance(backend, TorchBackend):
            kind = str(self.model.compute_dtype).removeprefix("torch.")
            return ", ".join(("torch", kind, *filter(None, [backend.path])))
        return f"C++ kernels, {getattr(backend, 'path', 'plain')}"

    def _new_scheduler(self) -> Scheduler:
        drafter: Drafter | None = Lookup() if self.cfg.speculate == "lookup" else None
        kind = self._kind(self.model)
        per_block = kind.block_bytes(self.model, self.cfg.kv)
        if self.draft is not None:
            per_block += self._kind(self.draft).block_bytes(self.draft, "auto")
        blocks = self._blocks(per_block)
        if self.draft is not None:
            known = None if self.tokenizer is None else self.tokenizer.vocab_size
            drafter = DraftModel(self._kind(self.draft)(self.draft, blocks=blocks), known)
        backend = kind(self.model, blocks=blocks, kv=self.cfg.kv)
        return Scheduler(backend, self.cfg, tokenizer=self.tokenizer, drafter=drafter)

    def _kind(self, model: Decoder) -> type[NativeBackend] | type[TorchBackend]:
        """The C++ kernels where they are wanted, to be had, and serve this model; else torch."""
        on_cpu = _device(model).type == "cpu"
        if self.cfg.backend == "native" and not on_cpu:
            raise UserError("the C++ kernels are for CPUs", where="engine.backend", todo="set it to auto or torch")
        # Who has changed what a decoder does wants that to run, and what is tiny is not worth a compilation.
        plain = type(model) is Decoder and model.cfg.parameters() >= NATIVE_FROM
        if self.cfg.backend == "torch" or not (self.cfg.backend == "native" or (on_cpu and plain)):
            return TorchBackend
        from herdbook.infer.native import available
        from herdbook.infer.native.backend import NativeBackend

        serves = available()[0] and NativeBackend.fits(model.cfg) is None
        return NativeBackend if serves or self.cfg.backend == "native" else TorchBackend

    def _blocks(self, per_block: int) -> int:
        """How many blocks to have: what the memory holds, and not more than all rows could fill."""
        device = _device(self.model)
        memory = self.cfg.kv_memory
        if memory is None and device.type == "cuda":
            memory = int(GPU_SHARE * (torch.cuda.mem_get_info(device)[0] - copied_bytes(self.model)))
        # One block more than a whole context, so that a text that branches at its end need not wait.
        least = -(-self.context // BLOCK) + 1
        most = self.cfg.rows * least
        if memory is None:
            return max(least, min(most, KV_MEMORY // per_block))
        if memory < 2 * per_block:
            todo = f"give at least {2 * per_block:,} bytes"
            raise UserError("that is less than two blocks of keys and values", where="engine.kv_memory", todo=todo)
        return min(most, memory // per_block)

    # ---- generation ----

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling] = Sampling()) -> list[Completion]:  # noqa: B008
        """A completion for each prompt, in their order.

        Args:
            prompts: texts, or lists of ids (which are taken as they are).
            sampling: settings for all, or one for each prompt.

        Raises UserError as `request` does and when the memory is too small, and what a step of the model fails with.
        """
        settings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        if len(settings) != len(prompts):
            raise ValueError(f"{len(settings)} settings for {len(prompts)} prompts")
        waiting = deque(self.request(*pair) for pair in zip(prompts, settings, strict=True))
        done: dict[int, Completion] = {}
        numbers: list[int] = []
        desk = self._now()
        try:
            while waiting or len(done) < len(numbers):
                while waiting and not desk.scheduler.full:
                    numbers.append(desk.open(waiting.popleft()))
                desk.step()
                for number in numbers:
                    for event in desk.take(number):
                        if event.error is not None:
                            raise event.error
                        if event.completion is not None:
                            done[number] = event.completion
        finally:
            desk.close(numbers)
        return [done[number] for number in numbers]

    def stream(self, prompt: Prompt, sampling: Sampling = Sampling()) -> Iterator[str]:  # noqa: B008
        """The text of one completion piece by piece, each of whole characters; joined, it is `generate`'s text.

        Raises UserError at once as `generate` does, and when there is no tokenizer, or several texts are asked for.
        """
        self._needs_tokenizer()
        if sampling.n > 1 or sampling.beams or sampling.best_of:
            raise UserError("n, best_of and beams make several texts, and one is streamed", todo="use generate")
        request, desk = self.request(prompt, sampling), self._now()
        return self._pieces(desk, desk.open(request))

    def _pieces(self, desk: _Desk, number: int) -> Iterator[str]:
        try:
            while True:
                for event in desk.take(number):
                    if event.error is not None:
                        raise event.error
                    if event.text:
                        yield event.text
                    if event.completion is not None:
                        return
                desk.step()
        finally:
            desk.close([number])

    def _needs_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UserError(
                "this model has no tokenizer, so it takes and gives ids only", todo="give the prompt as a list of ids"
            )
        return self.tokenizer

    def start_ids(self) -> list[int]:
        """What an empty text begins with. Raises UserError when the tokenizer has no token for that."""
        known = [] if self.tokenizer is None else [self.tokenizer.bos_id, self.tokenizer.eos_id]
        for token in known:
            if token is not None:
                return [token]
        raise UserError("the prompt is empty, and this model has no token to begin a text with", todo="give a prompt")

    def _check_ids(self, ids: Sequence[int]) -> None:
        wrong = next((token for token in ids if not 0 <= token < self.model.cfg.vocabulary), None)
        if wrong is not None:
            raise UserError(f"{wrong} is no token id: the vocabulary has {self.model.cfg.vocabulary:,} entries")

    # ---- scoring ----

    def loglikelihoods(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """For each (context, continuation): log p of the continuation in nats, and whether greedy decoding would give it.

        An empty context becomes the token that begins a text. A context that is too long loses its beginning. What contexts
        and continuations share at their beginning is read once. Raises UserError when a continuation alone is longer than
        the model's context.
        """
        pairs = [self._request(context, continuation) for context, continuation in requests]
        scheduler = self.scheduler
        scores = score(scheduler.backend, scheduler.pool, pairs)
        return [(sum(logprob for logprob, _ in tokens), all(likeliest for _, likeliest in tokens)) for tokens in scores]

    def rolling_loglikelihood(self, tokens: Sequence[int], *, overlap: int = 1) -> float:
        """log p of a text of any length in nats, its first token after the one that begins a text.

        What is longer than the context is read in windows, each token scored once, with at least `overlap` tokens before it.
        """
        if not 1 <= overlap < self.context:
            raise ValueError(f"overlap {overlap} is not between 1 and {self.context - 1}")
        sequence = [*self.start_ids(), *tokens]
        requests: list[tuple[list[int], list[int]]] = []
        start, first = 0, 1
        while first < len(sequence):
            end = min(start + self.context + 1, len(sequence))  # the last token is only predicted
            requests.append((sequence[start:first], sequence[first:end]))
            start, first = end - overlap, end
        return sum(score for score, _ in self.loglikelihoods(requests))

    def _request(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        context, continuation = tuple(context) or tuple(self.start_ids()), tuple(continuation)
        self._check_ids((*context, *continuation))
        if len(continuation) > self.context:
            raise UserError(f"a continuation of {len(continuation):,} tokens does not fit the context of {self.context:,}")
        # The last token is predicted and not read, so one more than the context fits.
        room = self.context + 1 - len(continuation)
        return context[-room:], continuation


class _Desk:
    """A scheduler, and its events by request, so that several callers can take turns with its steps."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._mail: dict[int, list[Event]] = {}

    def open(self, request: Request) -> int:
        """Submit a request; its number."""
        number = self.scheduler.submit(request)
        self._mail[number] = []
        return number

    def step(self) -> None:
        """One step for everybody."""
        for event in self.scheduler.step():
            if event.request in self._mail:
                self._mail[event.request].append(event)

    def take(self, number: int) -> list[Event]:
        """What came for a request since it was last asked."""
        events, self._mail[number] = self._mail[number], []
        return events

    def close(self, numbers: Sequence[int]) -> None:
        """Nobody asks any more; what is not over ends."""
        for number in numbers:
            self.scheduler.cancel(number)
            self._mail.pop(number, None)


def _device(model: Decoder) -> torch.device:
    """Where a model is, by its norms: the matrices may be quantised, which have no plain weight."""
    return next(model.parameters()).device


def _fingerprint(model: Decoder) -> list[object]:
    """Changes whenever a weight does: where each lies, and how often it was written."""
    weights = (*model.parameters(), *model.buffers())
    return [model.compute_dtype, *((one.data_ptr(), 0 if one.is_inference() else one._version) for one in weights)]
