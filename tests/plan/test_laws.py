"""The laws against what their papers print."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdbook.plan.laws import BESIROGLU_2024, HOFFMANN_2022, LAWS, TABLES, Law, ScalingLaw, flops_for

PARAMETRIC = [HOFFMANN_2022, BESIROGLU_2024]


def test_chinchillas_table_3_at_67b() -> None:
    """67B, 5.76e23 FLOPs, 1.5T tokens. 6·67e9·1.5e12 is 6.03e23: the row is rounded, and 1.43T is what fits its FLOPs."""
    parameters, tokens = LAWS["approach1"].optimum(5.76e23)
    assert parameters == pytest.approx(67e9)
    assert tokens == pytest.approx(1.5e12, rel=0.05)
    assert flops_for(LAWS["approach1"], parameters=67e9) == pytest.approx(5.76e23)


@pytest.mark.parametrize(("name", "size", "words"), [("approach1", 0.034, 0.046), ("approach2", 0.04, 0.045),
                                                     ("approach3", 0.08, 0.11)])  # fmt: skip
def test_all_printed_rows(name: str, size: float, words: float) -> None:
    """How far the sizes and tokens at the printed FLOPs are from the printed ones, at most."""
    for parameters, flops, tokens in TABLES[name]:
        found = LAWS[name].optimum(flops)
        assert found[0] == pytest.approx(parameters, rel=size)
        assert found[1] == pytest.approx(tokens, rel=words)


@pytest.mark.parametrize("row", TABLES["approach1"])
def test_the_corrected_fit_agrees_with_approach_1(row: tuple[float, float, float]) -> None:
    if 1e9 <= row[0] <= 1e12:
        assert BESIROGLU_2024.optimum(row[1])[0] == pytest.approx(row[0], rel=0.25)


@given(st.sampled_from(list(LAWS.values())), st.floats(1e15, 1e28))
def test_optima_spend_the_flops_and_can_be_asked_backwards(law: Law, flops: float) -> None:
    parameters, tokens = law.optimum(flops)
    assert 6 * parameters * tokens == pytest.approx(flops)
    assert flops_for(law, parameters=parameters) == pytest.approx(flops, rel=1e-6)
    assert flops_for(law, tokens=tokens) == pytest.approx(flops, rel=1e-6)


@given(st.sampled_from(PARAMETRIC), st.floats(1e8, 1e12), st.floats(1e9, 1e14))
def test_tokens_for_a_loss(law: ScalingLaw, parameters: float, tokens: float) -> None:
    assert law.tokens_for(law.loss(parameters, tokens), parameters) == pytest.approx(tokens, rel=1e-3)


def test_a_loss_out_of_reach() -> None:
    assert BESIROGLU_2024.tokens_for(1.9, 1e6) == float("inf")
    with pytest.raises(ValueError, match="no model"):
        BESIROGLU_2024.cheapest(1.8, 1e12)


def test_sardanas_example() -> None:
    """Sardana et al. 2023, Figure 1: 13B's quality and 2T tokens to serve: a 7B model saves 1.7e22 FLOPs, 17 %."""
    tokens = HOFFMANN_2022.optimum(flops_for(HOFFMANN_2022, parameters=13e9))[1]
    loss = HOFFMANN_2022.loss(13e9, tokens)
    parameters, longer = HOFFMANN_2022.cheapest(loss, 2e12)
    assert parameters == pytest.approx(7e9, rel=0.03)
    before = 6 * 13e9 * tokens + 2 * 13e9 * 2e12
    after = 6 * parameters * longer + 2 * parameters * 2e12
    assert before - after == pytest.approx(1.7e22, rel=0.05)
    assert (before - after) / before == pytest.approx(0.17, abs=0.01)


@given(st.sampled_from(PARAMETRIC), st.floats(1e19, 1e26), st.floats(0, 1e15), st.floats(0.7, 1.4).filter(lambda x: x != 1))
def test_the_cheapest_is_cheapest(law: ScalingLaw, flops: float, served: float, away: float) -> None:
    best = law.optimum(flops)
    loss = law.loss(*best)
    n, d = law.cheapest(loss, served)
    assert law.loss(n, d) == pytest.approx(loss)
    other = law.tokens_for(loss, n * away)
    assert 6 * n * d + 2 * n * served <= (6 * other + 2 * served) * n * away * (1 + 1e-9)
    assert n <= best[0] * 1.001
    if served == 0:
        assert (n, d) == pytest.approx(best, rel=1e-2)
