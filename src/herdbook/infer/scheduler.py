"""What runs in each step: requests in, tokens out.

    submit ─▶ waiting ─▶ running ─▶ done            a step: 1. one token (or its guesses) of each text that has begun
                 ▲          │                               2. pieces of prompts, up to `step_tokens`
                 └─preempt──┘                               3. requests that wait, while there are blocks

First come, first served. A prompt longer than what a step has left is read in pieces. When a text needs a block and there is
none, the latest running one gives its blocks back and waits; what it had is computed again later (or found in the prefix
cache). The first one in line can take blocks from all others and every request fits alone, so there is always progress.
A request whose beginning another one is computing at the moment waits for that, and then takes it from the cache.

A pass over the model that fails, for want of memory say, ends the requests that were in it with an error, and the others go on.
When the next one fails too, all end so.

Nothing here reads a clock but for timeouts, and nothing about a text depends on what runs beside it. One thread drives it.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field, replace

from herdbook.errors import UserError
from herdbook.infer.backend import BLOCK, Backend, Span
from herdbook.infer.beams import Beams
from herdbook.infer.blocks import BlockPool, Blocks, Key, blocks_for
from herdbook.infer.config import EngineConfig
from herdbook.infer.request import Busy, Completion, Event, Request, Stats, Token
from herdbook.infer.sampling import FloatArray
from herdbook.infer.sequence import Sequence, as_array
from herdbook.infer.speculate import Drafter
from herdbook.infer.text import FinishReason, Writer
from herdbook.tokenizer import Tokenizer

ROWS_OF_LOGITS = 2**25  # values of the logits of a prompt's tokens that are held at once


@dataclass
class _Job:
    """A request on its way."""

    number: int
    request: Request
    due: float | None
    alive: int = 1  # texts that are not over
    split: bool = False  # whether the texts have gone apart
    beams: Beams | None = None
    ended: list[Sequence] = field(default_factory=list)

    @property
    def ranked(self) -> bool:
        """Whether its texts are shown only in the end."""
        sampling = self.request.sampling
        return self.beams is not None or (sampling.best_of or 0) > sampling.n


@dataclass
class _Due:
    """What a sequence computes in this step."""

    sequence: Sequence
    size: int  # tokens, those guessed included
    draws: bool  # whether its end is reached, so that there is something to draw from

    @property
    def prompt_rows(self) -> range:
        """Places in the piece whose logits tell a prompt's log-probabilities."""
        sequence = self.sequence
        if not sequence.request.sampling.prompt_logprobs:
            return range(0)
        first = max(len(sequence.prompt_tokens) - 1, 0) - sequence.computed
        last = min(self.size, len(sequence.request.prompt) - 1 - sequence.computed)
        return range(max(first, 0), max(last, 0))


class Scheduler:
    """Runs requests on a backend.

    Args:
        backend: what computes.
        cfg: how many at once, and so on.
        tokenizer: for text, end tokens and forms; without one only ids come out.
        drafter: guesses tokens ahead.
        clock: seconds, for timeouts.

    Attributes:
        failures: steps in a row that failed, the last one included.
    """

    def __init__(
        self, backend: Backend, cfg: EngineConfig, *, tokenizer: Tokenizer | None = None, drafter: Drafter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.backend, self.cfg, self.pool = backend, cfg, BlockPool(backend.blocks, remember=cfg.prefix_cache)
        self._tokenizer, self._drafter, self._clock = tokenizer, drafter, clock
        # Rows of the embedding beyond the tokenizer's are padding and mean nothing.
        self._known = None if tokenizer is None else tokenizer.vocab_size
        self._jobs: dict[int, _Job] = {}
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._out: list[Event] = []
        self._next = 0
        self.failures = 0
        self._counts = dict.fromkeys(
            ("prompt_tokens", "cached_tokens", "computed_tokens", "preemptions", "drafted", "accepted", "steps"), 0
        )

    # ---- requests in ----

    def submit(self, request: Request) -> int:
        """Queue a request; its number.

        Raises Busy when the queue is full, and UserError when it could never fit the memory.
        """
        if self.full:
            raise Busy(f"{len(self._waiting):,} requests are waiting already", todo="try again later, or raise `queue`")
        need = blocks_for(len(request.prompt) + max(0, request.room - 1))
        if need > self.pool.count:
            raise UserError(
                f"{need * BLOCK:,} tokens do not fit the memory for keys and values, which holds {self.pool.count * BLOCK:,}",
                where="engine.kv_memory", todo="raise it, or ask for fewer tokens",
            )  # fmt: skip
        sampling = request.sampling
        if sampling.constrained and request.form is None:
            raise ValueError("the settings want a form, and the request has none: `Engine.request` compiles it")
        writer = Writer(sampling, self._tokenizer, request.room, request.before)
        form = None if request.form is None else request.form.copy()
        number, self._next = self._next, self._next + 1
        job = _Job(number, request, None if request.timeout is None else self._clock() + request.timeout)
        job.beams = Beams(sampling.beams) if sampling.beams else None
        self._jobs[number] = job
        sequence = Sequence(number, 0, request, self._known, Blocks(self.pool), writer, form, self.cfg.draft_tokens)
        if writer.reason is not None and not sampling.prompt_logprobs:
            for text in self._texts(job, sequence):
                self._end(job, text, (), "")
        else:
            self._waiting.append(sequence)
        return number

    def cancel(self, number: int) -> bool:
        """End a request and free its blocks now; its last event comes with the next step. False when it is over already."""
        return self._stop(number, "cancelled")

    def _stop(self, number: int, reason: FinishReason) -> bool:
        job = self._jobs.get(number)
        if job is None:
            return False
        live = self._live(job)
        if job.beams is not None:
            job.beams.close(live, reason)
            self._end_beams(job, live)
            return True
        for sequence in live:
            shown = len(sequence.writer.text)
            sequence.writer.finish(reason)
            self._end(job, sequence, (), sequence.writer.text[shown:])
        return True

    def _live(self, job: _Job) -> list[Sequence]:
        """A request's texts that are not over."""
        live = [one for one in (*self._running, *self._waiting) if one.job == job.number]
        return live if job.beams is None else [*live, *(one for one in job.beams.offered if one not in live)]

    @property
    def full(self) -> bool:
        """Whether `submit` would refuse."""
        return len(self._waiting) >= self.cfg.queue

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return not (self._jobs or self._out)

    def stats(self) -> Stats:
        """How things stand."""
        return Stats(
            waiting=len(self._waiting),
            running=len(self._running),
            blocks=self.pool.count,
            blocks_held=self.pool.held,
            **self._counts,
        )

    # ---- a step ----

    def step(self) -> list[Event]:
        """One pass over the model for whatever is due; what came of it.

        Requests whose pass fails end with an event that has the error; it is not raised.
        """
        for job in list(self._jobs.values()):
            if job.due is not None and self._clock() >= job.due:
                self._stop(job.number, "timeout")
        due: list[_Due] = []
        try:
            due += self._plan()
            if due:
                self._run(due)
                self.failures = 0
        except Exception as error:
            self._failed([one.sequence for one in due], error)
        out, self._out = self._out, []
        return out

    def _failed(self, due: list[Sequence], error: Exception) -> None:
        """The step failed, after it was settled who is in it or before."""
        self.failures += 1
        if self.failures > 1:
            self.clear(error)
            return
        # While it is settled blocks are given and guesses made: whoever has blocks may have half of something.
        touched = due or [*self._running, *(one for one in self._waiting if one.blocks.table)] or self._waiting[:1]
        for number in dict.fromkeys(one.job for one in touched):
            self._lose(number, error)

    def _lose(self, number: int, error: Exception) -> None:
        """End a request with an error; its blocks are free."""
        for sequence in self._live(self._jobs[number]):
            self._leave(sequence)
        del self._jobs[number]
        self._out.append(Event(number, error=error))

    def clear(self, error: Exception) -> None:
        """End all requests with an error, and forget what was kept for later ones; the events come with the next step."""
        for number in list(self._jobs):
            self._lose(number, error)
        self.pool = BlockPool(self.backend.blocks, remember=self.cfg.prefix_cache)

    def _plan(self) -> list[_Due]:
        """Who computes what; their blocks are theirs already."""
        due: dict[tuple[int, int], _Due] = {}
        budget = self.cfg.step_tokens
        self._guess([sequence for sequence in self._running if sequence.pending == 1])
        for begun in (True, False):
            for sequence in [one for one in self._running if one.pending and (one.pending == 1) == begun]:
                if sequence in self._running:  # an earlier one may have taken its blocks just now
                    budget -= self._schedule(sequence, due, budget)
        self._admit(due, budget)
        return list(due.values())

    def _schedule(self, sequence: Sequence, due: dict[tuple[int, int], _Due], budget: int) -> int:
        """Put a sequence's next piece into the step, if there is room; the tokens it takes."""
        guessed = len(sequence.guess.tokens) if sequence.guess else 0
        size, draws = sequence.pending + guessed, True
        if size > budget and (due or guessed == 0 or sequence.pending > 1):
            # Of a text and its guess all or nothing is read; at least one, whatever the budget.
            size, draws = min(budget, sequence.pending - 1), False
        if sequence.request.sampling.prompt_logprobs and len(sequence.prompt_tokens) < len(sequence.request.prompt):
            most = max(1, ROWS_OF_LOGITS // self.backend.cfg.vocabulary)
            size, draws = (most, False) if size > most else (size, draws)
        if size <= 0:
            return 0
        while (copies := sequence.blocks.own(sequence.computed, sequence.computed + size)) is None:
            victim = next(
                (one for one in reversed(self._running) if not one.pending and one is not sequence), self._running[-1]
            )
            due.pop(victim.turn, None)
            self._preempt(victim)
            if victim is sequence:
                return 0
        self.backend.copy(copies)
        due[sequence.turn] = _Due(sequence, size, draws)
        return size

    def _preempt(self, sequence: Sequence) -> None:
        """Take a sequence's blocks; it waits its turn, unless it only waits for other beams."""
        self._running.remove(sequence)
        if sequence.pending:
            bisect.insort(self._waiting, sequence, key=lambda one: one.turn)
        sequence.blocks.release()
        sequence.computed = 0
        self._counts["preemptions"] += 1

    def _admit(self, due: dict[tuple[int, int], _Due], budget: int) -> None:
        """Let waiting sequences run, in order, while there are rows, tokens and blocks for their whole prompt."""
        coming: set[Key] = set()
        for sequence in self._running:
            coming.update(sequence.blocks.keys(sequence.ids)[sequence.computed // BLOCK :])
        for sequence in list(self._waiting):
            if len(self._running) >= self.cfg.rows or budget <= 0:
                return
            keys = sequence.blocks.keys(sequence.ids)
            if self._coming(sequence, keys, coming):
                continue
            rescored = sequence.request.sampling.prompt_logprobs and len(sequence.prompt_tokens) < len(sequence.request.prompt)
            found = sequence.blocks.find(sequence.ids, 0 if rescored else None)
            need = blocks_for(len(sequence.ids)) - len(sequence.blocks.table)
            if not self._room(need, due):
                sequence.blocks.release()
                return
            sequence.computed = found
            coming.update(keys)
            self._waiting.remove(sequence)
            bisect.insort(self._running, sequence, key=lambda one: one.turn)
            if not sequence.begun:
                self._counts["prompt_tokens"] += len(sequence.ids)
                self._counts["cached_tokens"] += found
            self._guess([sequence])
            budget -= self._schedule(sequence, due, budget)

    def _room(self, need: int, due: dict[tuple[int, int], _Due]) -> bool:
        """Whether there are blocks for one more; beams that only wait for others give theirs up when nothing else goes on."""
        busy = any(one.pending for one in self._running)
        spare = int(self.cfg.kept_share * self.pool.count) + 1 if busy else 0
        while need + spare > self.pool.available:
            if due or busy or not self._running:
                return False
            self._preempt(self._running[-1])
        return True

    def _coming(self, sequence: Sequence, keys: list[Key], coming: set[Key]) -> bool:
        """Whether the first block that a sequence would have to compute is being computed by another."""
        for key in keys[: (len(sequence.ids) - 1) // BLOCK]:
            if self.pool.find(key) is None:
                return key in coming
        return False

    def _guess(self, sequences: list[Sequence]) -> None:
        """Guess ahead for texts that have begun, once for each place."""
        if self._drafter is None:
            return
        ready = [one for one in sequences if one.begun and one.guess is None and self._jobs[one.job].beams is None]
        rows = [one.ahead(self.cfg.draft_tokens) for one in ready]
        for sequence, guess in zip(ready, self._drafter.guess(rows), strict=True):
            sequence.guess = guess
            self._counts["drafted"] += len(guess.tokens)

    # ---- tokens out ----

    def _run(self, due: list[_Due]) -> None:
        """Compute what is due and hand the logits out."""
        spans = []
        for one in due:
            sequence = one.sequence
            guessed = sequence.guess.tokens if one.draws and sequence.guess else []
            text = [*sequence.ids[sequence.computed :], *guessed][: one.size]
            draws = range(one.size - 1 - len(guessed), one.size) if one.draws else range(0)
            spans.append(Span(text, sequence.computed, sequence.blocks.table, (*one.prompt_rows, *draws)))
        logits_WV = self.backend.run(spans)
        self._counts["steps"] += 1
        self._counts["computed_tokens"] += sum(one.size for one in due)
        greedy: list[int] = logits_WV[:, : self._known].argmax(-1).tolist()
        # From a GPU nothing is fetched that nobody reads: 64 rows of 128,000 logits are 33 MB.
        read = any(one.sequence.reads_logits for one in due)
        rows_WV, end = as_array(logits_WV if read else logits_WV[:, :0]), 0
        for one, span in zip(due, spans, strict=True):
            start, end = end, end + len(span.wanted)
            if one.sequence.job not in self._jobs:
                continue  # another text of its request failed just now
            try:
                self._receive(one, rows_WV[start:end], greedy[start:end])
            except Exception as error:  # its form is too complex to go on in, say: no matter of the others
                self._lose(one.sequence.job, error)

    def _receive(self, one: _Due, rows_WV: FloatArray, greedy: list[int]) -> None:
        """The logits of a sequence's piece."""
        sequence, prompt = one.sequence, one.prompt_rows
        job = self._jobs[sequence.job]
        if sequence.request.sampling.prompt_logprobs:
            sequence.read_prompt(rows_WV[: len(prompt)], sequence.computed + prompt.start)
        sequence.computed = len(sequence.ids) if one.draws else sequence.computed + one.size
        sequence.blocks.tell(sequence.ids, sequence.computed)
        if not one.draws:
            return
        rows_WV, greedy = rows_WV[len(prompt) :], greedy[len(prompt) :]
        if sequence.writer.reason is None and job.beams is not None:
            self._offer(job, job.beams, sequence, rows_WV[0])
            return
        for text in self._texts(job, sequence):
            self._draw(job, text, rows_WV, greedy)

    def _texts(self, job: _Job, sequence: Sequence) -> list[Sequence]:
        """The texts that go on from here: of a prompt that is read all that are wanted, else this one."""
        sampling = job.request.sampling
        count = sampling.best_of or sampling.n
        if job.split or count == 1:
            return [sequence]
        job.split, job.alive = True, count
        branches = [sequence.branch(choice) for choice in range(1, count)]
        if sequence in self._running:
            for branch in branches:
                bisect.insort(self._running, branch, key=lambda one: one.turn)
        return [sequence, *branches]

    def _draw(self, job: _Job, sequence: Sequence, rows_WV: FloatArray, greedy: list[int]) -> None:
        shown = len(sequence.writer.text)
        tokens: list[Token] = []
        if sequence.writer.reason is None:
            tokens, stood = sequence.draw(rows_WV, greedy)
            self._counts["accepted"] += stood
            sequence.computed += stood
            sequence.blocks.tell(sequence.ids, sequence.computed)
        sequence.blocks.trim(sequence.computed)
        text = sequence.writer.text[shown:]
        if sequence.writer.reason is not None:
            self._end(job, sequence, tokens, text)
        elif not job.ranked:
            self._out.append(Event(job.number, sequence.choice, tokens, text))

    def _end(self, job: _Job, sequence: Sequence, tokens: Ids[Token], text: str) -> None:
        """A text is over: free its blocks, and with the last one hand out the request."""
        self._leave(sequence)
        job.ended.append(sequence)
        job.alive -= 1
        event = Event(job.number, sequence.choice, tokens, text, sequence.writer.reason)
        if job.ranked:
            event = Event(job.number, reason=sequence.writer.reason)
        if job.alive == 0:
            event = replace(event, completion=self._completion(job))
            del self._jobs[job.number]
        elif job.ranked:
            return
        self._out.append(event)

    def _leave(self, sequence: Sequence) -> None:
        for queue in (self._running, self._waiting):
            if sequence in queue:
                queue.remove(sequence)
        sequence.blocks.release()
        if self._drafter is not None:
            self._drafter.drop(sequence.turn)

    def _completion(self, job: _Job) -> Completion:
        """All texts of a request, the first with the others in it."""
        if job.beams is not None:
            done = job.beams.completions()
        else:
            texts = sorted(job.ended, key=lambda one: one.choice)
            if job.ranked:
                texts.sort(key=lambda one: -one.score / max(1, len(one.tokens)))
            done = [text.completion() for text in texts]
        first, *others = done[: job.request.sampling.n]
        return replace(first, others=tuple(others))

    # ---- beams ----

    def _offer(self, job: _Job, beams: Beams, beam: Sequence, row_V: FloatArray) -> None:
        """Hand a beam's logits over; when all are there, the ones that live on take the place of the old."""
        old = beams.offer(beam, row_V)
        if len(old) < job.alive:
            return
        new = beams.advance()
        for one in old:
            self._leave(one)
        job.alive = len(new)
        if not new:
            self._end_beams(job, [])
        for one in new:
            bisect.insort(self._running if one.computed else self._waiting, one, key=lambda one: one.turn)

    def _end_beams(self, job: _Job, live: list[Sequence]) -> None:
        for one in live:
            self._leave(one)
        completion = self._completion(job)
        self._out.append(Event(job.number, reason=completion.finish_reason, completion=completion))
        del self._jobs[job.number]
