from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.align.chat import Sample
from herdbook.align.packing import collate, pack
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.train.losses import IGNORED, HeadLoss

SAMPLES = st.lists(
    st.lists(st.tuples(st.integers(0, 31), st.booleans()), min_size=1, max_size=12).map(
        lambda pairs: Sample([token for token, _ in pairs], [learn for _, learn in pairs])
    ),
    min_size=1,
    max_size=8,
)


@given(st.lists(st.integers(1, 50), max_size=200), st.integers(0, 3))
def test_every_sample_is_in_one_row_and_no_row_overflows(lengths: list[int], seed: int) -> None:
    rows = pack(lengths, 50, seed=seed)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[number] for number in row) <= 50 for row in rows)
    # Best fit: no two rows could be one, so more than half of what is computed on is text.
    assert len(rows) <= max(1, 2 * sum(lengths) / 50 + 1)


def test_the_order_is_the_seeds() -> None:
    lengths = [number % 30 + 1 for number in range(3000)]
    assert pack(lengths, 64, seed=1) == pack(lengths, 64, seed=1)
    assert pack(lengths, 64, seed=1) != pack(lengths, 64, seed=2)
    rows = pack(lengths, 64, seed=1)
    assert sum(lengths) / (64 * len(rows)) > 0.95


def test_a_sample_longer_than_a_row_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="longer than a row"):
        pack([3, 9], 8, seed=0)


@given(SAMPLES)
def test_targets_are_exactly_the_trained_tokens(samples: list[Sample]) -> None:
    width = sum(len(sample.tokens) for sample in samples) + 3
    row = collate([samples], width, pad_id=1)
    assert {tensor.shape for tensor in row.values()} == {(1, width - 1)}
    expected = [
        token for sample in samples for token, learn in list(zip(sample.tokens, sample.trained, strict=True))[1:] if learn
    ]
    targets_T = row["targets"][0]
    assert targets_T[targets_T != IGNORED].tolist() == expected
    for place in (targets_T != IGNORED).nonzero().flatten().tolist():
        assert row["tokens"][0, place + 1] == targets_T[place]
        assert row["documents"][0, place + 1] == row["documents"][0, place]


@given(SAMPLES)
@settings(max_examples=25, deadline=None)
def test_the_loss_of_packed_samples_is_the_sum_of_their_own(samples: list[Sample]) -> None:
    model = Decoder(ModelConfig(vocab_size=32, d_model=16, n_layers=2, n_heads=2, context=128))
    model.init_weights(torch.Generator().manual_seed(0))

    def loss(rows: list[list[Sample]], width: int) -> float:
        batch = collate(rows, width, pad_id=1)
        x_BTD = model.hidden(batch["tokens"], documents_BT=batch["documents"])
        return float(HeadLoss()(model, x_BTD, batch["targets"])[0].sum().detach())

    packed = loss([samples], sum(len(sample.tokens) for sample in samples) + 2)
    alone = sum(loss([[sample]], len(sample.tokens) + 1) for sample in samples)
    assert packed == pytest.approx(alone, rel=1e-4, abs=1e-4)
