"""The order of q and k: the same logits in either, and the way back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from herdbook.interop.rows import to_halves, to_interleaved, turned_heads
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder


def test_the_order_by_example() -> None:
    two_heads = torch.tensor([0, 1, 2, 3, 10, 11, 12, 13])
    assert to_interleaved(two_heads, 2).tolist() == [0, 2, 1, 3, 10, 12, 11, 13]
    assert to_halves(torch.tensor([0, 2, 1, 3, 10, 12, 11, 13]), 2).tolist() == two_heads.tolist()


@given(heads=st.integers(1, 5), pairs=st.integers(1, 9), columns=st.lists(st.integers(1, 4), max_size=2))
def test_each_undoes_the_other(heads: int, pairs: int, columns: list[int]) -> None:
    rows = torch.randn(heads * 2 * pairs, *columns)
    assert torch.equal(to_halves(to_interleaved(rows, heads), heads), rows)
    assert torch.equal(to_interleaved(to_halves(rows, heads), heads), rows)
    assert to_halves(rows, heads).shape == rows.shape


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_the_reordered_decoder_gives_the_same_logits(kv_heads: int, bias: bool) -> None:
    shape = {"vocab_size": 96, "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": kv_heads, "bias": bias}
    model = Decoder(ModelConfig.model_validate(shape)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)) * 0.2)
    other = Decoder(model.cfg.model_copy(update={"rope_interleaved": True})).eval()
    changed = 0
    for name, weight in model.state_dict().items():
        heads = turned_heads(name, model.cfg)
        changed += heads is not None
        other.state_dict()[name].copy_(weight if heads is None else to_interleaved(weight, heads))
    assert changed == 2 * 2 * (2 if bias else 1)
    tokens = torch.randint(96, (2, 24))
    with torch.inference_mode():
        assert (model(tokens) - other(tokens)).abs().max() < 1e-5


@pytest.mark.parametrize(("rows", "heads"), [(6, 4), (12, 4), (8, 0), (8, -1)])
def test_rows_that_make_no_heads(rows: int, heads: int) -> None:
    for reorder in (to_halves, to_interleaved):
        with pytest.raises(ValueError, match="do not make"):
            reorder(torch.ones(rows, 2), heads)
