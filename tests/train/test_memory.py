"""Recomputed activations, 8 bits, and memory that is kept."""

from __future__ import annotations

import subprocess
import sys
import types
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from herdbook.errors import UserError
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.train.losses import HeadLoss
from herdbook.train.memory import keep_freed, recompute, to_float8

SHAPE = ModelConfig(vocab_size=96, d_model=32, n_layers=3, n_heads=4, d_ff=64, context=16)


def gradients(model: Decoder, documents: bool = False) -> tuple[float, dict[str, Tensor]]:
    torch.manual_seed(1)  # dropout, too
    tokens_BT = torch.randint(0, 96, (2, 17))
    documents_BT = torch.arange(16).expand(2, -1) // 5 if documents else None
    model.zero_grad()
    loss = HeadLoss()(model, model.hidden(tokens_BT[:, :-1], documents_BT=documents_BT), tokens_BT[:, 1:])[0].sum()
    loss.backward()
    return loss.item(), {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("shape", [{}, {"dropout": 0.2}, {"positions": "alibi", "rope_theta": 10_000.0}, {"n_kv_heads": 1}])
@pytest.mark.parametrize("compiled", [False, True])
def test_recomputed_gradients_are_equal(shape: dict[str, object], compiled: bool) -> None:
    torch.manual_seed(0)
    model = Decoder(SHAPE.model_copy(update=shape))
    names = list(model.state_dict())
    kept = gradients(model, documents=True)
    recompute(model, "blocks")
    if compiled and not shape.get("dropout"):  # compiled dropout draws other numbers than torch's own
        for block in model.blocks:
            block.compile(backend="aot_eager")
    again = gradients(model, documents=True)
    assert list(model.state_dict()) == names
    assert again[0] == pytest.approx(kept[0], rel=1e-6)
    for name, value in kept[1].items():
        torch.testing.assert_close(again[1][name], value, atol=1e-6, rtol=1e-5)


def test_recomputing_keeps_only_what_goes_into_a_block() -> None:
    def kept(which: str) -> int:
        model = Decoder(SHAPE)
        recompute(model, which)  # type: ignore[arg-type]
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.numel()), x)[1], lambda x: x):
            model.hidden(torch.zeros(4, 16, dtype=torch.int64))
        return sum(sizes)

    assert kept("blocks") < kept("none") / 10


def test_nothing_is_recomputed_without_gradients() -> None:
    model = Decoder(SHAPE)
    recompute(model, "blocks")
    with torch.no_grad(), mock.patch("herdbook.train.memory.checkpoint", side_effect=AssertionError):
        model(torch.zeros(1, 4, dtype=torch.int64))


def test_float8_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Decoder(SHAPE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="Ada or Hopper"):
        to_float8(model)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(UserError, match="Ada or Hopper"):
        to_float8(model)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    with mock.patch("importlib.util.find_spec", return_value=None), pytest.raises(UserError, match="torchao"):
        to_float8(model)


def test_float8_is_for_the_linear_layers_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    turned: list[nn.Module] = []
    library = types.ModuleType("torchao.float8")
    library.convert_to_float8_training = turned.append  # type: ignore[attr-defined]
    model = Decoder(SHAPE)
    with mock.patch("importlib.util.find_spec", return_value=object()):
        with mock.patch.dict(sys.modules, {"torchao": types.ModuleType("torchao"), "torchao.float8": library}):
            to_float8(model)
        assert turned == list(model.blocks)
        with pytest.raises(UserError, match="multiples of 16"):
            to_float8(Decoder(SHAPE.model_copy(update={"d_ff": 72})))


COUNT = """
import resource, torch
from herdbook.train.memory import keep_freed
torch.set_num_threads(1)
def faults():
    for _ in range(5):
        torch.ones(20_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(20_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20
usual = faults()
with keep_freed():
    within, kept = faults(), resident()
print(usual, within, kept - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="another C library")
def test_freed_memory_is_taken_again_without_page_faults_and_given_back_at_last() -> None:
    """In a process of its own: three times 80 MB."""
    done = subprocess.run([sys.executable, "-c", COUNT], check=True, capture_output=True, text=True)
    usual, within, given_back_mb = map(int, done.stdout.split())
    assert within < usual / 10
    assert given_back_mb > 60


def test_another_c_library_is_left_alone() -> None:
    with mock.patch("ctypes.CDLL", return_value=types.SimpleNamespace()), keep_freed():
        assert torch.ones(3).sum() == 3
