"""Settings of a run, and parts that do not compile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from herdbook.console import Terminal
from herdbook.model.config import ModelConfig
from herdbook.model.decoder import Decoder
from herdbook.train import machine as machine_module
from herdbook.train.losses import HeadLoss
from herdbook.train.machine import Machine, compile_parts, settings


def test_memory_is_kept_for_the_whole_run_and_not_for_a_look_at_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving a look would give the run's memory back in the middle of it."""
    said: list[str] = []

    @contextmanager
    def keep() -> Iterator[None]:
        said.append("kept")
        yield
        said.append("given back")

    monkeypatch.setattr(machine_module, "keep_freed", keep)
    monkeypatch.setattr(machine_module, "_peak", lambda *_: 1e11)
    run = Machine("cpu", "float32", 1, False)
    with settings(run):
        assert run.peak_flops() == 1e11
        assert said == ["kept"]
    assert said == ["kept", "given back"]


@pytest.mark.parametrize("chunk", [None, 2])
def test_parts_that_fail_to_compile_run_as_before(chunk: int | None) -> None:
    """Chunked losses compile a module within, which has to be put back, too."""
    model = Decoder(ModelConfig(vocab_size=32, d_model=16, n_layers=2, n_heads=2, d_ff=32, context=8))
    head, tokens_BT = HeadLoss(chunk=chunk), torch.zeros(1, 8, dtype=torch.int64)

    def probe() -> None:
        raise RuntimeError("no compiler today")

    def loss() -> torch.Tensor:
        return head(model, model.hidden(tokens_BT), tokens_BT)[0].sum()

    before = loss()
    assert not compile_parts([*model.blocks, head], probe, Terminal(quiet=True))
    assert all(module._compiled_call_impl is None for part in (*model.blocks, head) for module in part.modules())
    assert torch.equal(loss(), before)
