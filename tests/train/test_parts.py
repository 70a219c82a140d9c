"""Configs, metrics, batching, machine: the parts of the loop one by one."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from herdbook.errors import UserError
from herdbook.train import machine as machine_module
from herdbook.train.batching import cut, micro_batch_size
from herdbook.train.config import HOW, LoopConfig, TrainConfig
from herdbook.train.machine import Machine, decide
from herdbook.train.metrics import MetricsLog, read_metrics
from herdbook.train.progress import bits_per_byte, progress_line


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens_per_step": 1000, "context": 256}, "multiple of context"),
        ({"tokens": "1M", "warmup": "2M"}, "longer than the run"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"warmup": "quick"}, "neither a share"),
        ({"micro_batch": 0}, "at least 1"),
        ({"micro_batch": "some"}, "not a number"),
        ({"schedule": "cosin"}, "cosine"),
        ({"tokns": 1}, "tokns"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig(**settings)


def test_identity_leaves_out_how_the_work_is_done() -> None:
    cfg = TrainConfig()
    assert set(TrainConfig.model_fields) >= HOW
    assert cfg.identity() == TrainConfig(threads=1, compile=True, checkpoint_every=3, micro_batch=2).identity()
    assert cfg.identity() != TrainConfig(seed=1).identity()


def test_metrics_are_cut_back_and_torn_lines_dropped(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    for step in range(1, 6):
        log.write({"step": step, "loss": 1 / step})
    log.close()
    with log.path.open("ab") as stream:
        stream.write(b'{"step": 6, "lo')
    assert [row["step"] for row in read_metrics(log.path)] == [1, 2, 3, 4, 5]
    log = MetricsLog(tmp_path, 3)
    log.write({"step": 4, "loss": 0.25})
    log.sync()
    log.close()
    assert read_metrics(log.path) == [{"step": step, "loss": 1 / step} for step in range(1, 5)]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_micro_batches_fit_the_memory(toy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def size(free: int, wanted: Any = "auto") -> int:
        monkeypatch.setattr("herdbook.train.batching.free_memory", lambda device: free)
        return micro_batch_size(
            wanted, sequences=12, context=16, model=toy.SHAPE, device="cpu", dtype=torch.float32, eager=False
        )

    assert size(1 << 40) == 12
    assert size(0) == 1
    sizes = [size(1 << bits) for bits in range(10, 30)]
    assert sizes == sorted(sizes)
    assert all(12 % value == 0 for value in sizes)
    assert size(0, 4) == 4
    with pytest.raises(UserError, match="micro-batches of 5"):
        size(0, 5)


@given(st.integers(1, 20), st.integers(1, 20))
def test_cutting_loses_nothing(rows: int, size: int) -> None:
    tensors = {"a": torch.arange(rows * 3).reshape(rows, 3), "b": torch.arange(rows)}
    parts = cut(tensors, size)
    for name, whole in tensors.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), whole)


def test_auto_decides_once_and_the_checkpoint_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "_peak", lambda *_: 1e11)
    monkeypatch.setattr(machine_module, "compiler_at_hand", lambda device: True)
    short, long = decide(LoopConfig(device="cpu"), flops=1e11), decide(LoopConfig(device="cpu"), flops=1e13)
    assert (short.compiled, long.compiled) == (False, True)
    assert decide(LoopConfig(device="cpu"), flops=1e11, before=long.as_dict()) == long
    assert decide(LoopConfig(device="cpu", threads=3, precision="float32"), flops=1, before=long.as_dict()) == Machine(
        "cpu", "float32", 3, True
    )
    monkeypatch.setattr(machine_module, "compiler_at_hand", lambda device: False)
    assert not decide(LoopConfig(device="cpu"), flops=1e13).compiled


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        decide(LoopConfig(device="cuda"), flops=1)


def test_settings_are_put_back() -> None:
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    with machine_module.settings(Machine("cpu", "float32", 2, False)):
        assert torch.get_num_threads() == 2
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before


def test_the_live_line() -> None:
    assert bits_per_byte(math.log(2) * 3, 3) == pytest.approx(1)
    line = progress_line(step=120, steps=244, loss=4.2134, bytes_per_token=3.3, tokens_per_s=15200, mfu=0.52, left_s=65)
    assert line == "step 120/244  loss 4.213  1.842 bits/byte  15.2K tokens/s  52% of peak  1m05s left"
