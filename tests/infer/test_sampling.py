"""Drawing tokens: each setting against its definition, seeds, cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from herdbook.infer import sampling as module
from herdbook.infer.sampling import Distribution, History, Sampling, adjusted, distribution, draw, log_probabilities

logits = st.lists(st.one_of(st.floats(-20, 20, width=32), st.sampled_from([1.0, 2.0])), min_size=1, max_size=12).map(
    lambda row: np.array(row, dtype=np.float32)
)
cuts = st.builds(
    Sampling, temperature=st.sampled_from([0.0, 1e-9, 0.5, 1.0, 3.0]), top_k=st.integers(0, 14),
    typical_p=st.sampled_from([0.2, 0.9, 1.0]), top_p=st.sampled_from([1e-6, 0.3, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 1.0]),
)  # fmt: skip


def plainly(row: np.ndarray, cut: Sampling) -> dict[int, float]:
    """The definition, step by step: each cut keeps the first of an order, by rising id where equal."""
    if cut.temperature == 0:
        return {int(row.argmax()): 1.0}
    weights = np.exp((row.astype(np.float64) - row.max()) / cut.temperature)
    kept = {place: float(weight) for place, weight in enumerate(weights)}
    if cut.top_k:
        kept = {place: kept[place] for place in sorted(kept, key=lambda place: -kept[place])[: cut.top_k]}
    for share, typical in ((cut.typical_p, True), (cut.top_p, False)):
        if share < 1:
            kept = {place: weight for place, weight in sorted(kept.items()) if weight > 0}
            total = sum(kept.values())
            entropy = -sum(weight / total * np.log(weight / total) for weight in kept.values())
            rank = {place: abs(-np.log(weight / total) - entropy) if typical else -weight for place, weight in kept.items()}
            chosen, sum_ = {}, 0.0
            for place in sorted(kept, key=lambda place: rank[place]):
                if sum_ < share * total:
                    chosen[place] = kept[place]
                sum_ += kept[place]
            kept = chosen
    kept = {place: weight for place, weight in kept.items() if weight > 0 and weight >= cut.min_p * max(kept.values())}
    total = sum(kept.values())
    return {place: weight / total for place, weight in sorted(kept.items())}


@settings(deadline=None, max_examples=400)
@given(logits, cuts)
def test_cuts_keep_what_their_definitions_say(row: np.ndarray, cut: Sampling) -> None:
    found, wanted = distribution(row, cut), plainly(row, cut)
    ours = dict(zip(found.ids.tolist(), found.probabilities.tolist(), strict=True))
    # Where a sum or an entropy falls on a border, rounding decides; then the rest is still in proportion.
    if set(ours) != set(wanted):
        assert cut.typical_p < 1 or cut.top_p < 1
        assert len(set(ours) ^ set(wanted)) == 1 or len(np.unique(row)) < len(row)
    else:
        assert ours == pytest.approx(wanted)
    assert sum(ours.values()) == pytest.approx(1)


@pytest.mark.parametrize("cut", [{"top_p": 0.5}, {"typical_p": 0.9}, {"top_p": 0.999}, {"top_k": 50, "top_p": 0.9}])
def test_a_large_vocabulary_is_cut_as_a_sorted_one(cut: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    row = 3 * torch.randn(20_000, generator=torch.Generator().manual_seed(0)).numpy()
    quick = distribution(row, Sampling.model_validate(cut))
    monkeypatch.setattr(module, "FIRST", len(row))
    whole = distribution(row, Sampling.model_validate(cut))
    np.testing.assert_array_equal(quick.ids, whole.ids)
    np.testing.assert_allclose(quick.probabilities, whole.probabilities)


def test_nothing_is_sorted_for_few_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    row = torch.randn(50_000, generator=torch.Generator().manual_seed(0)).numpy()
    sorted_: list[int] = []
    original = np.sort
    monkeypatch.setattr(
        np, "sort", lambda values, *rest, **more: sorted_.append(len(values)) or original(values, *rest, **more)
    )
    monkeypatch.setattr(np, "argsort", lambda values, **more: pytest.fail("no order is needed"))
    for cut in (Sampling(temperature=0), Sampling(top_k=40), Sampling(min_p=0.1), Sampling()):
        distribution(row, cut)
    assert sum(sorted_) == 40


def test_draws_follow_the_distribution() -> None:
    choices = Distribution(np.arange(4), np.array([0.5, 0.3, 0.15, 0.05]))
    generator = torch.Generator().manual_seed(0)
    drawn = np.bincount([draw(choices, generator) for _ in range(4000)], minlength=4)
    np.testing.assert_allclose(drawn / 4000, choices.probabilities, atol=0.03)
    assert choices.pick(np.nextafter(1, 0)) == 3
    assert (choices.of(1), choices.of(7)) == (0.3, 0.0)


def test_penalties_and_bias() -> None:
    row = np.array([2.0, -2.0, 1.0, 0.5], dtype=np.float32)
    history = History({0, 1, 2})
    for token in (2, 2, 3):
        history.add(token)
    changed = adjusted(row, Sampling(repetition_penalty=2.0), history)
    np.testing.assert_allclose(changed, [1.0, -4.0, 0.5, 0.25])
    changed = adjusted(row, Sampling(presence_penalty=0.5, frequency_penalty=0.25), history)
    np.testing.assert_allclose(changed, [2.0, -2.0, 0.0, -0.25])
    np.testing.assert_allclose(adjusted(row, Sampling(logit_bias={1: 9.0, 99: 1.0}), history), [2.0, 7.0, 1.0, 0.5])
    np.testing.assert_allclose(adjusted(row, Sampling(), history, known=3), [2.0, -2.0, 1.0, -np.inf])
    allowed = np.array([False, True, True])
    np.testing.assert_allclose(adjusted(row, Sampling(), history, allowed_V=allowed, known=3), [-np.inf, -2.0, 1.0, -np.inf])
    assert adjusted(row, Sampling(), history) is row
    assert row.tolist() == [2.0, -2.0, 1.0, 0.5]


@given(logits, st.integers(0, 14))
def test_log_probabilities_are_the_softmaxs(row: np.ndarray, top: int) -> None:
    wanted = torch.tensor(row).double().log_softmax(-1)
    own, likeliest = log_probabilities(row, len(row) - 1, top)
    assert own == pytest.approx(float(wanted[-1]), abs=1e-5)
    assert list(likeliest.values()) == pytest.approx(wanted.sort(descending=True).values[:top].tolist(), abs=1e-5)
    assert [float(wanted[token]) for token in likeliest] == pytest.approx(list(likeliest.values()), abs=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"typical_p": 0},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"logit_bias": {1: float("inf")}},
        {"logit_bias": {1: 1e30}},
        {"logit_bias": {-1: 1.0}},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"seed": -1},
        {"topk": 3},
        {"n": 0},
        {"n": 3, "best_of": 2},
        {"beams": 2, "n": 3},
        {"beams": 2, "best_of": 2},
        {"regex": "a", "grammar": "b"},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Sampling.model_validate(wrong)
