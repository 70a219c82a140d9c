"""The memory model against torch: what autograd saves, counted by its own hooks, for every family of the catalogue."""

from __future__ import annotations

import pytest
import torch

from herdbook.facts.models import Preset, list_models
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.plan.memory import PRECISIONS, activation_bytes, block_bytes, cast_bytes

TINY = [preset for preset in list_models() if preset.tiny]
TOLERANCE = 0.02
B, T, V = 2, 128, 1024
KINDS = {"bf16": torch.bfloat16, "fp32": torch.float32}


def saved_bytes(shape: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of all tensors that the forward pass keeps for the backward pass, each storage once, parameters apart."""
    network = Decoder(shape)
    network.compute_dtype = dtype
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    tokens = torch.randint(0, V, (B, T + 1))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        torch.nn.functional.cross_entropy(network(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("preset", TINY, ids=lambda preset: preset.name)
def test_activations_are_what_autograd_saves(preset: Preset, dtype: str) -> None:
    shape = preset.config.model_copy(update={"vocab_size": V})
    size = KINDS[dtype].itemsize
    counted = activation_bytes(shape, B * T, size, context=T, eager=True) + cast_bytes(shape, size)
    counted -= 4 * V * B * T  # the gradient of the logits, which comes with the backward pass
    assert counted == pytest.approx(saved_bytes(shape, KINDS[dtype]), rel=TOLERANCE)


def test_korthikantis_block_to_the_byte() -> None:
    """arXiv:2205.05198, equation 2: s·b·h·(34 + 5·a·s/h) bytes a layer, with dropout, in 16 bits; equation 6 without scores."""
    gpt = ModelConfig(
        vocab_size=51200, d_model=1024, n_layers=1, n_heads=16, context=2048, positions="learned", activation="gelu",
        norm="layernorm_low_precision", bias=True, dropout=0.1,
    )  # fmt: skip
    assert block_bytes(gpt, 2, recompute="none", context=2048) == 34 * 1024 + 5 * 16 * 2048
    assert block_bytes(gpt, 2, recompute="selective", context=2048) == 34 * 1024 + 4 * 16


def test_recomputation_keeps_less() -> None:
    shape = ModelConfig(vocab_size=V, d_model=256, n_layers=12, n_heads=4, context=512)
    none, selective, full = (activation_bytes(shape, 512, recompute=kind) for kind in ("none", "selective", "full"))
    assert none - selective == 512 * 12 * 4 * (2 * 512 - 4)
    block = block_bytes(shape, 2, recompute="selective", context=512)
    assert selective - full == 512 * (11 * block - 12 * 2 * 256)


def test_eager_keeps_more_than_fused() -> None:
    for preset in TINY:
        assert activation_bytes(preset.config, 512, eager=True) >= activation_bytes(preset.config, 512)


def test_state() -> None:
    """16 bytes a parameter, as ZeRO reckons, in mixed precision, of either kind, and in float32."""
    assert {name: precision.state for name, precision in PRECISIONS.items()} == {"mixed": 16, "zero": 16, "fp32": 16, "bf16": 8}
    shape = ModelConfig(vocab_size=V)
    assert cast_bytes(shape) == 2 * shape.parameters()  # a tied table is the head's matrix
    assert cast_bytes(shape, 4) == 0
