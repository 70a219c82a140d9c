"""AWQ: what is folded changes nothing, and serves the inputs that are large."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Block, Decoder
from herdbook.model.quantized import Form
from herdbook.quantize.awq import fold, folds
from herdbook.quantize.gptq import objective
from herdbook.quantize.grid import quantized

NORM = {"norm": "layernorm", "bias": True}
# What decides where scale can go: the kind of block, norm, heads, activation.
SHAPES: dict[str, tuple[dict[str, Any], int]] = {
    "llama": ({"n_kv_heads": 2}, 4),
    "multi-query, relu": ({"n_kv_heads": 1, "activation": "relu", **NORM}, 4),
    "gelu": ({"activation": "gelu", **NORM}, 3),
    "clipped": ({"clip_qkv": 2.0}, 3),
    "one norm": ({"block": "parallel_one_norm", "activation": "gelu", **NORM}, 2),
    "two norms": ({"block": "parallel_two_norms", "n_kv_heads": 2, "activation": "gelu", **NORM}, 3),
    "norms of query and key": ({"qk_norm": True}, 4),
    "norms behind": ({"norm_place": "post", "activation": "relu", **NORM}, 2),
}


def make(shape: dict[str, Any]) -> Decoder:
    base = {"vocab_size": 64, "d_model": 64, "n_layers": 2, "n_heads": 4, "context": 32, "init_std": 0.2}
    model = Decoder(ModelConfig.model_validate({**base, **shape}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_the_function_stays_as_it_is(name: str) -> None:
    shape, places = SHAPES[name]
    model, tokens = make(shape), torch.arange(24).view(2, 12)
    before = model(tokens)
    generator, widest = torch.Generator().manual_seed(1), 1.0
    for block in model.blocks:
        assert isinstance(block, Block)
        assert len(folds(block)) == places
        for place in folds(block):
            old = place.readers[0].weight.clone()
            x = torch.randn(100, old.shape[1], generator=generator) * torch.rand(old.shape[1], generator=generator) * 10
            scale = fold(place, x.T @ x / 100, Form(4, 32, True))
            torch.testing.assert_close(place.readers[0].weight, old * scale)
            widest = max(widest, float(scale.max() / scale.min()))
    assert widest > 1.3  # something was moved
    torch.testing.assert_close(model(tokens), before, atol=2e-5 * float(before.abs().max()), rtol=0)


@torch.no_grad()
def test_scales_serve_what_is_large() -> None:
    block = make({}).blocks[0]
    assert isinstance(block, Block)
    size = torch.ones(64)
    size[:4] = 30.0
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(0)) * size
    gram, form, place = x.T @ x / 500, Form(4, 32, True), folds(block)[0]
    before = torch.cat([reader.weight.clone() for reader in place.readers])
    plain = objective(before, quantized(before, form), gram).sum()
    scale = fold(place, gram, form)
    after = torch.cat([reader.weight for reader in place.readers])
    folded = objective(after, quantized(after, form), gram / scale / scale[:, None]).sum()
    assert folded < 0.7 * plain
    assert float(scale[:4].min()) > float(scale[4:].max())
