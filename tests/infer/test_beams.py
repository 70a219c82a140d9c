"""Beam search against all texts there are."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.infer.engine import Engine, EngineConfig, Sampling
from herdbook.model.decoder import Decoder

from .conftest import make_decoder

SMALL = {"vocab_size": 5, "d_model": 16, "n_heads": 2, "n_kv_heads": 1, "init_std": 0.4}
MODELS = [make_decoder("gqa", seed=seed, **SMALL) for seed in range(3)]
END = 4


def scores(model: Decoder, prompt: list[int], texts: list[tuple[int, ...]]) -> list[float]:
    """Log-probabilities of texts of one length."""
    with torch.inference_mode():
        logprobs = model(torch.tensor([[*prompt, *text] for text in texts]))[:, len(prompt) - 1 : -1].log_softmax(-1)
    found: list[float] = logprobs.gather(-1, torch.tensor(texts)[..., None]).sum((1, 2)).tolist()
    return found


@settings(deadline=None, max_examples=10)
@given(model=st.sampled_from(MODELS), prompt=st.lists(st.integers(0, 3), min_size=1, max_size=20), n=st.integers(1, 4))
def test_a_wide_search_finds_the_best_of_all_texts(model: Decoder, prompt: list[int], n: int) -> None:
    texts = list(itertools.product(range(5), repeat=3))
    ranked = sorted(zip(scores(model, prompt, texts), texts, strict=True), reverse=True)
    done = Engine(model).generate([prompt], Sampling(beams=25, n=n, max_tokens=3))[0]
    assert [one.ids for one in (done, *done.others)] == [list(text) for _, text in ranked[:n]]


@settings(deadline=None, max_examples=20)
@given(
    model=st.sampled_from(MODELS), prompt=st.lists(st.integers(0, 3), min_size=1, max_size=20), width=st.integers(1, 5),
    blocks=st.integers(3, 12), tokens=st.integers(1, 30),
)  # fmt: skip
def test_a_search_depends_on_no_memory_and_no_company(
    model: Decoder, prompt: list[int], width: int, blocks: int, tokens: int
) -> None:
    cut = Sampling(beams=width, n=width, max_tokens=12, stop_ids=(END,))
    alone = Engine(model).generate([prompt], cut)[0]
    engine = Engine(model, None, EngineConfig(step_tokens=tokens))
    engine._blocks = lambda per_block: blocks  # type: ignore[method-assign]
    beside = Sampling(temperature=0, max_tokens=20)
    found = engine.generate([[1, 2], prompt, [3] * 18], [beside, cut, beside])[1]
    assert found == alone
    assert engine.stats().blocks_held == 0


@pytest.mark.parametrize("model", MODELS)
def test_one_beam_is_greedy(model: Decoder) -> None:
    greedy, beam = (
        Engine(model).generate([[1, 2, 3]], Sampling(max_tokens=10, logprobs=True, **how))[0]
        for how in ({"temperature": 0}, {"beams": 1})
    )
    assert greedy == beam


@pytest.mark.parametrize("penalty", [0.0, 1.0, 3.0])
def test_texts_are_ranked_by_penalised_log_probability(penalty: float) -> None:
    cut = Sampling(beams=6, n=6, max_tokens=6, stop_ids=(END,), length_penalty=penalty)
    done = Engine(MODELS[0]).generate([[2, 2]], cut)[0]
    texts = [one.ids + ([END] if one.finish_reason == "stop" else []) for one in (done, *done.others)]
    lengths = [max(1, len(one.ids)) for one in (done, *done.others)]
    worth = [scores(MODELS[0], [2, 2], [tuple(text)])[0] / length**penalty for text, length in zip(texts, lengths, strict=True)]
    assert worth == sorted(worth, reverse=True)
    assert len({tuple(text) for text in texts}) == 6
