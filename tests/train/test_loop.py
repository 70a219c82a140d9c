from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from herdbook.console import Terminal
from herdbook.errors import Interrupted, UserError
from herdbook.train.loop import open_run, step_seed
from herdbook.train.machine import Machine
from herdbook.train.metrics import read_metrics
from herdbook.train.task import MicroBatch, Setting

NUMBERS = ("step", "tokens", "loss", "lr", "grad_norm")


def curve(out: Path) -> list[tuple[Any, ...]]:
    """The numbers of a run that have to repeat, all digits of them."""
    return [tuple(row[key] for key in NUMBERS) for row in read_metrics(out / "metrics.jsonl")]


def test_a_pattern_is_learned(toy: ModuleType, tmp_path: Path) -> None:
    outcome = toy.run(tmp_path, task=toy.Counting(steps=60), model=toy.decoder())
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[0]["loss"] == pytest.approx(math.log(64), abs=0.3)
    assert outcome.final_loss < 0.5
    assert outcome.tokens == rows[-1]["tokens"] == 60 * 128
    assert [row["step"] for row in rows] == list(range(1, 61))


def test_a_run_cut_off_repeats_the_uninterrupted_one_bit_for_bit(toy: ModuleType, tmp_path: Path) -> None:
    toy.run(tmp_path / "whole", checkpoint_every=5)

    class CutOff(toy.Counting):  # type: ignore[name-defined,misc]
        def loss(self, model: Any, batch: MicroBatch) -> tuple[Tensor, int]:
            if len(read_metrics(tmp_path / "parts" / "metrics.jsonl")) == 8:
                raise RuntimeError("the power fails")
            return super().loss(model, batch)  # type: ignore[no-any-return]

    with pytest.raises(RuntimeError, match="power"):
        toy.run(tmp_path / "parts", task=CutOff(), checkpoint_every=5)
    assert (tmp_path / "parts" / "latest").read_text() == "checkpoint-000005\n"
    outcome = toy.run(tmp_path / "parts", checkpoint_every=5)
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert outcome.steps == 12


def test_how_often_checkpoints_are_written_may_change_and_changes_nothing(toy: ModuleType, tmp_path: Path) -> None:
    toy.run(tmp_path / "a", checkpoint_every=3)
    toy.run(tmp_path / "b", checkpoint_every_s=0.0001, keep_checkpoints=3)
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "b").glob("checkpoint-*")) == [
        "checkpoint-000010", "checkpoint-000011", "checkpoint-000012"]  # fmt: skip


def test_a_finished_run_run_again_does_nothing(toy: ModuleType, tmp_path: Path) -> None:
    first = toy.run(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    again = toy.run(tmp_path)
    assert (again.final_loss, again.train_s) == (first.final_loss, first.train_s)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_broken_checkpoint_is_passed_over_for_the_one_before(
    toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.run(tmp_path, checkpoint_every=5, keep_checkpoints=3)
    whole = curve(tmp_path)
    (tmp_path / "checkpoint-000012" / "checkpoint.json").unlink()
    weights = next((tmp_path / "checkpoint-000010" / "state").glob("*.distcp"))
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    weights.write_bytes(damaged)
    toy.run(tmp_path, terminal=Terminal(quiet=True), keep_checkpoints=1)
    said = " ".join(capsys.readouterr().err.split())
    assert "no checkpoint here" in said
    assert "is broken; going on from the checkpoint before it" in said
    assert curve(tmp_path) == whole
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-000012"]


def test_cutting_a_step_into_micro_batches_changes_nothing_but_rounding(toy: ModuleType, tmp_path: Path) -> None:
    for size in (8, 4, 1):
        toy.run(tmp_path / str(size), task=toy.Counting(micro_batch=size), model=toy.decoder())
    whole = [row[2] for row in curve(tmp_path / "8")]
    for size in (4, 1):
        assert [row[2] for row in curve(tmp_path / str(size))] == pytest.approx(whole, rel=1e-5)


def test_other_settings_in_the_same_folder_are_refused_by_name(toy: ModuleType, tmp_path: Path) -> None:
    toy.run(tmp_path)
    with pytest.raises(UserError, match=r"train\.lr: 0\.01 → 0\.02") as caught:
        toy.run(tmp_path, lr=0.02)
    assert "out=DIR" in str(caught.value)


def test_two_runs_cannot_share_a_folder(toy: ModuleType, tmp_path: Path, terminal: Terminal) -> None:
    with open_run(tmp_path, {}, terminal), pytest.raises(UserError, match="another process"):
        toy.run(tmp_path)


def test_a_finished_model_without_checkpoints_is_not_overwritten(toy: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "pedigree.json").write_text("{}")
    with pytest.raises(UserError, match="other settings or inputs is here"):
        toy.run(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(toy: ModuleType, tmp_path: Path, number: signal.Signals) -> None:
    class Stopped(toy.Counting):  # type: ignore[name-defined,misc]
        def loss(self, model: Any, batch: MicroBatch) -> tuple[Tensor, int]:
            if len(read_metrics(tmp_path / "metrics.jsonl")) == 4:
                os.kill(os.getpid(), number)
            return super().loss(model, batch)  # type: ignore[no-any-return]

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="after step 5 of 12") as caught:
        toy.run(tmp_path, task=Stopped())
    assert caught.value.exit_code == 128 + number
    assert "same command again" in caught.value.todo
    assert signal.getsignal(number) is before
    assert (tmp_path / "latest").read_text() == "checkpoint-000005\n"
    toy.run(tmp_path)
    toy.run(tmp_path / "whole")
    assert curve(tmp_path) == curve(tmp_path / "whole")


def test_a_second_interrupt_quits_at_once(toy: ModuleType, tmp_path: Path) -> None:
    class Stopped(toy.Counting):  # type: ignore[name-defined,misc]
        def loss(self, model: Any, batch: MicroBatch) -> tuple[Tensor, int]:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        toy.run(tmp_path, task=Stopped())


def test_outside_the_main_thread_the_loop_works_without_signals(toy: ModuleType, tmp_path: Path) -> None:
    outcomes: list[Any] = []
    worker = threading.Thread(target=lambda: outcomes.append(toy.run(tmp_path)))
    worker.start()
    worker.join()
    assert outcomes[0].steps == 12


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(toy: ModuleType, tmp_path: Path) -> None:
    class Breaks(toy.Counting):  # type: ignore[name-defined,misc]
        def loss(self, model: Any, batch: MicroBatch) -> tuple[Tensor, int]:
            total, count = super().loss(model, batch)
            return total * (math.nan if len(read_metrics(tmp_path / "metrics.jsonl")) == 6 else 1), count

    with pytest.raises(UserError, match=r"step 7: the loss is nan.*checkpoint of step 5 is kept"):
        toy.run(tmp_path, task=Breaks(), checkpoint_every=5)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 6


def test_a_step_without_anything_to_learn_is_no_silent_zero(toy: ModuleType, tmp_path: Path) -> None:
    class Empty(toy.Counting):  # type: ignore[name-defined,misc]
        def loss(self, model: Any, batch: MicroBatch) -> tuple[Tensor, int]:
            return super().loss(model, batch)[0] * 0, 0

    with pytest.raises(ValueError, match="step 1 has nothing to train on"):
        toy.run(tmp_path, task=Empty())


def test_errors_of_the_data_come_through(toy: ModuleType, tmp_path: Path) -> None:
    class Broken(toy.Counting):  # type: ignore[name-defined,misc]
        def micro_batches(self, step: int) -> list[MicroBatch]:
            if step == 3:
                raise UserError("the shard is gone")
            return super().micro_batches(step)  # type: ignore[no-any-return]

    with pytest.raises(UserError, match="shard is gone"):
        toy.run(tmp_path, task=Broken())


def test_held_out_text_is_looked_at_and_survives_a_resume(toy: ModuleType, tmp_path: Path) -> None:
    looks: list[bool] = []

    def validate(model: Any) -> dict[str, float]:
        looks.append(model.training)
        return {"val_loss": 1.5, "val_bits_per_byte": 0.7}

    setting = Setting({}, 1e5, peak_flops=1e9, bytes_per_token=3.0, validate=validate)
    outcome = toy.run(tmp_path, setting=setting, eval_every=5)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "val_loss" in row] == [5, 10, 12]
    assert looks == [False] * 3
    assert rows[0]["mfu"] == pytest.approx(rows[0]["tokens_per_s"] * 1e5 / 1e9, abs=1e-4)
    assert toy.run(tmp_path, setting=setting).validation == outcome.validation == {"val_loss": 1.5, "val_bits_per_byte": 0.7}


def test_step_seeds_differ() -> None:
    seeds = [step_seed(seed, step) for seed in range(3) for step in range(100)]
    assert len(set(seeds)) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)


KILLED = """
import os, signal, sys, importlib.util
from pathlib import Path
import torch
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("toy", {toy!r})
toy = importlib.util.module_from_spec(spec)
sys.modules["toy"] = toy
spec.loader.exec_module(toy)
from herdbook.train import checkpoint, metrics
out, where, when = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def die_at(call, condition):
    def wrapped(*args, **kwargs):
        if condition(*args):
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return wrapped

if where == "step":
    metrics.MetricsLog.write = die_at(metrics.MetricsLog.write, lambda log, row: row["step"] == when)
elif where == "writing":
    checkpoint.write_json = die_at(checkpoint.write_json, lambda path, facts: facts.get("step") == when)
else:
    checkpoint.write_text = die_at(checkpoint.write_text, lambda path, text: text.strip() == f"checkpoint-{{when:06d}}")
toy.run(out, checkpoint_every=3)
"""


def test_kill_9_at_any_moment_loses_only_the_steps_since_the_last_checkpoint(toy: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(toy=toy.__file__))
    # In a step, amid the writing of a checkpoint, and between its renaming and the note of it in `latest`.
    for where, when, resumed_from in (("step", 5, 3), ("writing", 6, 3), ("latest", 9, 9)):
        done = subprocess.run([sys.executable, script, str(out), where, str(when)], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        whole = [path.name for path in out.glob("checkpoint-*")]
        assert max(whole) == f"checkpoint-{resumed_from:06d}"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    toy.run(out, checkpoint_every=3)
    toy.run(tmp_path / "whole", checkpoint_every=3)
    torch.set_num_threads(threads)
    assert curve(out) == curve(tmp_path / "whole")
    assert not list(out.glob(".*partial"))


@pytest.mark.slow
def test_compiled_a_run_repeats_bit_for_bit_too(toy: ModuleType, tmp_path: Path) -> None:
    from herdbook.train.machine import compiler_at_hand

    if not compiler_at_hand("cpu"):
        pytest.skip("no C++ compiler")
    machine = Machine("cpu", "bfloat16", 1, True)
    toy.run(tmp_path / "whole", machine=machine, checkpoint_every=5, keep_checkpoints=9)
    toy.run(tmp_path / "parts", machine=machine, checkpoint_every=5, keep_checkpoints=9)
    for step in (10, 12):
        (tmp_path / "parts" / f"checkpoint-{step:06d}" / "checkpoint.json").unlink()
    toy.run(tmp_path / "parts", machine=machine)
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    toy.run(tmp_path / "eager", machine=Machine("cpu", "bfloat16", 1, False))
    assert [row[2] for row in curve(tmp_path / "eager")] == pytest.approx(
        [row[2] for row in curve(tmp_path / "whole")], rel=0.02
    )


def test_a_failing_compiler_is_a_warning(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", broken)
    toy.run(tmp_path / "a", machine=Machine("cpu", "float32", 1, True))
    assert "no compiler here" in " ".join(capsys.readouterr().err.split())
    toy.run(tmp_path / "b")
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
