from __future__ import annotations

from types import ModuleType

import pytest
import torch

from herdbook.train.config import LoopConfig
from herdbook.train.optim import Lion, block_matrices, build_optimizers, finish_gradients, parameter_groups


def test_vectors_do_not_decay_and_embeddings_only_if_wanted(toy: ModuleType) -> None:
    model = toy.decoder(bias=True, norm="layernorm", tied=False, positions="learned")
    tables = {model.embed.weight, model.position_embed.weight}
    for decay_embeddings in (True, False):
        decayed, spared = parameter_groups(model, LoopConfig(weight_decay=0.3, decay_embeddings=decay_embeddings))
        assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
        assert all(parameter.ndim == 2 for parameter in decayed["params"])
        assert all(parameter.ndim == 1 for parameter in set(spared["params"]) - tables)
        assert tables <= set((decayed if decay_embeddings else spared)["params"])
        assert model.unembed.weight in set(decayed["params"])
        assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


def test_frozen_parameters_are_left_alone(toy: ModuleType) -> None:
    model = toy.decoder()
    model.embed.weight.requires_grad_(False)
    kept = [parameter for group in build_optimizers(model, LoopConfig())[0].param_groups for parameter in group["params"]]
    assert model.embed.weight not in set(kept)


@pytest.mark.parametrize("clip", [0.0, 0.5, 100.0])
def test_gradients_become_those_of_the_mean_and_are_clipped(toy: ModuleType, clip: float) -> None:
    model = toy.decoder()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 30
    before = [parameter.grad.clone() for parameter in model.parameters()]
    norm = finish_gradients(model, 10, clip)
    flat = torch.cat([gradient.flatten() for gradient in before]) / 10
    assert norm == pytest.approx(flat.norm().item(), rel=1e-5)
    scale = min(1.0, clip / norm) if clip else 1.0
    after = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    torch.testing.assert_close(after, flat * scale)


def test_lion_is_its_published_program() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5, 3, generator=generator))
    ours = Lion([weight], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    w, m = weight.detach().clone(), torch.zeros(5, 3)
    for _ in range(5):
        g = torch.randn(5, 3, generator=generator)
        weight.grad = g.clone()
        ours.step()
        update = torch.sign(0.9 * m + 0.1 * g)
        w = w - 0.01 * (update + 0.1 * w)
        m = 0.99 * m + 0.01 * g
        torch.testing.assert_close(weight.detach(), w)


def test_decay_by_schedule_does_not_depend_on_the_peak_rate(toy: ModuleType) -> None:
    for lr in (1e-3, 1e-4):
        model = toy.decoder()
        before = model.blocks[0].attn.q.weight.detach().clone()
        (optimizer,) = build_optimizers(model, LoopConfig(lr=lr, weight_decay=0.01, decay_by_schedule=True))
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        torch.testing.assert_close(model.blocks[0].attn.q.weight.detach(), before * 0.99)


def test_muon_moves_the_blocks_matrices_and_adamw_the_rest(toy: ModuleType) -> None:
    model = toy.decoder(tied=False)
    muon, adamw = build_optimizers(model, LoopConfig(optimizer="muon"))
    moved = {id(weight) for group in muon.param_groups for weight in group["params"]}
    rest = {id(weight) for group in adamw.param_groups for weight in group["params"]}
    assert moved == {id(weight) for weight in block_matrices(model)} and len(moved) == 2 * 7
    assert not moved & rest and len(moved | rest) == len(list(model.parameters()))
    assert {id(model.embed.weight), id(model.unembed.weight)} <= rest


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_each_parameter_is_moved_once_and_vectors_do_not_decay(toy: ModuleType, name: str) -> None:
    model = toy.decoder(bias=True, norm="layernorm")
    groups = [group for optimizer in build_optimizers(model, LoopConfig(optimizer=name)) for group in optimizer.param_groups]
    weights = [weight for group in groups for weight in group["params"]]
    assert sorted(map(id, weights)) == sorted(map(id, model.parameters()))
    assert all((weight.ndim == 2) == (group["weight_decay"] > 0) for group in groups for weight in group["params"])
