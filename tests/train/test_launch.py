from __future__ import annotations

import os
import shlex
import signal
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdbook.errors import UserError
from herdbook.train.interrupt import StopRequest
from herdbook.train.launch import write_script


@pytest.mark.parametrize("kind", ["torchrun", "slurm"])
@pytest.mark.parametrize("nodes", [1, 16])
def test_the_script_is_a_shell_script_that_can_be_run(kind: Any, nodes: int, tmp_path: Path) -> None:
    script = write_script(kind, "recipe.yaml", ["train.lr=3e-4"], nodes=nodes, gpus=8, out=tmp_path / "run 7")
    assert script == tmp_path / "run 7" / f"pretrain-{kind}.sh"
    assert script.stat().st_mode & stat.S_IXUSR
    shell = script.read_text().splitlines()[0].removeprefix("#!").split()
    assert subprocess.run([*shell, "-n", script], capture_output=True, text=True).stderr == ""
    text = script.read_text()
    assert f"--nnodes={nodes} --nproc-per-node=8 --max-restarts=3" in text
    assert "%j" in text or kind == "torchrun"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), max_size=4))
def test_words_come_through_the_shell_as_they_were_typed(words: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        script = write_script("torchrun", "it's mine.yaml", words, gpus=2, out=Path(folder))
        command = script.read_bytes().decode().split("--standalone \\\n")[1]
        # What the shell makes of it, one word after the other with a NUL behind each.
        shown = subprocess.run(["sh", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True).stdout
    assert shown.decode().split("\0")[:-1] == ["--module", "herdbook", "pretrain", "it's mine.yaml", *words]


def test_a_recipe_that_is_a_file_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    monkeypatch.chdir(tmp_path)
    text = write_script("torchrun", "mine.yaml", [], out=tmp_path / "out").read_text()
    assert shlex.quote(str(tmp_path / "mine.yaml")) in text
    assert f"cd {shlex.quote(str(tmp_path))}\n" in text


def test_numbers_and_names_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 machines"):
        write_script("slurm", "recipe.yaml", [], nodes=0, out=tmp_path)
    with pytest.raises(UserError, match="there is no launcher 'kubernetes'"):
        write_script("kubernetes", "recipe.yaml", [], out=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="name cannot be written"):
        write_script("slurm", "recipe.yaml", [], out=tmp_path / 'a"b')


def test_torchrun_starts_herdbook_in_every_process(tmp_path: Path) -> None:
    script = write_script("torchrun", "no such recipe.yaml", [], gpus=2, out=tmp_path, restarts=0)
    done = subprocess.run(["sh", script], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "no such recipe.yaml" in done.stderr
    assert "exitcode  : 2" in done.stderr  # herdbook's code for what the user can mend


SHIMS = {
    "scontrol": 'case "$1" in show) echo node-a; echo node-b;; *) echo "$@" >> "$CALLS";; esac',
    "scancel": 'echo "scancel $@" >> "$CALLS"; kill -TERM "$(cat "$CALLS.pid")"',
    # Stands for the training: it ends by itself, or, told to stop, saves for a moment and ends like herdbook.
    "srun": 'echo "$@" > "$CALLS.srun"; trap "sleep 0.3; exit 143" TERM; echo $$ > "$CALLS.pid"\n'
    'for _ in $(seq "$TENTHS"); do sleep 0.1; done; exit "${ENDS:-0}"',
}


def slurm_job(tmp_path: Path, **environment: str) -> tuple[subprocess.Popen[str], Path]:
    """The script as Slurm would run it, with stand-ins for Slurm's own commands that note how they are called."""
    shims = tmp_path / "bin"
    shims.mkdir()
    for name, body in SHIMS.items():
        (shims / name).write_text(f"#!/bin/sh\n{body}\n")
        (shims / name).chmod(0o755)
    script = write_script("slurm", "recipe.yaml", [], nodes=2, gpus=4, out=tmp_path / "out")
    calls = tmp_path / "calls"
    calls.touch()
    path = f"{shims}:{os.environ['PATH']}"
    job = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node-[a-b]", "CALLS": str(calls), "PATH": path}
    return subprocess.Popen(["bash", script], env={**os.environ, **job, **environment}, text=True), calls


def test_a_slurm_job_that_is_out_of_time_saves_and_queues_itself_again(tmp_path: Path) -> None:
    job, calls = slurm_job(tmp_path, TENTHS="600")
    pid = tmp_path / "calls.pid"
    deadline = time.monotonic() + 30
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == 143
    assert calls.read_text().splitlines() == ["scancel --signal=TERM 77.0", "requeue 77"]
    started = (tmp_path / "calls.srun").read_text()
    assert "--rdzv-endpoint=node-a:29500" in started
    assert started.endswith("--module herdbook pretrain recipe.yaml\n")


@pytest.mark.parametrize("ends", ["0", "1"])
def test_a_slurm_job_that_ends_by_itself_is_not_queued_again(tmp_path: Path, ends: str) -> None:
    job, calls = slurm_job(tmp_path, TENTHS="1", ENDS=ends)
    assert job.wait(30) == int(ends)
    assert calls.read_text() == ""


def test_told_by_slurm_and_again_by_torchrun_a_process_still_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # would end us if the handler were gone
        assert stop.received == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
