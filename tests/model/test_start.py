"""How weights start, by each rule."""

from __future__ import annotations

import math

import pytest
import torch

from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.model.start import Start

SHAPE = {"vocab_size": 512, "d_model": 256, "n_heads": 4, "n_layers": 8, "d_ff": 1024, "activation": "gelu", "bias": True,
         "norm": "layernorm", "positions": "learned"}  # fmt: skip
# Rule → spread of a matrix of 256 inputs, of the attention's output, and of the feed-forward part's, which has 1,024 inputs.
SPREADS: dict[Start, tuple[float, float, float]] = {
    "normal": (0.02, 0.02 / 4, 0.02 / 4),
    "small": (math.sqrt(2 / (5 * 256)), 2 / (8 * 16), 2 / (8 * 16)),
    "kaiming": (math.sqrt(2 / 256), math.sqrt(2 / 256) / 4, math.sqrt(2 / 1024) / 4),
}


@pytest.mark.parametrize("start", SPREADS)
def test_spread_of_each_matrix(start: Start) -> None:
    one, two = Decoder(ModelConfig(**SHAPE)), Decoder(ModelConfig(**SHAPE))
    for model in (one, two):
        model.init_weights(torch.Generator().manual_seed(3), start)
    weights, (usual, attention, feed_forward) = dict(one.named_parameters()), SPREADS[start]
    assert all(torch.equal(weight, weights[name]) for name, weight in two.named_parameters())
    for name, weight in weights.items():
        if name.endswith("bias"):
            assert not weight.any()
        elif weight.dim() == 1:
            assert (weight == 1).all()
        else:
            wanted = attention if "attn.o." in name else feed_forward if "ff.down." in name else usual
            assert float(weight.detach().std()) == pytest.approx(wanted, rel=0.03), name
            assert abs(float(weight.detach().mean())) < wanted / 50, name
