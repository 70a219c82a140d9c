"""The engine against a plain loop that recomputes everything, whatever runs beside it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.errors import UserError
from herdbook.infer.backend import Span
from herdbook.infer.engine import Engine, EngineConfig
from herdbook.infer.native import build
from herdbook.infer.sampling import Sampling
from herdbook.model.decoder import Decoder

from .conftest import CONTEXT, KINDS, byte_tokenizer, make_decoder

MODELS = {kind: make_decoder(kind) for kind in KINDS}
TOKENIZER = byte_tokenizer()
prompts = st.lists(st.lists(st.integers(0, 319), min_size=1, max_size=CONTEXT), min_size=1, max_size=7)


def recompute(model: Decoder, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding without a cache."""
    ids = list(prompt)
    with torch.inference_mode():
        while len(ids) - len(prompt) < count and len(ids) <= CONTEXT:
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    batch=prompts,
    counts=st.lists(st.integers(0, 12), min_size=7, max_size=7),
    rows=st.integers(1, 8),
)
def test_greedy_tokens_equal_recomputing(kind: str, batch: list[list[int]], counts: list[int], rows: int) -> None:
    model = MODELS[kind]
    wanted = [Sampling(temperature=0, max_tokens=count) for count, _ in zip(counts, batch, strict=False)]
    done = Engine(model, None, EngineConfig(rows=rows)).generate(batch, wanted)
    assert [completion.ids for completion in done] == [recompute(model, *pair) for pair in zip(batch, counts, strict=False)]


@pytest.mark.parametrize("kv", ["auto", "int8"])
@pytest.mark.parametrize("backend", ["torch", "native"])
def test_greedy_tokens_through_a_window(backend: str, kv: str) -> None:
    """Each token is the likeliest by recomputing, or in 8 bits nearly; prompts begin alike and come twice, in pieces."""
    if backend == "native" and build.find_compiler() is None:
        pytest.skip("no C++ compiler")
    most = 1e-3 if kv == "auto" else 0.2

    @settings(max_examples=10)
    @given(
        kind=st.sampled_from([kind for kind in KINDS if "window" in kind]), step_tokens=st.sampled_from([3, 17, 60]),
        prefix_cache=st.booleans(), starts=st.lists(st.sampled_from([0, 16, 32]), min_size=1, max_size=5),
    )  # fmt: skip
    def check(kind: str, step_tokens: int, prefix_cache: bool, starts: list[int]) -> None:
        cfg = {"backend": backend, "kv": kv, "step_tokens": step_tokens, "prefix_cache": prefix_cache, "rows": 3}
        engine = Engine(MODELS[kind], None, EngineConfig.model_validate(cfg))
        batch = [[7] * start + [50 + 3 * number, 9, number] for number, start in enumerate(starts)]
        for prompt, done in zip(2 * batch, engine.generate(batch + batch, Sampling(temperature=0, max_tokens=8)), strict=True):
            with torch.inference_mode():
                logits = MODELS[kind](torch.tensor([prompt + done.ids[:-1]]))[0, len(prompt) - 1 :]
            chosen = logits.gather(1, torch.tensor(done.ids)[:, None])[:, 0]
            assert len(done.ids) == min(8, CONTEXT - len(prompt) + 1)
            assert (logits.amax(1) - chosen).max() < most

    check()


@settings(deadline=None, max_examples=30)
@given(kind=st.sampled_from(sorted(KINDS)), batch=prompts, seed=st.integers(0, 1000), rows=st.integers(1, 8))
def test_sampled_text_depends_on_its_own_seed_only(kind: str, batch: list[list[int]], seed: int, rows: int) -> None:
    engine = Engine(MODELS[kind], TOKENIZER, EngineConfig(rows=rows))
    wanted = [Sampling(seed=seed + i, max_tokens=8, top_p=0.9) for i in range(len(batch))]
    together = engine.generate(batch, wanted)
    assert together == [engine.generate([prompt], sampling)[0] for prompt, sampling in zip(batch, wanted, strict=True)]
    assert together == engine.generate(batch, wanted)


def test_vocabulary_beyond_the_tokenizer_is_never_drawn() -> None:
    drawn = Engine(MODELS["mha"], TOKENIZER).generate(
        [[5]] * 20, [Sampling(seed=i, temperature=5, max_tokens=30) for i in range(20)]
    )
    assert TOKENIZER.vocab_size < 320
    assert max(max(completion.ids, default=0) for completion in drawn) < TOKENIZER.vocab_size


@pytest.mark.parametrize("stop", [(), ("e",), ("ab", "\ufffd\ufffd"), ("\n",)])
def test_streamed_pieces_join_to_the_whole_text(stop: tuple[str, ...]) -> None:
    engine = Engine(MODELS["gqa"], TOKENIZER)
    for seed in range(10):
        sampling = Sampling(seed=seed, temperature=2.0, max_tokens=30, stop=stop)
        assert "".join(engine.stream("hé", sampling)) == engine.generate(["hé"], sampling)[0].text


def test_text_without_stops_is_the_decoding_of_the_ids() -> None:
    for seed in range(10):
        done = Engine(MODELS["mqa"], TOKENIZER).generate(["x"], Sampling(seed=seed, temperature=3.0, max_tokens=30))[0]
        assert done.text == TOKENIZER.decode(done.ids)


class Script(Decoder):
    """A decoder that writes given bytes, one a step."""

    def __init__(self, text: bytes) -> None:
        super().__init__(MODELS["mha"].cfg)
        letters = {byte: TOKENIZER.encode(bytes([byte]).decode("latin-1")) for byte in text if byte < 128}
        self.script = [letters[byte][-1] if byte < 128 else _byte_id(byte) for byte in text] + [0]
        self.step = 0

    def head(self, x: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*x.shape[:-1], self.cfg.vocabulary)
        logits[..., self.script[min(self.step, len(self.script) - 1)]] = 9.0
        self.step += 1
        return logits


def _byte_id(byte: int) -> int:
    """The id of a byte that is no text by itself: found in the encoding of a character that contains it."""
    for code in range(0x80, 0x3000):
        data = chr(code).encode()
        if byte in data:
            return TOKENIZER.encode(chr(code))[data.index(byte)]
    data = "😀".encode()
    return TOKENIZER.encode("😀")[data.index(byte)]


def test_pieces_are_whole_characters() -> None:
    pieces = list(Engine(Script("naïve 😀 €".encode()), TOKENIZER).stream("x", Sampling(temperature=0)))
    assert pieces == list("naïve 😀 €")


@pytest.mark.parametrize(("stop", "text"), [("END", "one "), ("ne E", "o"), ("ï", "one END na"), ("nothing", "one END naïve")])
def test_stop_strings_across_token_borders(stop: str, text: str) -> None:
    done = Engine(Script("one END naïve".encode()), TOKENIZER).generate(["x"], Sampling(temperature=0, stop=(stop,)))[0]
    assert done.text == text
    assert done.finish_reason == "stop"


def test_end_token_stops_unless_told_otherwise() -> None:
    sampling = Sampling(temperature=0, max_tokens=10)
    done = Engine(Script(b"abc"), TOKENIZER).generate(["x"], sampling)[0]
    assert (done.text, done.finish_reason, len(done.ids)) == ("abc", "stop", 3)
    more = Engine(Script(b"abc"), TOKENIZER).generate(["x"], sampling.model_copy(update={"ignore_end": True}))[0]
    assert (more.finish_reason, len(more.ids)) == ("length", 10)


def test_a_full_context_ends_the_text() -> None:
    engine = Engine(MODELS["learned"])
    done = engine.generate([[1] * CONTEXT, [1] * (CONTEXT - 3)], Sampling(temperature=0, max_tokens=100))
    assert [len(completion.ids) for completion in done] == [1, 4]
    assert {completion.finish_reason for completion in done} == {"length"}


def test_prompts_longer_than_the_context() -> None:
    engine = Engine(MODELS["mha"], TOKENIZER)
    with pytest.raises(UserError, match=f"41 tokens and the model reads at most {CONTEXT}"):
        engine.generate([[7] * (CONTEXT + 1)])
    with pytest.raises(UserError, match="reads at most"):
        engine.stream("x" * 100)
    cut = engine.generate([[9] * 50 + list(range(10, 40))], Sampling(temperature=0, max_tokens=10, truncate_prompt=True))[0]
    assert cut == engine.generate([list(range(10, 40))], Sampling(temperature=0, max_tokens=10))[0]


def test_wrong_input_is_said() -> None:
    bare = Engine(MODELS["mha"])
    for prompt in ["text", []]:
        with pytest.raises(UserError):
            bare.generate([prompt])
    with pytest.raises(UserError, match="999 is no token id"):
        bare.generate([[999]])
    with pytest.raises(UserError, match="no tokenizer"):
        bare.generate([[1]], Sampling(stop=("x",)))
    assert Engine(MODELS["mha"], TOKENIZER).generate([""], Sampling(max_tokens=0))[0].prompt_tokens == 1
    with pytest.raises(UserError, match="belong together"):
        Engine(make_decoder("mha", vocab_size=64), TOKENIZER)
    assert bare.generate([]) == []


def test_logprobs_are_the_models_own() -> None:
    model = MODELS["gqa"]
    done = Engine(model).generate([[3, 4], [5]], Sampling(temperature=0.7, top_k=3, logprobs=True, max_tokens=5))
    for prompt, completion in zip(([3, 4], [5]), done, strict=True):
        assert completion.logprobs is not None
        score, _ = Engine(model).loglikelihoods([(prompt, completion.ids)])[0]
        assert sum(completion.logprobs) == pytest.approx(score, abs=1e-4)


def plain_score(model: Decoder, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Log-likelihood by one full pass, alone."""
    ids = (context + continuation)[-CONTEXT - 1 :]
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)[len(ids) - 1 - len(continuation) :]
    targets = torch.tensor(continuation)
    return float(logprobs.gather(1, targets[:, None]).sum()), bool((logprobs.argmax(-1) == targets).all())


@settings(deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(sorted(KINDS)), data=st.data(), rows=st.integers(1, 9),
    contexts=st.lists(st.lists(st.integers(0, 319), min_size=1, max_size=50), min_size=1, max_size=4),
)  # fmt: skip
def test_loglikelihoods_are_those_of_each_request_alone(
    kind: str, data: st.DataObject, rows: int, contexts: list[list[int]]
) -> None:
    continuations = st.lists(st.integers(0, 319), min_size=1, max_size=CONTEXT)
    requests = data.draw(st.lists(st.tuples(st.sampled_from(contexts), continuations), min_size=1, max_size=8))
    model = MODELS[kind]
    greedy = Engine(model).generate([contexts[0][-5:]], Sampling(temperature=0, max_tokens=4))[0].ids
    requests.append((contexts[0][-5:], greedy))
    found = Engine(model, None, EngineConfig(rows=rows)).loglikelihoods(requests)
    for (score, is_greedy), request in zip(found, requests, strict=True):
        wanted = plain_score(model, *request)
        assert score == pytest.approx(wanted[0], abs=1e-3, rel=1e-5)
        assert is_greedy == wanted[1]
    assert found[-1][1]


def test_scoring_edges() -> None:
    engine = Engine(MODELS["mha"], TOKENIZER)
    assert engine.loglikelihoods([]) == []
    assert engine.loglikelihoods([([1, 2], [])]) == [(0.0, True)]
    assert engine.loglikelihoods([([1, 2], []), ([1, 2], [3])])[0] == (0.0, True)
    assert engine.loglikelihoods([([], [3])]) == engine.loglikelihoods([([0], [3])])
    with pytest.raises(UserError, match="does not fit"):
        engine.loglikelihoods([([1], [2] * (CONTEXT + 1))])


@pytest.mark.parametrize("length", [0, 1, CONTEXT, CONTEXT + 1, 3 * CONTEXT + 7])
@pytest.mark.parametrize("overlap", [1, CONTEXT // 2])
def test_rolling_loglikelihood_scores_each_token_once(length: int, overlap: int) -> None:
    model = MODELS["learned"]
    tokens = torch.randint(4, 260, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    sequence, total = [0, *tokens], 0.0
    start, first = 0, 1
    while first < len(sequence):
        end = min(len(sequence), start + CONTEXT + 1)
        assert first - start >= min(overlap, first)
        total += plain_score(model, sequence[start:first], sequence[first:end])[0]
        start, first = end - overlap, end
    assert Engine(model, TOKENIZER).rolling_loglikelihood(tokens, overlap=overlap) == pytest.approx(total, abs=1e-3)


def test_contexts_that_are_shared_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = make_decoder("gqa"), []
    hidden = Decoder.hidden
    monkeypatch.setattr(
        Decoder, "hidden", lambda self, tokens, **more: seen.append(tokens.numel()) or hidden(self, tokens, **more)
    )
    Engine(model).loglikelihoods([([*range(30)], [i, i + 1]) for i in range(16)])
    assert sum(seen) == 30 + 16


def test_training_mode_is_put_back() -> None:
    model = make_decoder("mha", dropout=0.5).train()
    one, two = (Engine(model).generate([[1, 2]], Sampling(temperature=0, max_tokens=5))[0].ids for _ in range(2))
    assert one == two
    assert model.training
    assert all(weight.grad is None and not weight.is_inference() for weight in model.parameters())


def test_prompts_beyond_the_queue_wait_outside() -> None:
    engine = Engine(MODELS["mha"], None, EngineConfig(queue=2, rows=1))
    done = engine.generate([[number] for number in range(9)], Sampling(temperature=0, max_tokens=3))
    assert [one.ids for one in done] == [recompute(MODELS["mha"], [number], 3) for number in range(9)]


def test_streams_take_turns_and_one_that_is_left_frees_its_blocks() -> None:
    engine = Engine(MODELS["gqa"], TOKENIZER)
    cuts = [Sampling(seed=seed, max_tokens=20, ignore_end=True) for seed in range(2)]
    whole = [engine.generate(["x"], cut)[0].text for cut in cuts]
    first, second = (engine.stream("x", cut) for cut in cuts)
    mixed = next(first), next(second), next(first)
    assert (mixed[0] + mixed[2] + "".join(first), mixed[1] + "".join(second)) == tuple(whole)
    left = engine.stream("y", cuts[0])
    next(left)
    assert engine.stats().blocks_held > 0
    left.close()
    assert engine.stats().blocks_held == 0
    with pytest.raises(UserError, match="one is streamed"):
        engine.stream("x", Sampling(n=2))


def test_new_weights_are_seen_at_once() -> None:
    model = make_decoder("gqa")
    engine, prompt = Engine(model), list(range(30))
    before = engine.generate([prompt], Sampling(temperature=0, max_tokens=5))[0].ids
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5).add_(0.01)
    after = engine.generate([prompt], Sampling(temperature=0, max_tokens=5))[0].ids
    assert after == recompute(model, prompt, 5) != before
    model.load_state_dict(MODELS["gqa"].state_dict())
    assert engine.loglikelihoods([(prompt, [3])]) == Engine(MODELS["gqa"]).loglikelihoods([(prompt, [3])])


@pytest.mark.parametrize("kind", ["alibi", "alibi-falcon", "interleaved"])
def test_contexts_longer_than_trained(kind: str) -> None:
    engine = Engine(MODELS[kind], None, EngineConfig(context=100, step_tokens=30))
    ids = list(range(3 * 30))
    done = engine.generate([ids], Sampling(temperature=0, max_tokens=50))[0].ids
    assert len(done) == 100 - 90 + 1
    with torch.inference_mode():
        for token in done:
            assert token == int(MODELS[kind](torch.tensor([ids]))[0, -1].argmax())
            ids.append(token)
    assert len(engine.loglikelihoods([(ids, [1])])) == 1


@pytest.mark.parametrize("kind", ["learned", "mha"])
def test_positions_that_do_not_reach_farther(kind: str) -> None:
    with pytest.raises(UserError, match="knows 40 positions, and 41 are wanted"):
        Engine(MODELS[kind], None, EngineConfig(context=41))
    short = Engine(MODELS[kind], None, EngineConfig(context=8))
    assert len(short.generate([[1]], Sampling(temperature=0))[0].ids) == 8


def test_eight_bit_keys_and_values_change_little() -> None:
    requests = [(list(range(30)), [token, 5]) for token in range(20)]
    whole, small = (Engine(MODELS["gqa"], None, EngineConfig(kv=kv)).loglikelihoods(requests) for kv in ("auto", "int8"))
    assert [score for score, _ in small] == pytest.approx([score for score, _ in whole], abs=0.2)


def test_memory_is_what_was_given() -> None:
    model = MODELS["mha"]
    block = 16 * int(model.cfg.kv_bytes_per_token(4))
    assert Engine(model, None, EngineConfig(kv_memory=10 * block + 1)).stats().blocks == 10
    assert Engine(model, None, EngineConfig(kv_memory=10 * block, kv="int8")).stats().blocks == 26  # 12 bytes a head for 32
    assert Engine(model, None, EngineConfig(rows=2)).stats().blocks == 2 * (3 + 1)
    with pytest.raises(UserError, match="less than two blocks"):
        Engine(model, None, EngineConfig(kv_memory=block)).stats()


def test_each_model_takes_the_backend_that_serves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import herdbook.infer.native as native
    from herdbook.infer.native.backend import NativeBackend
    from herdbook.infer.torch_backend import TorchBackend

    def kind(model: Decoder, backend: str) -> type:
        return Engine(model, None, EngineConfig.model_validate({"backend": backend}))._kind(model)

    monkeypatch.setattr(native, "available", lambda: (True, "as told"))
    large = MODELS["mha"]
    assert kind(large, "auto") is TorchBackend
    assert kind(large, "native") is NativeBackend
    monkeypatch.setattr("herdbook.infer.engine.NATIVE_FROM", 1000)
    assert kind(large, "auto") is NativeBackend
    assert kind(large, "torch") is TorchBackend
    assert kind(Script(b"a"), "auto") is TorchBackend
    monkeypatch.setattr(native, "available", lambda: (False, "no compiler"))
    assert kind(large, "auto") is TorchBackend


def test_a_step_that_fails_is_raised_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(MODELS["gqa"], TOKENIZER)
    expected = engine.generate([[1, 2, 3]], Sampling(temperature=0, max_tokens=6))
    run, calls = engine.scheduler.backend.run, []

    def broken(spans: Sequence[Span]) -> torch.Tensor:
        calls.append(spans)
        if len(calls) % 3 == 0:
            raise MemoryError("no memory for a step")
        return run(spans)

    monkeypatch.setattr(engine.scheduler.backend, "run", broken)
    with pytest.raises(MemoryError, match="no memory"):
        engine.generate([[1, 2, 3], [4]], Sampling(temperature=0, max_tokens=6))
    assert (engine.scheduler.idle, engine.stats().blocks_held) == (True, 0)
    with pytest.raises(MemoryError, match="no memory"):
        list(engine.stream([1, 2, 3], Sampling(temperature=0, max_tokens=6)))
    monkeypatch.undo()
    assert engine.generate([[1, 2, 3]], Sampling(temperature=0, max_tokens=6)) == expected
