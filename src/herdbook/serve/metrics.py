"""What Prometheus may know of a server, under names like those of other engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from herdbook.infer.request import Event, Stats

if TYPE_CHECKING:
    from herdbook.serve.driver import Ticket

FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
WHOLE = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

# name, help, and where the number comes from, of what an engine counts itself
_COUNTS: tuple[tuple[str, str, Callable[[Stats], float]], ...] = (
    ("prompt_tokens", "Tokens of prompts read.", lambda stats: stats.prompt_tokens),
    ("prefix_cache_hit_tokens", "Tokens of prompts found in the prefix cache.", lambda stats: stats.cached_tokens),
    ("computed_tokens", "Tokens that went through the model.", lambda stats: stats.computed_tokens),
    ("preemptions", "Times a text gave its blocks to an earlier one.", lambda stats: stats.preemptions),
    ("drafted_tokens", "Tokens guessed ahead.", lambda stats: stats.drafted),
    ("accepted_tokens", "Guessed tokens that stood.", lambda stats: stats.accepted),
    ("steps", "Passes over the model.", lambda stats: stats.steps),
)
_GAUGES: tuple[tuple[str, str, Callable[[Stats], float]], ...] = (
    ("texts_running", "Texts that are being written.", lambda stats: stats.running),
    ("texts_waiting", "Texts that wait for their turn.", lambda stats: stats.waiting),
    ("kv_blocks", "Blocks of keys and values there are.", lambda stats: stats.blocks),
    ("kv_blocks_held", "Blocks that running texts hold.", lambda stats: stats.blocks_held),
    ("kv_use_ratio", "Share of the blocks that running texts hold.", lambda stats: stats.blocks_held / stats.blocks),
)


class _Of(NamedTuple):
    """What is counted of a model with every token: to look it up by its label each time would be most of the work."""

    first: Histogram
    between: Histogram
    whole: Histogram
    tokens: Counter


class Metrics:
    """Counters and histograms of one server, in a registry of its own. For asyncio's thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._first = self._histogram("time_to_first_token_seconds", "From a request to its first token.", FIRST)
        self._between = self._histogram("time_between_tokens_seconds", "Between two tokens of a text.", BETWEEN)
        self._whole = self._histogram("request_seconds", "From a request to its last token.", WHOLE)
        self._tokens = Counter("herdbook_generated_tokens", "Tokens written.", ["model"], registry=self.registry)
        self._ends = Counter("herdbook_texts", "Texts that are over.", ["model", "reason"], registry=self.registry)
        self._of: dict[str, _Of] = {}
        self.failures = Counter("herdbook_engine_failures", "Steps that failed.", ["model"], registry=self.registry)
        self.responses = Counter("herdbook_responses", "HTTP answers.", ["path", "status"], registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"herdbook_{name}", text, ["model"], buckets=buckets, registry=self.registry)

    def watch(self, stats: Callable[[], Mapping[str, Stats]]) -> None:
        """Have what the engines count themselves read from `stats`, by model."""
        self.registry.register(_Engines(stats))

    def saw(self, model: str, ticket: Ticket, events: Sequence[tuple[int, Event]], now: float) -> None:
        """Events came for a request's prompts, by their places, at most one for each text.

        Args:
            now: seconds of the clock that `Ticket.began` is of.
        """
        of = self._of.get(model) or self._new(model)
        for place, event in events:
            if event.tokens:
                before = ticket.last.get((place, event.choice))
                if before is None:
                    of.first.observe(now - ticket.began)
                else:
                    of.between.observe((now - before) / len(event.tokens))
                ticket.last[place, event.choice] = now
                of.tokens.inc(len(event.tokens))
            if event.reason is not None:
                self._ends.labels(model, event.reason).inc()
        if ticket.open == sum(event.completion is not None for _, event in events):
            of.whole.observe(now - ticket.began)

    def _new(self, model: str) -> _Of:
        first, between, whole = (kind.labels(model) for kind in (self._first, self._between, self._whole))
        self._of[model] = _Of(first, between, whole, self._tokens.labels(model))
        return self._of[model]

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self.registry)


class _Engines(Collector):
    def __init__(self, stats: Callable[[], Mapping[str, Stats]]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        now = self._stats()
        for kind, table in ((CounterMetricFamily, _COUNTS), (GaugeMetricFamily, _GAUGES)):
            for name, text, number in table:
                family = kind(f"herdbook_{name}", text, labels=["model"])
                for model, stats in now.items():
                    family.add_metric([model], number(stats))
                yield family
