"""Cross-entropy and z-loss, whole and in chunks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.train.losses import IGNORED, HeadLoss, sum_loss

KINDS = {
    "tied": {},
    "own head with a bias": {"tied": False, "head_bias": True},
    "narrow embedding": {"embed_dim": 8},
}  # fmt: skip


def decoder(kind: str, vocabulary: int = 50) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(ModelConfig(vocab_size=vocabulary, d_model=16, n_layers=1, n_heads=2, d_ff=32, context=16, **KINDS[kind]))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5).add_(torch.randn(weight.shape) * 0.1)  # losses that differ between positions
    return model


def inputs(rows: int = 3, ignored: float = 0.3, vocabulary: int = 50) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_BTD = torch.randn(rows, 7, 16, generator=generator)
    targets_BT = torch.randint(0, vocabulary, (rows, 7), generator=generator)
    return x_BTD, targets_BT.masked_fill(torch.rand(rows, 7, generator=generator) < ignored, IGNORED)


def gradients(model: Decoder, loss: HeadLoss, x: Tensor, targets: Tensor, times: float = 1.0) -> dict[str, Tensor]:
    """Of `times` the sum of all losses, of whatever it depends on; with the losses themselves."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    rows, z = loss(model, x, targets)
    (times * (rows.sum() + z)).backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    assert x.grad is not None
    return {**found, "x": x.grad, "rows": rows.detach(), "z": z.detach()}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_z_are_what_their_definitions_say(kind: str) -> None:
    model, (x_BTD, targets_BT) = decoder(kind), inputs()
    rows_B, z = HeadLoss(z_loss=0.5)(model, x_BTD, targets_BT)
    wanted, squares = [0.0] * 3, 0.0
    for row, column in (targets_BT != IGNORED).nonzero().tolist():
        logits = model.head(x_BTD)[row, column].double()
        log_sum = math.log(logits.exp().sum().item())
        wanted[row] += log_sum - logits[targets_BT[row, column]].item()
        squares += log_sum**2
    assert rows_B.tolist() == pytest.approx(wanted, rel=1e-4)
    assert z.item() == pytest.approx(0.5 * squares, rel=1e-4)


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(sorted(KINDS)), chunk=st.integers(1, 25), z_loss=st.sampled_from([0.0, 0.1]),
    ignored=st.sampled_from([0.0, 0.4, 1.0]), times=st.sampled_from([1.0, 0.25]), flat=st.booleans(),
)  # fmt: skip
def test_chunks_give_the_losses_and_gradients_of_the_whole(
    kind: str, chunk: int, z_loss: float, ignored: float, times: float, flat: bool
) -> None:
    model, (x, targets) = decoder(kind), inputs(ignored=ignored)
    if flat:
        x, targets = x.flatten(0, 1), targets.flatten()
    whole = gradients(model, HeadLoss(z_loss), x, targets, times)
    chunked = gradients(model, HeadLoss(z_loss, chunk), x, targets, times)
    assert whole.keys() == chunked.keys()
    for name, value in whole.items():
        torch.testing.assert_close(chunked[name], value, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_chunks_in_16_bits_are_as_near_to_float32_as_the_whole_is() -> None:
    model, (x_BTD, targets_BT) = decoder("tied"), inputs(rows=20)
    exact = gradients(model, HeadLoss(), x_BTD, targets_BT)
    errors = []
    for chunk in (None, 32):
        rough = gradients(model, HeadLoss(chunk=chunk), x_BTD.bfloat16(), targets_BT)
        assert rough["rows"].dtype == rough["embed.weight"].dtype == torch.float32
        errors.append(
            [((rough[name].float() - exact[name]).norm() / exact[name].norm()).item() for name in exact if name != "z"]
        )
    assert all(chunked < 1.3 * whole + 1e-4 for whole, chunked in zip(*errors, strict=True))


def test_chunks_refuse_what_their_gradients_cannot_answer() -> None:
    """Gradients are made on the way forward, when all positions still count the same."""
    model, (x_BTD, targets_BT) = decoder("tied"), inputs()
    rows_B, _ = HeadLoss(chunk=4)(model, x_BTD.requires_grad_(), targets_BT)
    with pytest.raises(ValueError, match="plain sum"):
        (rows_B * torch.tensor([1.0, 2.0, 1.0])).sum().backward()
    rows_B, z = HeadLoss(z_loss=0.1, chunk=4)(model, x_BTD, targets_BT)
    with pytest.raises(ValueError, match="plain sum"):
        (rows_B.sum() + 2 * z).backward()
    rows_B, _ = HeadLoss(chunk=4)(model, x_BTD, targets_BT)
    rows_B.sum().backward()  # without a z-loss nobody has to add it


def test_chunks_without_gradients_are_the_same_losses() -> None:
    model, (x_BTD, targets_BT) = decoder("own head with a bias"), inputs()
    with torch.no_grad():
        (rows_B, z), (wanted_B, wanted_z) = (HeadLoss(0.1, chunk)(model, x_BTD, targets_BT) for chunk in (4, None))
    torch.testing.assert_close(rows_B, wanted_B)
    torch.testing.assert_close(z, wanted_z)


def test_logits_never_exist_whole_in_chunks() -> None:
    model, (x_BTD, targets_BT) = decoder("tied", vocabulary=4096), inputs(rows=64, vocabulary=4096)

    def largest(loss: HeadLoss) -> int:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            gradients(model, loss, x_BTD, targets_BT)
        return max(event.cpu_memory_usage for event in profile.events())  # type: ignore[union-attr]

    logits = targets_BT.numel() * 4096 * 4
    assert largest(HeadLoss()) >= logits
    assert largest(HeadLoss(chunk=32)) < logits / 4


def test_compiled_chunks_are_the_same() -> None:
    model, (x_BTD, targets_BT) = decoder("tied"), inputs(rows=4)
    plain, compiled = HeadLoss(0.1, 8), HeadLoss(0.1, 8)
    compiled.compile(backend="aot_eager")
    wanted, found = (gradients(model, loss, x_BTD, targets_BT) for loss in (plain, compiled))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


def test_the_sum_counts_what_is_trained() -> None:
    model = decoder("tied")
    generator = torch.Generator().manual_seed(2)
    tokens_BT = torch.randint(0, 50, (2, 9), generator=generator)
    targets_BT = tokens_BT[:, 1:].clone()
    targets_BT[0, :3] = IGNORED
    loss, count = sum_loss(model, tokens_BT[:, :-1], targets_BT)
    logits_BTV = model(tokens_BT[:, :-1])
    assert count == 13
    assert loss == pytest.approx(
        F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="sum").item(), rel=1e-5
    )
