"""Any of the quantities gives the others, by the same ties whichever way they are gone through."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdbook.errors import UserError
from herdbook.facts.devices import find_device
from herdbook.facts.models import find_model
from herdbook.plan.answer import answer
from herdbook.plan.laws import LAWS
from herdbook.plan.query import TrainQuery, read_words
from herdbook.plan.solve import Quantity, relations, solve

RATE, PRICE = 1.4e14, 2.0
FULL = {"params": 7e9, "tokens": 2e12, "flops": 8.4e22, "gpu_hours": 8.4e22 / 3600 / RATE, "gpus": 512.0}
FULL |= {"time": FULL["gpu_hours"] * 3600 / 512, "budget": FULL["gpu_hours"] * PRICE}
TIES = relations(rate=RATE, price=PRICE)
# Three independent ones: of N, D, C at most two; of C, H and money one, counted with the former; of H, G, T at most two.
TRIPLES = [
    three
    for three in combinations(FULL, 3)
    if not {"params", "tokens"}.isdisjoint(three)
    and len({"params", "tokens", "flops", "gpu_hours", "budget"} & set(three)) == 2
    and not {"gpus", "time"}.isdisjoint(three)
]


@pytest.mark.parametrize("names", TRIPLES, ids="-".join)
def test_three_give_all(names: tuple[str, ...]) -> None:
    known = {name: Quantity(FULL[name], "given") for name in names}
    found = solve(known, TIES, LAWS["epoch"], rate_known=True, price_known=True)
    assert {name: quantity.value for name, quantity in found.items()} == pytest.approx(FULL)
    assert all(quantity.given == (name in names) for name, quantity in found.items())


@given(st.sampled_from(sorted(LAWS)), st.sampled_from(["params", "tokens", "flops"]), st.floats(1e18, 1e26))
def test_a_law_closes_the_plan_alike_from_all_sides(law: str, name: str, flops: float) -> None:
    parameters, tokens = LAWS[law].optimum(flops)
    value = {"params": parameters, "tokens": tokens, "flops": flops}[name]
    found = solve({name: Quantity(value, "given")}, relations(), LAWS[law], rate_known=False, price_known=False)
    got = [found[key].value for key in ("params", "tokens", "flops")]
    assert got == pytest.approx([parameters, tokens, flops], rel=1e-5)


def test_a_run_takes_whole_devices() -> None:
    found = answer(read_words(TrainQuery, ["params=7B", "tokens=140B", "time=7d"]), device=find_device("a100-80gb")).quantities
    assert found["gpus"].value == 70
    assert found["time"].value < 7 * 86400
    assert found["time"].value * 70 / 3600 == pytest.approx(found["gpu_hours"].value)


def test_llama_7bs_published_cost() -> None:
    """Touvron et al. 2023, Table 15: 82,432 GPU hours of 400 W give 36 MWh and 14 t of CO2."""
    query = read_words(TrainQuery, ["gpu-hours=82432"])
    found = answer(query, model=find_model("llama-7b").config, device=find_device("a100-80gb")).quantities
    assert found["tokens"].value == pytest.approx(1e12, rel=0.03)
    assert found["energy"].value / 1000 == pytest.approx(36, rel=0.03)
    assert found["carbon"].value / 1000 == pytest.approx(14, rel=0.03)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "nothing to plan from"),
        (["gpus=8"], "without a device"),
        (["gpus=8", "time=7d"], "without a device"),
        (["budget=10K"], "without a device"),
        (["gpus=8", "device=a100-80gb"], "add time="),
        (["time=7d", "device=a100-80gb"], "add gpus="),
        (["budget=100", "device=t4"], "no price"),
        (["params=7B", "tokens=2T", "flops=1e20"], "does not agree"),
        (["params=7B", "tokens=20B", "multiple=5"], "does not agree"),
        (["gpus=8", "time=7d", "gpu-hours=5", "device=a100-80gb"], "does not agree"),
        (["params=1B", "serve-tokens=1T", "serve-mfu=0.1"], "add mfu"),
    ],
    ids=" ".join,
)
def test_too_little_and_too_much(words: list[str], says: str) -> None:
    query = read_words(TrainQuery, words)
    with pytest.raises(UserError, match=says):
        answer(query, device=find_device(query.device) if query.device else None)


def test_this_machine_is_one_device() -> None:
    """Time alone settles what is computed here; elsewhere it takes a number of devices too."""
    found = answer(read_words(TrainQuery, ["time=20min", "device=here", "mfu=0.5"]), device=find_device("a100-80gb")).quantities
    assert found["gpus"].value == 1
    assert found["flops"].value == pytest.approx(0.5 * 312e12 * 1200)


def test_words_that_are_wrong_are_named_together() -> None:
    with pytest.raises(UserError) as caught:
        read_words(TrainQuery, ["parms=7B", "gpu-hours=-1", "law=approach4"])
    assert all(word in str(caught.value) for word in ("did you mean params", "gpu_hours", "approach4"))
    with pytest.raises(UserError, match="twice"):
        read_words(TrainQuery, ["gpu-hours=1", "gpu_hours=2"])


def test_serving_makes_smaller_models_worth_it() -> None:
    found = answer(read_words(TrainQuery, ["params=13B", "serve-tokens=2T", "law=approach3"])).life
    plan, alone, together = found
    assert plan.parameters == pytest.approx(alone.parameters, rel=1e-2)
    assert together.parameters == pytest.approx(7e9, rel=0.03)
    assert together.train_flops + together.serve_flops < plan.train_flops + plan.serve_flops
    # Serving that uses the device a tenth as well counts ten times.
    worse = answer(read_words(TrainQuery, ["params=13B", "serve-tokens=2T", "law=approach3", "mfu=0.4", "serve-mfu=0.04"])).life
    assert worse[2].parameters < together.parameters


def test_a_measured_utilisation_goes_before_an_assumed_one_and_a_stated_one_before_both() -> None:
    device, measured = find_device("a100-80gb"), Quantity(0.2, "measured in runs/x")
    plain, stated = read_words(TrainQuery, ["params=1B"]), read_words(TrainQuery, ["params=1B", "mfu=50%"])
    rates = [answer(query, device=device, mfu=mfu).quantities["rate"].value / 312e12
             for query, mfu in ((plain, None), (plain, measured), (stated, measured))]  # fmt: skip
    assert rates == pytest.approx([0.45, 0.2, 0.5])


def test_every_number_says_how() -> None:
    query = read_words(TrainQuery, ["params=7B", "serve-tokens=1T", "device=a100-80gb", "gpus=8"])
    facts = answer(query, device=find_device("a100-80gb")).as_dict()
    assert all(quantity["how"] for quantity in facts["plan"].values())
    assert all(law["how"] and law["source"] for law in facts["laws"].values())
    assert len(facts["layouts"]["rows"]) == 13
    assert facts["layouts"]["taken"]["title"]
