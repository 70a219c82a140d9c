"""The benchmark for GPUs runs from end to end where there is none, and measures nothing there unasked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from herdbook.infer.gpu import have_triton

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "infer_gpu.py"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "1"}
    )


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so() -> None:
    done = run("--quick")
    assert done.returncode == 2 and "there is no GPU here" in done.stderr and not done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not have_triton(), reason="no Triton here")
def test_all_of_it_runs_on_the_cpu() -> None:
    done = run("--dry")
    assert done.returncode == 0, done.stderr[-3000:]
    line = json.loads(done.stdout.splitlines()[-1])
    assert line["results"]["dry"] is True and set(line["goals"]) <= set(line["ratios"])
    assert set(line["results"]["one_text"]) == {"16 bits", "16 bits, launched", "16 bits, the engine", "8 bits", "4 bits"}
    assert all(one["tokens_per_second"] > 0 for one in line["results"]["one_text"].values())
