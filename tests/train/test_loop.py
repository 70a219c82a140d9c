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

from herdbook.console import Terminal
from herdbook.errors import Interrupted, UserError
from herdbook.model.quantized import Form, put
from herdbook.quantize.grid import quantized
from herdbook.train.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from herdbook.train.config import LoopConfig
from herdbook.train.loop import open_run, step_seed
from herdbook.train.machine import Machine
from herdbook.train.metrics import read_metrics
from herdbook.train.optim import build_optimizers
from herdbook.train.stability import read_events
from herdbook.train.task import Loss, MicroBatch, Setting

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


def test_a_quantised_model_is_refused_by_name(toy: ModuleType, tmp_path: Path) -> None:
    model = toy.decoder()
    put(model, "blocks.0.ff.up", quantized(model.get_parameter("blocks.0.ff.up.weight"), Form(8, 8, affine=False)))
    with pytest.raises(UserError, match=r"quantised \(blocks\.0\.ff\.up to 8 bits\), so one cannot train it"):
        toy.run(tmp_path, model=model)


def test_a_run_cut_off_repeats_the_uninterrupted_one_bit_for_bit(toy: ModuleType, tmp_path: Path) -> None:
    toy.run(tmp_path / "whole", checkpoint_every=5)

    class CutOff(toy.Counting):  # type: ignore[name-defined,misc]
        def loss(self, model: Any, batch: MicroBatch) -> Loss:
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
        def loss(self, model: Any, batch: MicroBatch) -> Loss:
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
        def loss(self, model: Any, batch: MicroBatch) -> Loss:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("not reached")

    # Shells start what runs in the background with SIGINT ignored, and then there is nothing that could quit.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            toy.run(tmp_path, task=Stopped())
    finally:
        signal.signal(signal.SIGINT, former)


def test_outside_the_main_thread_the_loop_works_without_signals(toy: ModuleType, tmp_path: Path) -> None:
    outcomes: list[Any] = []
    worker = threading.Thread(target=lambda: outcomes.append(toy.run(tmp_path)))
    worker.start()
    worker.join()
    assert outcomes[0].steps == 12


def broken(toy: ModuleType, out: Path, steps: dict[int, float], *, always: bool = False) -> Any:
    """The toy task, whose loss is multiplied by a number in the steps that are named: at their first visit, or at each."""

    class Breaks(toy.Counting):  # type: ignore[name-defined,misc]
        def micro_batches(self, step: int) -> list[MicroBatch]:
            factor = steps.get(step + 1, 1.0) if always or not self.left_out else 1.0
            return [{**batch, "factor": torch.tensor(factor)} for batch in super().micro_batches(step)]

        def loss(self, model: Any, batch: MicroBatch) -> Loss:
            factor = batch.pop("factor")
            found = super().loss(model, batch)
            return Loss(found.total * factor, found.tokens, {name: value * factor for name, value in found.sums.items()})

    return Breaks(steps=12)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step 7: the loss is nan.*checkpoint of step 5 is kept"):
        toy.run(tmp_path, task=broken(toy, tmp_path, {7: math.nan}), checkpoint_every=5, stability={"nonfinite": "stop"})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 6
    (event,) = read_events(tmp_path)
    assert (event["event"], event["step"], event["documents"]) == ("stop", 7, [{"id": "document of step 7"}])


def test_a_bad_step_is_skipped_and_leaves_the_weights_as_they_were(toy: ModuleType, tmp_path: Path) -> None:
    model = toy.decoder()
    outcome = toy.run(
        tmp_path, model=model, task=broken(toy, tmp_path, {12: math.inf}), checkpoint_every=11, keep_checkpoints=3
    )
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert (outcome.skipped, rows[-1]["skipped"], rows[-1]["loss"]) == (1, "nonfinite", None)
    assert [event["event"] for event in read_events(tmp_path)] == ["skip"]
    other = toy.decoder()
    checkpoint = find_checkpoint(tmp_path, Terminal(quiet=True))
    load_checkpoint(
        Checkpoint(tmp_path / "checkpoint-000011", 11, checkpoint.facts), other, build_optimizers(other, LoopConfig())
    )
    for before, after in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(before, after)


def test_bad_steps_in_a_row_stop_the_run(toy: ModuleType, tmp_path: Path) -> None:
    bad = dict.fromkeys(range(4, 13), math.nan)
    with pytest.raises(UserError, match=r"step 6: the loss is nan.*2 steps before it were bad too"):
        toy.run(tmp_path, task=broken(toy, tmp_path, bad), stability={"most_in_a_row": 3})


def test_a_leap_is_rewound_from_and_its_data_left_out(toy: ModuleType, tmp_path: Path) -> None:
    config = {"checkpoint_every": 4, "stability": {"spike": "rewind", "spike_window": 8}}
    outcome = toy.run(tmp_path / "a", task=broken(toy, tmp_path, {11: 50.0}), **config)
    assert (outcome.rewinds, outcome.skipped, outcome.steps) == (1, 0, 12)
    (event,) = read_events(tmp_path / "a")
    assert (event["step"], event["to_step"], event["sequences"], event["kind"]) == (11, 8, 24, "spike")
    assert event["documents"] == [{"step": step, "id": f"document of step {step}"} for step in (9, 10, 11)]
    assert [row["step"] for row in read_metrics(tmp_path / "a" / "metrics.jsonl")] == list(range(1, 13))
    # As a run that never had the data of steps 9, 10 and 11.
    without = toy.Counting(steps=12)
    without.left_out = [(8, 24)]
    toy.run(tmp_path / "b", task=without, **config)
    assert curve(tmp_path / "a") == curve(tmp_path / "b")


def test_a_run_killed_right_after_a_rewind_goes_on_without_the_data(toy: ModuleType, tmp_path: Path) -> None:
    config = {"checkpoint_every": 4, "stability": {"spike": "rewind", "spike_window": 8}}
    whole = toy.run(tmp_path / "whole", task=broken(toy, tmp_path, {11: 50.0}), **config)

    class Killed(type(broken(toy, tmp_path, {11: 50.0}))):  # type: ignore[misc]
        def loss(self, model: Any, batch: MicroBatch) -> Loss:
            if self.left_out:
                raise RuntimeError("the power fails")
            return super().loss(model, batch)  # type: ignore[no-any-return]

    with pytest.raises(RuntimeError, match="power"):
        toy.run(tmp_path / "parts", task=Killed(steps=12), **config)
    resumed = toy.run(tmp_path / "parts", task=broken(toy, tmp_path, {11: 50.0}), **config)
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert resumed.rewinds == whole.rewinds == 1


def test_rewinding_does_not_go_on_for_ever(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="after 2 rewinds"):
        toy.run(tmp_path, task=broken(toy, tmp_path, {3: math.nan}, always=True),
                stability={"nonfinite": "rewind", "most_rewinds": 2})  # fmt: skip


def test_a_run_cut_off_after_skips_repeats_the_uninterrupted_one(toy: ModuleType, tmp_path: Path) -> None:
    config = {"checkpoint_every": 5, "stability": {"spike": "skip", "spike_window": 8, "spike_sigma": 3}}
    toy.run(tmp_path / "whole", task=broken(toy, tmp_path, {6: math.nan, 9: 50.0}), keep_checkpoints=9, **config)
    toy.run(tmp_path / "parts", task=broken(toy, tmp_path, {6: math.nan, 9: 50.0}), keep_checkpoints=9, **config)
    (tmp_path / "parts" / "checkpoint-000012" / "checkpoint.json").unlink()
    (tmp_path / "parts" / "checkpoint-000010" / "checkpoint.json").unlink()
    resumed = toy.run(tmp_path / "parts", task=broken(toy, tmp_path, {6: math.nan, 9: 50.0}), **config)
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert resumed.skipped == 2


def test_micro_batches_are_halved_when_memory_runs_out(toy: ModuleType, tmp_path: Path) -> None:
    class Large(toy.Counting):  # type: ignore[name-defined,misc]
        def loss(self, model: Any, batch: MicroBatch) -> Loss:
            if len(batch["tokens"]) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().loss(model, batch)  # type: ignore[no-any-return]

    toy.run(tmp_path / "a", task=Large(), model=toy.decoder())
    toy.run(tmp_path / "b", task=toy.Counting(micro_batch=2), model=toy.decoder())
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    checkpoint = find_checkpoint(tmp_path / "a", Terminal(quiet=True))
    assert checkpoint is not None and checkpoint.micro_batch("auto") == 2
    with pytest.raises(torch.OutOfMemoryError):
        toy.run(tmp_path / "c", task=Large(), micro_batch=8)


def test_computing_blocks_again_changes_nothing(toy: ModuleType, tmp_path: Path) -> None:
    toy.run(tmp_path / "kept")  # with dropout, whose numbers have to be drawn again alike
    toy.run(tmp_path / "again", recompute="blocks")
    assert curve(tmp_path / "again") == curve(tmp_path / "kept")


def test_eight_bits_without_such_a_gpu_are_refused(toy: ModuleType, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(UserError, match="8 bits need an NVIDIA GPU"):
        toy.run(tmp_path, float8=True)


def test_a_step_that_hangs_ends_the_process_and_says_where(toy: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "hangs.py"
    script.write_text(HANGS.format(toy=toy.__file__))
    done = subprocess.run([sys.executable, script, str(tmp_path / "out")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 75
    assert "training hangs" in done.stderr and "go on from the last checkpoint" in done.stderr
    assert "hangs.py" in (hang := (tmp_path / "out" / "hang.txt").read_text()) and "in loss" in hang
    assert (tmp_path / "out" / "latest").read_text() == "checkpoint-000003\n"


@pytest.mark.parametrize("optimizer", ["lion", "muon"])
def test_other_optimizers_learn_and_resume_too(toy: ModuleType, tmp_path: Path, optimizer: str) -> None:
    rate = 3e-3 if optimizer == "lion" else 1e-2
    config = {"optimizer": optimizer, "lr": rate, "checkpoint_every": 20, "keep_checkpoints": 9}
    outcome = toy.run(tmp_path / "whole", task=toy.Counting(steps=60), **config)
    assert outcome.final_loss < 3.3
    toy.run(tmp_path / "parts", task=toy.Counting(steps=60), **config)
    (tmp_path / "parts" / "checkpoint-000060" / "checkpoint.json").unlink()
    toy.run(tmp_path / "parts", task=toy.Counting(steps=60), **config)
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")


def test_a_step_without_anything_to_learn_is_no_silent_zero(toy: ModuleType, tmp_path: Path) -> None:
    class Empty(toy.Counting):  # type: ignore[name-defined,misc]
        def loss(self, model: Any, batch: MicroBatch) -> Loss:
            return super().loss(model, batch)._replace(tokens=0)  # type: ignore[no-any-return]

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


HANGS = """
import importlib.util, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("toy", {toy!r})
toy = importlib.util.module_from_spec(spec)
sys.modules["toy"] = toy
spec.loader.exec_module(toy)

class Hangs(toy.Counting):
    calls = 0
    def loss(self, model, batch):
        Hangs.calls += 1
        if Hangs.calls == 5:
            time.sleep(1000)
        return super().loss(model, batch)

toy.run(Path(sys.argv[1]), task=Hangs(), hang_after_s=6.0, checkpoint_every=3)
"""


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
