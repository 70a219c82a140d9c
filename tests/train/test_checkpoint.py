"""Checkpoints written beside training, by one process and by two; what the loop does with them is in `test_loop.py`."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter

from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.train import checkpoint
from herdbook.train.checkpoint import CheckpointWriter, find_checkpoint, load_checkpoint


def writer_of(run: Any, out: Path, **settings: Any) -> CheckpointWriter:
    return CheckpointWriter(out, run.model, run.optimizers, **{"keep": 2, **settings})


def whole_ones(out: Path) -> list[str]:
    return sorted(path.name for path in out.glob("checkpoint-*"))


@pytest.mark.parametrize("background", [True, False])
def test_a_run_goes_on_from_it_as_if_nothing_had_been(spread: ModuleType, tmp_path: Path, background: bool) -> None:
    run = spread.alone("llama2-70b", "muon")
    writer = writer_of(run, tmp_path, background=background)
    run.steps(3)
    writer.save(3, {"seed": 1})
    after = run.steps(3)
    writer.finish()
    again = spread.alone("llama2-70b", "muon")
    again.load(tmp_path)
    assert again.steps(3) == after
    facts = json.loads((tmp_path / "checkpoint-000003" / "checkpoint.json").read_text())
    assert facts["seed"] == 1
    assert set(facts["files"]) == {path.name for path in (tmp_path / "checkpoint-000003" / "state").iterdir()}


def test_training_goes_on_while_it_is_written_and_does_not_reach_it(
    spread: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, write = threading.Event(), FileSystemWriter.write_data

    def slow(*given: Any) -> Any:
        assert gate.wait(60)
        return write(*given)

    monkeypatch.setattr(FileSystemWriter, "write_data", slow)
    run = spread.alone("mpt")
    run.steps(1)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    writer = writer_of(run, tmp_path)
    writer.save(1, {})
    run.steps(2)
    assert whole_ones(tmp_path) == []
    assert not (tmp_path / "latest").exists()
    gate.set()
    writer.finish()
    assert whole_ones(tmp_path) == ["checkpoint-000001"]
    again = spread.alone("mpt")
    again.load(tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in again.model.state_dict().items())
    assert not all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())


def test_one_at_a_time_and_the_newest_are_kept(spread: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy, most, write = [0], [0], FileSystemWriter.write_data

    def counted(*given: Any) -> Any:
        busy[0] += 1
        most[0] = max(most[0], busy[0])
        time.sleep(0.05)
        done = write(*given)
        busy[0] -= 1
        return done

    monkeypatch.setattr(FileSystemWriter, "write_data", counted)
    run = spread.alone("mpt")
    writer = writer_of(run, tmp_path)
    for step in range(1, 6):
        run.steps(1)
        writer.save(step, {})
    writer.finish()
    assert most == [1]
    assert whole_ones(tmp_path) == ["checkpoint-000004", "checkpoint-000005"]
    assert (tmp_path / "latest").read_text() == "checkpoint-000005\n"


def test_what_goes_wrong_is_said_at_the_next_and_at_the_end(
    spread: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = spread.alone("mpt")
    writer = writer_of(run, tmp_path)
    writer.save(1, {})
    writer.finish()

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(FileSystemWriter, "write_data", full)
        writer.save(2, {})
        with pytest.raises(OSError, match="No space left"):
            writer.save(3, {})
        writer.finish()  # said once
        writer.save(4, {})
        with pytest.raises(OSError, match="No space left"):
            writer.finish()
        writer.save(5, {})
        writer.close()  # another error is on its way out
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert whole_ones(tmp_path) == ["checkpoint-000001"]


def test_a_broken_file_is_found_among_several(spread: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = spread.alone("mpt")
    run.save(tmp_path)
    run.steps(1)
    run.save(tmp_path)
    (tmp_path / "checkpoint-000001" / "state" / ".metadata").write_bytes(b"x")
    found = find_checkpoint(tmp_path, Terminal(quiet=True))
    assert found is not None
    assert found.step == 0
    assert ".metadata of this checkpoint is broken" in " ".join(capsys.readouterr().err.split())


def test_a_checkpoint_of_another_shape_is_refused(spread: ModuleType, tmp_path: Path) -> None:
    spread.alone("mpt").save(tmp_path)
    other = spread.alone("neox")
    found = find_checkpoint(tmp_path, Terminal(quiet=True))
    assert found is not None
    with pytest.raises(UserError, match="does not fit the model"):
        load_checkpoint(found, other.model, other.optimizers)


@pytest.mark.slow
def test_two_processes_write_in_the_background_and_tell_each_other_what_went_wrong(spread: ModuleType, tmp_path: Path) -> None:
    done = spread.torchrun(2, "background,failing", tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads((tmp_path / "background-2.json").read_text())
    assert result == {"before": [], "waited": [True], "same": True}
    result = json.loads((tmp_path / "failing-2.json").read_text())
    assert result["told"] == ["No space left on device"] * 2
    assert result["kept"] == ["checkpoint-000001", "latest"]
    assert result["there"] == ["checkpoint-000001", "checkpoint-000004", "latest"]
    files = json.loads((tmp_path / "failing" / "checkpoint-000004" / checkpoint.FACTS).read_text())["files"]
    assert sorted(files) == [".metadata", "__0_0.distcp", "__1_0.distcp"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_kill_9_while_one_is_written_leaves_the_one_before(spread: ModuleType, tmp_path: Path, size: int) -> None:
    done = spread.torchrun(size, "killed", tmp_path)
    assert done.returncode != 0
    assert not (tmp_path / f"killed-{size}.json").exists()
    assert whole_ones(tmp_path / "killed") == ["checkpoint-000002"]
    run = spread.alone("mpt")
    run.load(tmp_path / "killed")
    whole = spread.alone("mpt").steps(4)
    assert [loss for loss, _ in run.steps(2)] == pytest.approx([loss for loss, _ in whole[2:]], rel=1e-6)
