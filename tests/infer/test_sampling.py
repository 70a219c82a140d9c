"""Drawing tokens: cuts, seeds, independence of the batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from herdbook.infer.sampling import Sampling, distribution, draw

logits = st.lists(st.floats(-20, 20), min_size=2, max_size=12).map(lambda row: torch.tensor([row]))
cuts = st.builds(
    Sampling, temperature=st.sampled_from([0.0, 1e-9, 0.5, 1.0, 3.0]), top_k=st.integers(0, 14),
    top_p=st.sampled_from([1e-6, 0.3, 0.9, 1.0]), min_p=st.sampled_from([0.0, 0.1, 1.0]),
)  # fmt: skip


@settings(deadline=None)
@given(logits, cuts)
def test_distribution_keeps_what_the_settings_say(row: torch.Tensor, sampling: Sampling) -> None:
    probabilities, ids = distribution(row, [sampling])
    kept = probabilities[0] > 0
    assert kept[0]
    assert float(probabilities.sum()) == pytest.approx(1)
    assert sorted(ids[0].tolist()) == list(range(row.shape[1]))
    assert (probabilities[0].diff() <= 1e-12).all()
    if sampling.temperature == 0:
        assert int(kept.sum()) == 1
        assert int(ids[0, 0]) == int(row.argmax())
        return
    plain = torch.softmax((row.double() - row.max()) / sampling.temperature, -1)[0].sort(descending=True).values
    if sampling.top_k:
        assert int(kept.sum()) <= sampling.top_k
        plain = plain[: sampling.top_k] / plain[: sampling.top_k].sum()
    if sampling.top_p == 1 and sampling.min_p == 0:
        torch.testing.assert_close(probabilities[0, : len(plain)], plain)
    if sampling.min_p == 0 and sampling.top_p < 1:
        count = int(kept.sum())
        assert float(plain[: count - 1].sum()) < sampling.top_p + 1e-9
    if sampling.min_p == 1:
        assert (probabilities[0][kept] == probabilities[0, 0]).all()


def test_draws_follow_the_distribution() -> None:
    row = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([draw(row[None], [Sampling()], [generator]) for _ in range(4000)])
    shares = torch.bincount(drawn.flatten(), minlength=4) / len(drawn)
    torch.testing.assert_close(shares, row.exp(), atol=0.03, rtol=0)


def test_a_rows_draws_do_not_depend_on_its_company() -> None:
    rows = torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    cut = [{"temperature": 0.0}, {"top_k": 5}, {}, {"top_p": 0.5}, {"min_p": 0.2}]
    settings_ = [Sampling.model_validate({"seed": number, **row}) for number, row in enumerate(cut)]
    together = draw(rows, settings_, [torch.Generator().manual_seed(s.seed) for s in settings_])
    alone = [draw(rows[i : i + 1], [s], [torch.Generator().manual_seed(s.seed)]) for i, s in enumerate(settings_)]
    assert together.tolist() == [int(token) for token in alone]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"min_p": 2},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"seed": -1},
        {"topk": 3},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Sampling.model_validate(wrong)
