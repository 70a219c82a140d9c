"""Guessing ahead: the text's distribution is unchanged, to the last digit that can be enumerated."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.errors import UserError
from herdbook.infer import speculate
from herdbook.infer.engine import Engine, EngineConfig
from herdbook.infer.sampling import Distribution, Sampling, distribution
from herdbook.infer.speculate import look_up, verify

from .conftest import KINDS, make_decoder

MODELS = {kind: make_decoder(kind) for kind in KINDS}
DRAFTS = {kind: make_decoder(kind, seed=1, n_layers=1) for kind in ("gqa", "alibi")}
weights = st.lists(st.sampled_from([0, 0, 1, 2, 5]), min_size=5, max_size=5).filter(any)


def of(values: list[int]) -> Distribution:
    """A distribution over five ids, without those that have nothing."""
    ids = np.flatnonzero(values)
    return Distribution(ids, np.array(values, dtype=np.float64)[ids] / sum(values))


@given(weights, weights)
def test_the_outcome_is_distributed_as_the_target(target_: list[int], source_: list[int]) -> None:
    """Summed over all guesses and both outcomes, with the border of the uniform number checked from either side."""
    target, source = of(target_), of(source_)
    shares: dict[int, float] = defaultdict(float)
    kept = 0.0
    for guessed, likely in zip(source.ids.tolist(), source.probabilities.tolist(), strict=True):
        accept = min(1.0, target.of(guessed) / likely)
        shares[guessed] += likely * accept
        kept += likely * accept
        # What `verify` does on either side of the border.
        assert check(target, guessed, source, accept * (1 - 1e-9)) == (guessed if accept > 0 else None)
        if accept < 1:
            assert check(target, guessed, source, accept + 1e-9) is None
            rest = speculate._above(target, source)
            for token, share in zip(rest.ids.tolist(), rest.probabilities.tolist(), strict=True):
                shares[token] += likely * (1 - accept) * share
    for token in range(5):
        assert shares[token] == pytest.approx(target.of(token), abs=1e-12)
    assert kept == pytest.approx(sum(min(target.of(token), source.of(token)) for token in range(5)))


def check(target: Distribution, guessed: int, source: Distribution, number: float) -> int | None:
    """The guess if it stands at this uniform number, else None."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speculate, "uniform", lambda generator: number)
        token, stood = verify(target, guessed, source, torch.Generator())
    return token if stood else None


@given(weights, st.integers(0, 4), st.integers(0, 99))
def test_a_guess_that_was_not_drawn_changes_no_draw(target_: list[int], guessed: int, seed: int) -> None:
    target = of(target_)
    token, stood = verify(target, guessed, None, torch.Generator().manual_seed(seed))
    assert token == speculate.draw(target, torch.Generator().manual_seed(seed))
    assert stood == (token == guessed)


def test_texts_of_a_draft_model_have_the_models_distribution() -> None:
    """Two tokens of a vocabulary of four: 4,000 texts against the 16 exact probabilities."""
    small = {"vocab_size": 4, "d_model": 16, "n_heads": 2, "n_kv_heads": 1, "init_std": 0.3}
    model, draft = make_decoder("mha", **small), make_decoder("mha", seed=5, n_layers=1, **small)
    cut = Sampling(max_tokens=3, top_k=3, temperature=1.5)
    exact: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        exact = {
            (*text, int(token)): share * float(likely)
            for text, share in exact.items()
            for choices in [distribution(model(torch.tensor([[1, *text]]))[0, -1].detach().numpy(), cut)]
            for token, likely in zip(choices.ids, choices.probabilities, strict=True)
        }
    engine = Engine(model, None, EngineConfig(speculate="draft", draft_tokens=2, rows=512), draft=draft)
    count = 4000
    done = engine.generate([[1]] * count, [cut.model_copy(update={"seed": seed}) for seed in range(count)])
    found: dict[tuple[int, ...], int] = defaultdict(int)
    for one in done:
        found[tuple(one.ids)] += 1
    assert set(found) <= set(exact)
    # Pearson's statistic has about as many degrees of freedom as cells; five standard deviations above are a defect.
    cells = [share * count for share in exact.values()]
    statistic = sum((found[text] - wanted) ** 2 / wanted for text, wanted in zip(exact, cells, strict=True))
    assert statistic < len(cells) + 5 * (2 * len(cells)) ** 0.5
    stats = engine.stats()
    assert 0 < stats.accepted < stats.drafted


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(sorted(DRAFTS)), how=st.sampled_from(["lookup", "draft"]), ahead=st.integers(1, 6),
    blocks=st.integers(3, 20),
    prompts=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=20), min_size=1, max_size=5),
)  # fmt: skip
def test_greedy_texts_are_those_without_guesses(kind: str, how: str, ahead: int, blocks: int, prompts: list[list[int]]) -> None:
    model, draft = MODELS[kind], DRAFTS[kind] if how == "draft" else None
    plain = Engine(model).generate(prompts, Sampling(temperature=0, max_tokens=15))
    engine = Engine(model, None, EngineConfig.model_validate({"speculate": how, "draft_tokens": ahead}), draft=draft)
    engine._blocks = lambda per_block: blocks  # type: ignore[method-assign]
    assert engine.generate(prompts, Sampling(temperature=0, max_tokens=15)) == plain
    assert engine.stats().blocks_held == 0


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(sorted(MODELS)), seed=st.integers(0, 99), tokens=st.integers(1, 40),
    prompts=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=20), min_size=1, max_size=5),
)  # fmt: skip
def test_looking_up_changes_no_seeds_text(kind: str, seed: int, tokens: int, prompts: list[list[int]]) -> None:
    cut = Sampling(seed=seed, temperature=0.3, max_tokens=15, repetition_penalty=1.1)
    engine = Engine(MODELS[kind], None, EngineConfig(speculate="lookup", step_tokens=tokens))
    assert engine.generate(prompts, cut) == Engine(MODELS[kind]).generate(prompts, cut)


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 99), prompts=st.lists(st.lists(st.integers(0, 319), min_size=1, max_size=20), min_size=2, max_size=5)
)
def test_a_drafted_text_depends_on_its_own_seed_only(seed: int, prompts: list[list[int]]) -> None:
    def texts(prompts: list[list[int]], first: int, **cfg: int) -> list[list[int]]:
        engine = Engine(MODELS["gqa"], None, EngineConfig(speculate="draft", **cfg), draft=DRAFTS["gqa"])
        cuts = [Sampling(seed=seed + first + place, max_tokens=12) for place in range(len(prompts))]
        return [one.ids for one in engine.generate(prompts, cuts)]

    together = texts(prompts, 0)
    assert together == [texts([prompt], place)[0] for place, prompt in enumerate(prompts)]
    assert together == texts(prompts, 0, step_tokens=7, rows=2)


def test_what_followed_the_same_tokens_is_looked_up() -> None:
    assert look_up([1, 2, 3, 4, 9, 1, 2, 3], 2) == [4, 9]
    assert look_up([7, 1, 2, 3, 8, 2, 3, 5, 2, 3], 3) == [5, 2, 3]
    assert look_up([1, 2, 3], 4) == []
    assert look_up([1], 4) == []
    assert look_up([5, 5, 5, 5], 4) == [5]


def test_a_draft_model_must_fit() -> None:
    with pytest.raises(UserError, match="go together"):
        Engine(MODELS["mha"], None, EngineConfig(speculate="draft"))
    with pytest.raises(UserError, match="64 tokens and the model 320"):
        Engine(MODELS["mha"], None, EngineConfig(speculate="draft"), draft=make_decoder("mha", vocab_size=64))
