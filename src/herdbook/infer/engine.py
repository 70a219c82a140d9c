"""The engine: batched generation with a key/value cache, streaming, and log-likelihoods.

Prompts of different length run in one batch, right-padded for the first pass; then all rows take a token a step, and rows
that are done leave the batch. Greedy tokens are those of a loop that recomputes everything, and a sampled text depends on
its own seed only. Log-likelihoods share what their contexts share: each context is read once, however many continuations
follow it.

Shapes: R rows, T time, D model width, V vocabulary, N positions scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import Tensor

from herdbook.errors import UserError
from herdbook.infer.cache import Cache
from herdbook.infer.sampling import Sampling, draw
from herdbook.infer.text import StopStrings
from herdbook.model.decoder import Decoder
from herdbook.tokenizer import TextStream, Tokenizer

Prompt = str | Sequence[int]
Item = TypeVar("Item")
BATCH_TOKENS = 8192  # padded tokens of one pass
BATCH_ROWS = 64
HEAD_ROWS = 1024  # positions whose logits are held at once


@dataclass(frozen=True)
class Completion:
    """What was generated for a prompt.

    Attributes:
        ids: the tokens, without the one that ended the text.
        text: their text up to the stop string; empty when the engine has no tokenizer.
        finish_reason: `stop` at an end token or stop string, `length` when max_tokens or the context was used up.
        prompt_tokens: tokens of the prompt as the model read it.
        logprobs: the log-probability of each token, when asked for.
    """

    ids: list[int]
    text: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    logprobs: list[float] | None = None


@dataclass
class _Row:
    """A prompt on its way."""

    index: int
    prompt: list[int]
    sampling: Sampling
    room: int
    tokenizer: Tokenizer | None
    goes_on: bool = False  # the text follows the prompt's, so that a space between them counts
    generator: torch.Generator = field(init=False)
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.sampling.seed)
        self._stream = None if self.tokenizer is None else TextStream(self.tokenizer, self.prompt[-8:] if self.goes_on else ())
        self._stops = StopStrings(self.sampling.stop)
        if self.room == 0:
            self.finish_reason = "length"

    def accept(self, token: int, logprob: float | None) -> None:
        """Take the next token; sets `finish_reason` when it is the last."""
        ends = self.tokenizer.end_ids if self.tokenizer is not None and not self.sampling.ignore_end else frozenset()
        if token in ends:
            self._finish("stop")
            return
        self.ids.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        if self._stream is not None and self._release(self._stream.push(token)):
            self.finish_reason = "stop"
        elif len(self.ids) == self.room:
            self._finish("length")

    def _finish(self, reason: Literal["stop", "length"]) -> None:
        self.finish_reason = reason
        if self._stream is not None:
            if self._release(self._stream.flush()):
                self.finish_reason = "stop"
            else:
                self.text.append(self._stops.flush())

    def _release(self, text: str) -> bool:
        out, stopped = self._stops.push(text)
        self.text.append(out)
        return stopped

    def completion(self) -> Completion:
        """The finished row."""
        assert self.finish_reason is not None
        logprobs = self.logprobs if self.sampling.logprobs else None
        return Completion(self.ids, "".join(self.text), self.finish_reason, len(self.prompt), logprobs)


class Engine:
    """Runs a decoder for users.

    Args:
        model: the decoder; it is put in evaluation mode while the engine works, and back afterwards.
        tokenizer: needed for prompts and results that are text, for stop strings and end tokens.
        batch_rows: most rows of one batch.
    """

    def __init__(self, model: Decoder, tokenizer: Tokenizer | None = None, *, batch_rows: int = BATCH_ROWS) -> None:
        self.model, self.tokenizer, self.batch_rows = model, tokenizer, batch_rows
        self.context = model.cfg.context
        if tokenizer is not None and tokenizer.vocab_size > model.cfg.vocabulary:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size:,} tokens and the model only {model.cfg.vocabulary:,}",
                todo="tokenizer and model do not belong together",
            )

    # ---- generation ----

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling] = Sampling()) -> list[Completion]:  # noqa: B008
        """A completion for each prompt, in their order.

        Args:
            prompts: texts, or lists of ids (which are taken as they are).
            sampling: settings for all, or one for each prompt.

        Raises UserError when a prompt is longer than the context and `truncate_prompt` is off, or is empty where the
        tokenizer has no token to begin with.
        """
        settings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        if len(settings) != len(prompts):
            raise ValueError(f"{len(settings)} settings for {len(prompts)} prompts")
        rows = [self._row(i, *pair) for i, pair in enumerate(zip(prompts, settings, strict=True))]
        longest_first = sorted(
            (row for row in rows if row.finish_reason is None), key=lambda row: (-len(row.prompt), row.index)
        )
        for batch in _batches(longest_first, [len(row.prompt) for row in longest_first], self.batch_rows):
            for _ in self._run(batch):
                pass
        return [row.completion() for row in rows]

    def stream(self, prompt: Prompt, sampling: Sampling = Sampling()) -> Iterator[str]:  # noqa: B008
        """The text of one completion piece by piece, each of whole characters; joined, it is `generate`'s text.

        Raises UserError at once as `generate` does, and when there is no tokenizer.
        """
        self._needs_tokenizer()
        row = self._row(0, prompt, sampling)
        return self._pieces(row)

    def _pieces(self, row: _Row) -> Iterator[str]:
        if row.finish_reason is not None:
            return
        shown = 0
        for _ in self._run([row]):
            piece = "".join(row.text[shown:])
            shown = len(row.text)
            if piece:
                yield piece

    def _needs_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UserError(
                "this model has no tokenizer, so it takes and gives ids only", todo="give the prompt as a list of ids"
            )
        return self.tokenizer

    def _row(self, index: int, prompt: Prompt, sampling: Sampling) -> _Row:
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
        return _Row(index, ids, sampling, room, self.tokenizer, isinstance(prompt, str))

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

    def _run(self, rows: list[_Row]) -> Iterator[None]:
        """Generate all rows to their end; yields after each token."""
        with torch.inference_mode(), self._evaluating():
            cache = self._new_cache(len(rows), max(len(row.prompt) for row in rows))
            hidden_RD = self._read(cache, [row.prompt for row in rows])
            tokens = self._next(rows, hidden_RD)
        while True:
            yield None
            going = [number for number, row in enumerate(rows) if row.finish_reason is None]
            if not going:
                return
            with torch.inference_mode(), self._evaluating():
                if len(going) < len(rows):
                    rows, tokens, cache = [rows[i] for i in going], [tokens[i] for i in going], cache.select(going)
                hidden_RD = self._read(cache, [[token] for token in tokens])
                tokens = self._next(rows, hidden_RD)

    def _next(self, rows: list[_Row], hidden_RD: Tensor) -> list[int]:
        """Draw a token for each row and hand it over."""
        logits_RV = self.model.head(hidden_RD)
        raw_RV = logits_RV
        if self.tokenizer is not None and self.tokenizer.vocab_size < logits_RV.shape[-1]:
            # Rows of the embedding beyond the tokenizer's are padding and mean nothing.
            logits_RV = logits_RV.clone()
            logits_RV[:, self.tokenizer.vocab_size :] = float("-inf")
        ids_R = draw(logits_RV, [row.sampling for row in rows], [row.generator for row in rows])
        tokens: list[int] = ids_R.tolist()
        logprobs: list[float] | list[None] = [None] * len(rows)
        if any(row.sampling.logprobs for row in rows):
            logprobs = raw_RV.log_softmax(-1).gather(-1, ids_R[:, None])[:, 0].tolist()
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            row.accept(token, logprob)
        return tokens

    def _new_cache(self, rows: int, slots: int) -> Cache:
        return Cache(self.model.cfg, rows, dtype=self.model.compute_dtype, device=self._device, slots=slots)

    @property
    def _device(self) -> torch.device:
        return self.model.embed.weight.device

    def _read(self, cache: Cache, rows: list[list[int]]) -> Tensor:
        """Run new tokens of each row through the decoder; the stream at each row's last one, (R, D)."""
        hidden_RTD = self.model.hidden(_padded(rows, self._device), cache=cache)
        cache.advance([len(row) for row in rows])
        ends_R = torch.tensor([len(row) - 1 for row in rows], device=self._device)
        return hidden_RTD[torch.arange(len(rows), device=self._device), ends_R]

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """No dropout while the engine works, also when the trainer asks in the middle of training."""
        training = self.model.training
        if training:
            self.model.eval()
        try:
            yield
        finally:
            if training:
                self.model.train()

    # ---- scoring ----

    def loglikelihoods(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """For each (context, continuation): log p of the continuation in nats, and whether greedy decoding would give it.

        An empty context becomes the token that begins a text. A context that is too long loses its beginning. Raises
        UserError when a continuation alone is longer than the model's context.
        """
        pairs = [self._request(context, continuation) for context, continuation in requests]
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, (context, _) in enumerate(pairs):
            groups.setdefault(context, []).append(number)
        results: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        sizes = {context: len(context) + max(len(pairs[number][1]) for number in group) for context, group in groups.items()}
        order = sorted(groups, key=lambda context: (-sizes[context], groups[context][0]))
        for batch in _batches(order, [sizes[context] for context in order], self.batch_rows):
            numbers = [number for context in batch for number in groups[context]]
            with torch.inference_mode(), self._evaluating():
                shared = len(numbers) > len(batch)
                scores = (self._score_shared if shared else self._score_apart)(batch, [pairs[number] for number in numbers])
            for number, score in zip(numbers, scores, strict=True):
                results[number] = score
        return results

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

    def _score_apart(
        self, contexts: list[tuple[int, ...]], pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]
    ) -> list[tuple[float, bool]]:
        """Contexts that nobody shares: one causal pass over context and continuation."""
        rows = [[*context, *continuation[:-1]] if continuation else [*context] for context, continuation in pairs]
        hidden_RTD = self.model.hidden(_padded(rows, self._device))
        parts = [
            hidden_RTD[number, len(context) - 1 : len(context) - 1 + len(continuation)]
            for number, (context, continuation) in enumerate(pairs)
        ]
        return self._scores(parts, [continuation for _, continuation in pairs])

    def _score_shared(
        self, contexts: list[tuple[int, ...]], pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]
    ) -> list[tuple[float, bool]]:
        """Several continuations a context: the context is read once, then the cache branches."""
        trunk = self._new_cache(len(contexts), max(map(len, contexts)))
        ends_RD = self._read(trunk, [list(context) for context in contexts])
        places = {context: number for number, context in enumerate(contexts)}
        scores: list[tuple[float, bool]] = []
        for start in range(0, len(pairs), self.batch_rows):
            part = pairs[start : start + self.batch_rows]
            roots = [places[context] for context, _ in part]
            hidden = [ends_RD[root][None] for root in roots]
            longer = [number for number, (_, continuation) in enumerate(part) if len(continuation) > 1]
            if longer:
                branches = trunk.select([roots[number] for number in longer])
                rows = [list(part[number][1][:-1]) for number in longer]
                tokens_RT = _padded(rows, self._device)
                # Padding behind a short row may lie past the context; nobody reads it, but learned positions end there.
                positions_RT = branches.positions(tokens_RT.shape[1]).clamp(max=self.context - 1)
                hidden_RTD = self.model.hidden(tokens_RT, positions_BT=positions_RT, cache=branches)
                for place, number in enumerate(longer):
                    hidden[number] = torch.cat((hidden[number], hidden_RTD[place, : len(rows[place])]))
            continuations = [continuation for _, continuation in part]
            parts = [stream[: len(tokens)] for stream, tokens in zip(hidden, continuations, strict=True)]
            scores += self._scores(parts, continuations)
        return scores

    def _scores(self, parts: list[Tensor], continuations: list[tuple[int, ...]]) -> list[tuple[float, bool]]:
        """Sum of log p and greediness of each continuation, from the stream before each of its tokens."""
        hidden_ND = torch.cat(parts)
        targets_N = torch.tensor([token for tokens in continuations for token in tokens], device=self._device, dtype=torch.long)
        logprobs: list[float] = []
        greedy: list[bool] = []
        for start in range(0, len(targets_N), HEAD_ROWS):
            logits_NV = self.model.head(hidden_ND[start : start + HEAD_ROWS])
            target_N1 = targets_N[start : start + HEAD_ROWS, None]
            logprobs += (logits_NV.gather(-1, target_N1)[:, 0] - logits_NV.logsumexp(-1)).tolist()
            greedy += (logits_NV.argmax(-1) == target_N1[:, 0]).tolist()
        scores, end = [], 0
        for tokens in continuations:
            start, end = end, end + len(tokens)
            scores.append((sum(logprobs[start:end]), all(greedy[start:end])))
        return scores


def _padded(rows: list[list[int]], device: torch.device) -> Tensor:
    """Rows of ids as one tensor (R, T), filled up on the right with id 0, which no real token sees."""
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=torch.long, device=device)


def _batches(items: list[Item], sizes: list[int], most: int) -> Iterator[list[Item]]:
    """Items, sorted by falling size, in batches of at most `most` rows and `BATCH_TOKENS` padded tokens."""
    start = 0
    while start < len(items):
        count = max(1, min(most, BATCH_TOKENS // sizes[start]))
        yield items[start : start + count]
        start += count
