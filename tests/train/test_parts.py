"""Schedule, optimizer, configs, metrics, batching, machine: the parts of the loop one by one."""

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
from herdbook.train.config import HOW, LoopConfig, TrainConfig, parse_warmup
from herdbook.train.machine import Machine, decide
from herdbook.train.metrics import MetricsLog, read_metrics
from herdbook.train.optim import build_optimizer, finish_gradients, parameter_groups
from herdbook.train.progress import bits_per_byte, progress_line
from herdbook.train.schedule import learning_rate, warmup_steps


def rates(schedule: str, steps: int, warmup: int, **config: Any) -> list[float]:
    cfg = LoopConfig(lr=1.0, min_lr_ratio=0.1, schedule=schedule, **config)
    return [learning_rate(step, cfg, steps=steps, warmup=warmup) for step in range(1, steps + 1)]


@pytest.mark.parametrize(
    ("schedule", "middle", "last"), [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1.0, 1.0), ("wsd", 1.0, 0.1)]
)
def test_schedules_rise_and_fall_as_they_are_named(schedule: str, middle: float, last: float) -> None:
    values = rates(schedule, steps=110, warmup=10)
    assert values[:10] == pytest.approx([number / 10 for number in range(1, 11)])
    assert values[59] == pytest.approx(middle)
    assert values[-1] == pytest.approx(last)


def test_cosine_is_a_cosine() -> None:
    values = rates("cosine", steps=100, warmup=0)
    for step in (1, 25, 75, 100):
        assert values[step - 1] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * step / 100)) / 2)


def test_wsd_falls_linearly_over_its_last_part() -> None:
    values = rates("wsd", steps=100, warmup=0, decay_share=0.2)
    assert values[79] == 1.0
    assert values[89] == pytest.approx(0.55)


@given(
    st.sampled_from(["cosine", "linear", "constant", "wsd"]),
    st.integers(1, 300),
    st.floats(0, 0.9),
    st.floats(0, 1),
)
def test_a_rate_never_leaves_its_bounds_and_never_rises_after_warmup(
    schedule: str, steps: int, warmup: float, ratio: float
) -> None:
    cfg = LoopConfig(lr=3e-3, min_lr_ratio=ratio, schedule=schedule, warmup=warmup)
    rise = warmup_steps(cfg, steps, 64)
    values = [learning_rate(step, cfg, steps=steps, warmup=rise) for step in range(1, steps + 1)]
    assert all(0 <= value <= 3e-3 * (1 + 1e-12) for value in values)
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in zip(values[rise:], values[rise + 1 :], strict=False))


def test_warmup_is_a_share_or_tokens() -> None:
    assert parse_warmup("2%") == parse_warmup(0.02) == parse_warmup("0.02") == 0.02
    assert parse_warmup("500K") == parse_warmup(500_000) == 500_000
    assert warmup_steps(LoopConfig(warmup="10%"), 50, 64) == 5
    assert warmup_steps(LoopConfig(warmup=640), 50, 64) == 10
    with pytest.raises(UserError, match="whole run has 5"):
        warmup_steps(LoopConfig(warmup=640), 5, 64)
    with pytest.raises(ValidationError, match="neither a share"):
        LoopConfig(warmup="quick")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens_per_step": 1000, "context": 256}, "multiple of context"),
        ({"tokens": "1M", "warmup": "2M"}, "longer than the run"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"micro_batch": 0}, "at least 1"),
        ({"micro_batch": "some"}, "not a number"),
        ({"schedule": "cosin"}, "cosine"),
        ({"tokns": 1}, "tokns"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig(**settings)


def test_steps_cover_the_budget() -> None:
    assert TrainConfig(tokens="1M", tokens_per_step=4096).steps == 245


def test_identity_leaves_out_how_the_work_is_done() -> None:
    cfg = TrainConfig()
    assert set(TrainConfig.model_fields) >= HOW
    assert cfg.identity() == TrainConfig(threads=1, compile=True, checkpoint_every=3, micro_batch=2).identity()
    assert cfg.identity() != TrainConfig(seed=1).identity()


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
    kept = [parameter for group in build_optimizer(model, LoopConfig()).param_groups for parameter in group["params"]]
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
        return micro_batch_size(wanted, sequences=12, context=16, model=toy.SHAPE, device="cpu", dtype=torch.float32)

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
