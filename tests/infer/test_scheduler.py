"""The scheduler: the same texts under any budget, memory and company; exact books; nobody starves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.errors import UserError
from herdbook.infer.backend import Span
from herdbook.infer.config import EngineConfig, Sampling
from herdbook.infer.request import Busy, Completion, Event, Request, Token
from herdbook.infer.sampling import FloatArray
from herdbook.infer.scheduler import Scheduler
from herdbook.infer.sequence import Sequence as Text
from herdbook.infer.torch_backend import TorchBackend
from herdbook.model.decoder import Decoder

from .conftest import CONTEXT, KINDS, byte_tokenizer, make_decoder

MODELS = {kind: make_decoder(kind) for kind in KINDS}
TOKENIZER = byte_tokenizer()
LEAST = CONTEXT // 16 + 1


def make(kind: str = "gqa", blocks: int = 64, *, text: bool = False, clock: object = None, **cfg: object) -> Scheduler:
    """A scheduler over a small model."""
    more = {"clock": clock} if clock is not None else {}
    return Scheduler(
        TorchBackend(MODELS[kind], blocks=blocks),
        EngineConfig.model_validate(cfg),
        tokenizer=TOKENIZER if text else None,
        **more,
    )  # type: ignore[arg-type]


def request(prompt: list[int], timeout: float | None = None, **sampling: object) -> Request:
    """A request with as much room as the context leaves."""
    cut = Sampling.model_validate(sampling)
    return Request(prompt, cut, min(cut.max_tokens, CONTEXT - len(prompt) + 1), timeout=timeout)


def finish(scheduler: Scheduler, most: int = 2000) -> tuple[dict[int, Completion], list[Event]]:
    """Run to the end; completions and all events."""
    events: list[Event] = []
    for _ in range(most):
        events += scheduler.step()
        if scheduler.idle:
            break
    assert scheduler.idle
    return {event.request: event.completion for event in events if event.completion is not None}, events


def recompute(model: Decoder, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding without any memory."""
    ids = list(prompt)
    with torch.inference_mode():
        while len(ids) - len(prompt) < count and len(ids) <= CONTEXT:
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


# Few different beginnings, so that requests share some.
prompts = st.builds(
    lambda start, rest: (start + rest)[:CONTEXT],
    st.sampled_from([[], [1] * 16, [1] * 16 + [2] * 16, [3] * 20]),
    st.lists(st.integers(0, 319), min_size=1, max_size=20),
)


@settings(max_examples=60)
@given(
    kind=st.sampled_from(sorted(KINDS)), batch=st.lists(st.tuples(prompts, st.integers(0, 12)), min_size=1, max_size=6),
    blocks=st.integers(LEAST, 14), tokens=st.integers(1, 60), rows=st.integers(1, 6), cached=st.booleans(),
)  # fmt: skip
def test_greedy_tokens_are_those_of_recomputing(
    kind: str, batch: list[tuple[list[int], int]], blocks: int, tokens: int, rows: int, cached: bool
) -> None:
    scheduler = make(kind, blocks, step_tokens=tokens, rows=rows, prefix_cache=cached)
    numbers = [scheduler.submit(request(prompt, temperature=0, max_tokens=count)) for prompt, count in batch]
    done, _ = finish(scheduler)
    for number, (prompt, count) in zip(numbers, batch, strict=True):
        assert done[number].ids == recompute(MODELS[kind], prompt, count)
        assert done[number].finish_reason == "length"
    assert scheduler.stats().blocks_held == 0


@settings(max_examples=40)
@given(
    batch=st.lists(st.tuples(prompts, st.integers(1, 3), st.integers(0, 99)), min_size=1, max_size=5),
    blocks=st.integers(LEAST, 14), tokens=st.integers(1, 60), rows=st.integers(1, 6), data=st.data(),
)  # fmt: skip
def test_a_sampled_text_depends_on_its_own_seed_only(
    batch: list[tuple[list[int], int, int]], blocks: int, tokens: int, rows: int, data: st.DataObject
) -> None:
    penalty = data.draw(st.sampled_from([1.0, 1.3]))

    def wanted(prompt: list[int], n: int, seed: int) -> Request:
        return request(prompt, n=n, seed=seed, max_tokens=8, top_p=0.95, repetition_penalty=penalty, logprobs=True)

    scheduler = make("gqa", blocks, step_tokens=tokens, rows=rows)
    numbers = [scheduler.submit(wanted(*one)) for one in batch]
    done, _ = finish(scheduler)
    for number, (prompt, n, seed) in zip(numbers, batch, strict=True):
        texts = [done[number], *done[number].others]
        assert len(texts) == n
        for choice, text in enumerate(texts):
            alone = make()
            alone.submit(wanted(prompt, 1, seed + choice))
            (single,) = finish(alone)[0].values()
            assert text.ids == single.ids
            assert text.logprobs == pytest.approx(single.logprobs, abs=1e-4)


@settings(max_examples=60)
@given(data=st.data(), blocks=st.integers(LEAST, 16), tokens=st.integers(1, 60), cached=st.booleans())
def test_cancelling_at_any_moment_frees_all_blocks(data: st.DataObject, blocks: int, tokens: int, cached: bool) -> None:
    scheduler = make("mqa", blocks, step_tokens=tokens, prefix_cache=cached, text=True)
    open_: set[int] = set()
    kinds = st.sampled_from([{}, {"n": 2}, {"beams": 2}, {"best_of": 3}, {"prompt_logprobs": True}, {"max_tokens": 0}])
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["submit", "step", "step", "cancel"]))
        if action == "submit":
            open_.add(scheduler.submit(request(data.draw(prompts), **{"max_tokens": 6, **data.draw(kinds)})))
        elif action == "cancel" and open_:
            assert scheduler.cancel(data.draw(st.sampled_from(sorted(open_)))) in (True, False)
        else:
            ended = [event.request for event in scheduler.step() if event.completion is not None]
            assert len(set(ended)) == len(ended)
            assert open_ >= set(ended)
            open_ -= set(ended)
    for number in sorted(open_):
        scheduler.cancel(number)
        assert not scheduler.cancel(number)
    assert scheduler.stats().blocks_held == 0
    assert {event.request for event in scheduler.step()} == open_
    assert scheduler.idle
    assert scheduler.pool.available == blocks


def test_a_shared_prefix_is_computed_once() -> None:
    model = make_decoder("gqa", context=1100)
    prefix = torch.randint(0, 320, (1000,), generator=torch.Generator().manual_seed(0)).tolist()
    asked = [Request([*prefix, number], Sampling(temperature=0), 3) for number in range(32)]
    counts, texts = {}, {}
    for cached in (True, False):
        scheduler = Scheduler(TorchBackend(model, blocks=400), EngineConfig(prefix_cache=cached, step_tokens=700))
        numbers = [scheduler.submit(one) for one in asked]
        done, _ = finish(scheduler)
        texts[cached] = [done[number].ids for number in numbers]
        stats = scheduler.stats()
        counts[cached] = stats.computed_tokens
        assert stats.prompt_tokens == 32 * 1001
    assert texts[True] == texts[False]
    # The first reads all; the others what lies behind the last full block, and two tokens of text each.
    assert counts[True] == 1001 + 31 * (1001 - 992) + 32 * 2
    assert counts[False] == 32 * 1003
    assert counts[False] > 10 * counts[True]


def test_memory_that_runs_out_delays_the_latest_and_nobody_else() -> None:
    scheduler = make(blocks=LEAST + 2, step_tokens=64)
    numbers = [scheduler.submit(request([number] * 15, temperature=0, max_tokens=20)) for number in range(4)]
    ended = [event.request for event in finish(scheduler)[1] if event.completion is not None]
    assert ended == numbers
    assert scheduler.stats().preemptions > 0


def test_texts_go_on_while_a_long_prompt_is_read() -> None:
    scheduler = make(step_tokens=4)
    short = scheduler.submit(request([1], temperature=0, max_tokens=30))
    scheduler.step()
    long = scheduler.submit(request([2] * 30, temperature=0, max_tokens=2))
    seen = [[event.request for event in scheduler.step()] for _ in range(10)]
    assert all(short in step for step in seen)
    assert long in seen[9]
    assert not any(long in step for step in seen[:9])


def test_events_join_to_the_completion() -> None:
    scheduler = make("gqa", text=True)
    plain = scheduler.submit(request([9, 8], n=2, max_tokens=10, logprobs=True, top_logprobs=2, ignore_end=True))
    ranked = scheduler.submit(request([9, 8], best_of=3, max_tokens=10, ignore_end=True))
    done, events = finish(scheduler)
    for choice, text in enumerate((done[plain], *done[plain].others)):
        own = [event for event in events if (event.request, event.choice) == (plain, choice)]
        assert [token.id for event in own for token in event.tokens] == text.ids
        assert [token.logprob for event in own for token in event.tokens] == text.logprobs
        assert "".join(event.text for event in own) == text.text
        assert [event.reason for event in own] == [None] * 9 + ["length"]
    assert len([event for event in events if event.request == ranked]) == 1


def test_the_best_of_several_is_the_likeliest_a_token() -> None:
    scheduler = make(text=True)
    every = scheduler.submit(request([5], n=4, max_tokens=6, logprobs=True))
    best = scheduler.submit(request([5], n=2, best_of=4, max_tokens=6, logprobs=True))
    done, _ = finish(scheduler)
    texts = [done[every], *done[every].others]
    texts.sort(key=lambda one: -sum(one.logprobs or [0]) / max(1, len(one.ids)))
    assert [one.ids for one in (done[best], *done[best].others)] == [one.ids for one in texts[:2]]


@pytest.mark.parametrize("tokens", [1, 7, 100])
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_prompts_are_scored(tokens: int, max_tokens: int) -> None:
    prompt = list(range(20, 56))
    scheduler = make(step_tokens=tokens)
    first = scheduler.submit(request(prompt, max_tokens=1))  # leaves the prompt in the cache
    number = scheduler.submit(request(prompt, max_tokens=max_tokens, prompt_logprobs=True, top_logprobs=3))
    single = scheduler.submit(request([7], max_tokens=0, prompt_logprobs=True))
    done, _ = finish(scheduler)
    with torch.inference_mode():
        wanted = MODELS["gqa"](torch.tensor([prompt]))[0].log_softmax(-1)
    scored = done[number].prompt
    assert scored is not None
    assert [token.id for token in scored] == prompt
    assert scored[0].logprob is None
    assert [token.logprob for token in scored[1:]] == pytest.approx(
        [float(wanted[place, token]) for place, token in enumerate(prompt[1:])], abs=1e-4
    )
    assert list(scored[5].top.values()) == pytest.approx(wanted[4].sort(descending=True).values[:3].tolist(), abs=1e-4)
    assert len(done[number].ids) == max_tokens
    assert done[first].prompt is None
    assert [token.id for token in done[single].prompt or []] == [7]


def test_deadlines_end_what_waits_and_what_runs() -> None:
    now = [0.0]
    scheduler = make(clock=lambda: now[0], rows=1)
    running = scheduler.submit(request([1], timeout=5, max_tokens=30, temperature=0))
    waiting = scheduler.submit(request([2], timeout=4, max_tokens=30, temperature=0))
    free = scheduler.submit(request([3], max_tokens=2, temperature=0))
    events: list[Event] = []
    while not scheduler.idle:
        events += scheduler.step()
        now[0] += 1
    done = {event.request: event.completion for event in events if event.completion is not None}
    assert [done[number].finish_reason for number in (running, waiting, free)] == ["timeout", "timeout", "length"]
    assert len(done[running].ids) == 5
    assert done[running].ids == recompute(MODELS["gqa"], [1], 5)
    assert done[waiting].ids == []


def test_a_full_queue_refuses() -> None:
    scheduler = make(queue=2)
    for _ in range(2):
        scheduler.submit(request([1], max_tokens=1))
    assert scheduler.full
    with pytest.raises(Busy, match="2 requests are waiting"):
        scheduler.submit(request([1]))
    scheduler.step()
    scheduler.submit(request([1], max_tokens=1))
    assert len(finish(scheduler)[0]) == 1


def test_what_can_never_fit_is_refused() -> None:
    scheduler = make(blocks=2)
    with pytest.raises(UserError, match="do not fit the memory"):
        scheduler.submit(request([1] * 30, max_tokens=10))
    scheduler.submit(request([1] * 30, max_tokens=3))
    assert len(finish(scheduler)[0]) == 1


def test_stop_ids_end_a_text_and_are_left_out() -> None:
    plain = recompute(MODELS["gqa"], [4, 4], 8)
    scheduler = make()
    number = scheduler.submit(request([4, 4], temperature=0, max_tokens=8, stop_ids=[plain[5]]))
    found = finish(scheduler)[0][number]
    assert (found.ids, found.finish_reason) == (plain[: plain.index(plain[5])], "stop")


def test_books_are_kept() -> None:
    scheduler = make()
    assert {one.name: getattr(scheduler.stats(), one.name) for one in fields(scheduler.stats())} == dict.fromkeys(
        (one.name for one in fields(scheduler.stats())), 0
    ) | {"blocks": 64}
    scheduler.submit(request([1] * 20, max_tokens=3, temperature=0))
    assert scheduler.stats().waiting == 1
    scheduler.step()
    stats = scheduler.stats()
    assert (stats.waiting, stats.running, stats.blocks_held, stats.prompt_tokens) == (0, 1, 2, 20)
    finish(scheduler)
    scheduler.submit(request([1] * 20, max_tokens=3, temperature=0))
    finish(scheduler)
    assert replace(scheduler.stats(), steps=0) == replace(
        stats, running=0, blocks_held=0, prompt_tokens=40, cached_tokens=16, computed_tokens=22 + 6, steps=0
    )


class Failing(TorchBackend):
    """A backend whose passes fail on demand, by their number."""

    def __init__(self, model: Decoder, blocks: int, wrong: set[int]) -> None:
        super().__init__(model, blocks=blocks)
        self.wrong, self.passes = wrong, 0

    def run(self, spans: Sequence[Span]) -> torch.Tensor:
        self.passes += 1
        logits_WV = super().run(spans)
        if self.passes - 1 in self.wrong:
            raise MemoryError("no memory for a step")
        return logits_WV


@settings(deadline=None, max_examples=60)
@given(data=st.data(), wrong=st.sets(st.integers(0, 12), max_size=6), rows=st.integers(1, 4), blocks=st.integers(LEAST, 20))
def test_a_pass_that_fails_ends_what_was_in_it(data: st.DataObject, wrong: set[int], rows: int, blocks: int) -> None:
    asked = [
        request(prompt, temperature=0, max_tokens=4, ignore_end=True, n=n)
        for prompt, n in data.draw(st.lists(st.tuples(prompts, st.integers(1, 2)), min_size=1, max_size=6))
    ]
    whole = make(blocks=blocks)
    expected = {number: finish(whole)[0][number].ids for number in (whole.submit(one) for one in asked)}
    backend = Failing(MODELS["gqa"], blocks, wrong)
    scheduler = Scheduler(backend, EngineConfig(rows=rows, step_tokens=24))
    numbers = [scheduler.submit(one) for one in asked]
    done, events = finish(scheduler)
    lost = [event.request for event in events if event.error is not None]
    assert sorted([*done, *lost]) == numbers, "every request has one end"
    assert bool(lost) == any(place < backend.passes for place in wrong)
    assert scheduler.pool.held == 0
    assert {number: done[number].ids for number in done} == {number: expected[number] for number in done}
    backend.wrong = set()
    again = scheduler.submit(asked[0])
    assert finish(scheduler)[0][again].ids == expected[0]
    assert scheduler.failures == 0


def test_a_second_failure_in_a_row_ends_everything() -> None:
    backend = Failing(MODELS["gqa"], 64, {1, 2})
    scheduler = Scheduler(backend, EngineConfig(rows=1))
    for number in range(4):
        scheduler.submit(request([number + 1] * 20, temperature=0, max_tokens=5))
    assert [scheduler.step()[0].request, scheduler.step()[0].request] == [0, 0]
    assert (scheduler.failures, scheduler.idle) == (1, False)
    assert [event.request for event in scheduler.step()] == [1, 2, 3]
    assert (scheduler.failures, scheduler.idle, scheduler.pool.held) == (2, True, 0)
    scheduler.submit(request([1] * 20, temperature=0, max_tokens=2))
    finish(scheduler)
    assert scheduler.stats().cached_tokens == 0, "what the passes before had computed is not trusted"


@pytest.mark.parametrize("text", [[1] * 20, [1]])
def test_what_fails_before_the_pass_ends_too(text: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(pairs: object) -> None:
        raise MemoryError("no memory for a copy")

    scheduler = make()
    branching = scheduler.submit(request(text, n=3, max_tokens=5, ignore_end=True))
    scheduler.step()
    monkeypatch.setattr(scheduler.backend, "copy", broken)
    waiting = scheduler.submit(request([7], max_tokens=5))
    assert [(event.request, type(event.error)) for event in scheduler.step()] == [(branching, MemoryError)]
    monkeypatch.undo()
    assert set(finish(scheduler)[0]) == {waiting}
    assert scheduler.pool.held == 0


def test_a_text_that_fails_is_no_matter_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = make()
    numbers = [scheduler.submit(request([5, place], n=2, max_tokens=4, seed=place, ignore_end=True)) for place in range(3)]
    drawn = Text.draw

    def broken(self: Text, rows_WV: FloatArray, greedy_W: Sequence[int]) -> tuple[list[Token], int]:
        if (self.job, self.choice, len(self.tokens)) == (numbers[1], 0, 2):
            raise UserError("too complex")
        return drawn(self, rows_WV, greedy_W)

    monkeypatch.setattr(Text, "draw", broken)
    done, events = finish(scheduler)
    assert set(done) == {numbers[0], numbers[2]}
    assert [event.request for event in events if event.error is not None] == [numbers[1]]
    assert scheduler.pool.held == 0


@pytest.mark.parametrize("read", [{}, {"temperature": 1}, {"logprobs": True}, {"prompt_logprobs": True}, {"beams": 2}])
def test_logits_that_nobody_reads_are_not_fetched(read: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[int] = []

    def as_array(logits_WV: torch.Tensor) -> FloatArray:
        fetched.append(logits_WV.shape[1])
        return logits_WV.numpy()

    monkeypatch.setattr("herdbook.infer.scheduler.as_array", as_array)
    scheduler = make()
    scheduler.submit(request([1, 2, 3], **{"temperature": 0, "max_tokens": 4, **read}))
    finish(scheduler)
    assert set(fetched) == {MODELS["gqa"].cfg.vocabulary if read else 0}
