"""One thread that steps the engines, and the way of requests to it and of events back to asyncio.

    asyncio   submit ──▶ inbox ──▶ thread   each engine in turn: open, cancel, step
              ticket ◀── deliver ◀───────   what a step made, once a step

An engine may be used by one thread only, and several engines on one machine would only take turns with its cores, so there is
one thread for all. It never waits for a reader. When a step fails, the requests that were in it get an error, and the others go
on; when the next one fails too, all of that engine's do, and it counts as failing until a step succeeds.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from herdbook.errors import UserError
from herdbook.infer.request import Event, Request, Stats
from herdbook.infer.scheduler import Scheduler
from herdbook.serve.failures import ApiError, of_user
from herdbook.serve.metrics import Metrics
from herdbook.serve.served import Served

log = logging.getLogger("herdbook.serve")
# Seconds between two deliveries while nothing is urgent: a stream in fifty pieces a second reads as one in five hundred, and
# each piece costs time of the cores that the engine runs on.
PACE = 0.02


@dataclass(eq=False)
class Ticket:
    """The prompts of one HTTP request, and what has come of them. For asyncio's thread, but for `numbers`.

    Attributes:
        requests: one for each prompt.
        numbers: the scheduler's, with the prompt's place; the engine's thread has them.
        began: when it was submitted, in seconds of a steady clock.
        open: prompts that are not over.
        last: when each text, by prompt and choice, had its last token.
        begun: whether its first token is on its way; the engine's thread has it.
        reader: takes what has come in the turn of the loop that brings it, and says whether it did; else, and for the end and
            for failures, whoever awaits `some` is woken.
    """

    served: Served
    requests: Sequence[Request]
    numbers: dict[int, int] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    open: int = 0
    last: dict[tuple[int, int], float] = field(default_factory=dict)
    begun: bool = False
    reader: Callable[[], bool] | None = None
    _box: list[tuple[int, Event]] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _failure: Exception | None = None
    _accepted: bool = False

    def __post_init__(self) -> None:
        self.open = len(self.requests)

    async def accepted(self) -> None:
        """Wait until the scheduler has taken it. Raises what it refused it with."""
        while not self._accepted:
            await self._wait()

    async def some(self) -> bool:
        """Wait until there is something to take; False once all are over. Raises what the engine or the reader failed with."""
        while not self._box:
            if self.open == 0 and self._failure is None:
                return False
            await self._wait()
        return True

    def taken(self) -> list[tuple[int, Event]]:
        """What came since the last time, by the prompt's place, one event for each text.

        Who is behind finds several steps in one event, so that no backlog keeps the loop from its other work.
        """
        box, self._box = self._box, []
        return _merged(box)

    async def _wait(self) -> None:
        await self._news.wait()
        self._news.clear()
        if self._failure is not None:
            raise self._failure

    def accept(self) -> None:
        """The scheduler has taken it."""
        self._accepted = True
        self._news.set()

    def fail(self, error: Exception) -> None:
        """Nothing more will come."""
        self._failure = error
        self._news.set()

    def deliver(self, events: Sequence[tuple[int, Event]]) -> None:
        """What came of it."""
        self._box += events
        self.open -= sum(event.completion is not None for _, event in events)
        if self.open and self.reader is not None and self._failure is None:
            try:
                if self.reader():
                    return
            except Exception as error:
                self._failure = error
        self._news.set()


def _merged(box: list[tuple[int, Event]]) -> list[tuple[int, Event]]:
    """The same with all events of a text in one."""
    if len(box) < 2:
        return box
    texts: dict[tuple[int, int], list[Event]] = {}
    for place, event in box:
        texts.setdefault((place, event.choice), []).append(event)
    if len(texts) == len(box):
        return box
    return [(place, _joined(events)) for (place, _), events in texts.items()]


def _joined(events: Sequence[Event]) -> Event:
    tokens = [token for event in events for token in event.tokens]
    return replace(events[-1], tokens=tokens, text="".join(event.text for event in events))


_News = tuple[int, Event] | Exception | None  # an event, a failure, or that the request was accepted


class Driver:
    """Runs the engines of some models.

    Args:
        served: the models.
        metrics: told what happens.
    """

    def __init__(self, served: Sequence[Served], metrics: Metrics) -> None:
        self._lines = {model.name: _Line(model) for model in served}
        self._metrics = metrics
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._ending = False
        self._thread = threading.Thread(target=self._work, name="herdbook-engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._out: dict[Ticket, list[_News]] = {}
        self._urgent = False  # whether somebody waits for it: for a first token, an end, an answer of the queue
        self._sent = 0.0
        self._tickets: set[Ticket] = set()

    # ---- asyncio's side ----

    def start(self) -> None:
        """Begin to work for the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its step; requests that are not over get nothing more."""
        self._tell(self._end)
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    @property
    def failing(self) -> bool:
        """Whether the last two steps of an engine failed, or more."""
        return any(line.failing for line in self._lines.values())

    def stats(self) -> dict[str, Stats]:
        """How each engine stood after its last step."""
        return {name: line.stats for name, line in self._lines.items()}

    async def submit(self, served: Served, requests: Sequence[Request]) -> Ticket:
        """Hand requests to a model's engine, all or none.

        Raises Busy when its queue has no room for them, UserError when it refuses one, and ApiError when it has failed.
        """
        if not self.alive:
            raise ApiError(503, "the engine has stopped", code="engine_stopped")
        ticket = Ticket(served, requests)
        line = self._lines[served.name]
        self._tickets.add(ticket)
        self._tell(lambda: self._post([(ticket, line.open(ticket))]))
        try:
            await ticket.accepted()
        except BaseException:
            self.cancel(ticket)
            raise
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for it any more: end what is not over, and free its blocks."""
        if ticket in self._tickets:
            self._tickets.remove(ticket)
            line = self._lines[ticket.served.name]
            self._tell(lambda: line.drop(ticket))

    def cut_off(self) -> None:
        """End all requests with what they have."""
        for ticket in self._tickets:
            self._tell(lambda ticket=ticket: self._lines[ticket.served.name].cancel(ticket))  # type: ignore[misc]

    def _tell(self, command: Callable[[], None]) -> None:
        with self._wake:
            self._inbox.append(command)
            self._wake.notify()

    def _deliver(self, out: dict[Ticket, list[_News]]) -> None:
        now = time.perf_counter()
        for ticket, news in out.items():
            events = _merged([one for one in news if isinstance(one, tuple)])
            if None in news:
                ticket.accept()
            if events:
                self._metrics.saw(ticket.served.name, ticket, events, now)
                ticket.deliver(events)
            for one in news:
                if isinstance(one, Exception):
                    ticket.fail(one)

    # ---- the engine's thread ----

    def _work(self) -> None:
        try:
            self._serve(list(self._lines.values()))
        except BaseException:
            log.exception("the engine's thread ended")
            failure = ApiError(503, "the engine has stopped", code="engine_stopped")
            self._post([(ticket, failure) for ticket in list(self._tickets)])
            self._send()
            raise

    def _serve(self, lines: Sequence[_Line]) -> None:
        while not self._ending:
            with self._wake:
                while not self._inbox and all(line.idle for line in lines):
                    self._wake.wait()
                commands, self._inbox = self._inbox, deque()
            for command in commands:
                command()
            for line in lines:
                if not line.idle:
                    self._step(line)
            now = time.perf_counter()
            if self._urgent or now - self._sent >= PACE or all(line.idle for line in lines):
                self._send()
                self._sent = now

    def _send(self) -> None:
        if self._out and self._loop is not None:
            self._loop.call_soon_threadsafe(self._deliver, self._out)
            self._out, self._urgent = {}, False

    def _step(self, line: _Line) -> None:
        out, errors = line.step()
        self._post(out)
        for error in errors:
            log.error("a step of %s failed, and with it the requests that were in it", line.served.name, exc_info=error)
            self._metrics.failures.labels(line.served.name).inc()

    def _post(self, out: Sequence[tuple[Ticket, _News]]) -> None:
        for ticket, news in out:
            self._out.setdefault(ticket, []).append(news)
            if not isinstance(news, tuple) or not ticket.begun or news[1].reason is not None:
                self._urgent = True
                ticket.begun = ticket.begun or isinstance(news, tuple)

    def _end(self) -> None:
        self._ending = True


class _Line:
    """A model's scheduler and the tickets in it. For the engine's thread, but for `stats` and `failing`."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self._scheduler: Scheduler = served.engine.scheduler
        self._tickets: dict[int, Ticket] = {}
        self.stats = self._scheduler.stats()

    @property
    def idle(self) -> bool:
        return self._scheduler.idle

    @property
    def failing(self) -> bool:
        return self._scheduler.failures > 1

    def open(self, ticket: Ticket) -> Exception | None:
        """Submit all of a ticket's requests, or none and say why."""
        try:
            for place, request in enumerate(ticket.requests):
                ticket.numbers[self._scheduler.submit(request)] = place
        except Exception as error:
            self.cancel(ticket)
            return error
        self._tickets.update(dict.fromkeys(ticket.numbers, ticket))
        self.stats = self._scheduler.stats()
        return None

    def cancel(self, ticket: Ticket) -> None:
        """End what is not over; its last events come with the next step."""
        for number in ticket.numbers:
            self._scheduler.cancel(number)

    def drop(self, ticket: Ticket) -> None:
        """End what is not over, and have nothing delivered."""
        self.cancel(ticket)
        for number in ticket.numbers:
            self._tickets.pop(number, None)
        self.stats = self._scheduler.stats()

    def step(self) -> tuple[list[tuple[Ticket, _News]], list[Exception]]:
        """One step: whose events came of it, and what failed by no fault of a request."""
        out: list[tuple[Ticket, _News]] = []
        errors: list[Exception] = []
        for event in self._scheduler.step():
            if event.error is not None and not isinstance(event.error, UserError) and event.error not in errors:
                errors.append(event.error)
            ticket = self._tickets.get(event.request)
            if ticket is None:
                continue
            if event.error is None:
                out.append((ticket, (ticket.numbers[event.request], event)))
            else:
                out.append((ticket, _failure(event.error)))
                self.drop(ticket)
            if event.completion is not None:
                del self._tickets[event.request]
        self.stats = self._scheduler.stats()
        return out, errors


def _failure(error: Exception) -> ApiError:
    """What the sender of a request is told whose step failed."""
    if isinstance(error, UserError):
        return of_user(error)
    return ApiError(500, f"the engine failed at this request or one beside it ({type(error).__name__})", code="engine_failed")
