"""The kernels compile for GPUs that are not here: Triton brings the compiler along."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from herdbook.infer.gpu import have_triton

# Bytes of shared memory that a program may have: what runs on 8.0 must fit 8.6 and 8.9 too.
SHARED = {"80": 101_376, "90": 232_448}


@pytest.mark.slow
@pytest.mark.skipif(not have_triton(), reason="no Triton here")
def test_all_kernels_compile_and_use_what_the_gpus_have(tmp_path: Path) -> None:
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(Path(__file__).with_name("compiled.py")), *SHARED]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    made = json.loads(done.stdout)
    assert len(made) == 2 * 14
    for title, facts in made.items():
        assert facts["cubin"] > 0 and facts["ld.local"] == 0, title  # tiles stay in registers
        assert facts["shared"] <= SHARED[title[-2:]], title
        if "_attend" in title or "_multiply" in title:
            assert facts["cp.async"] > 0, title  # loads run ahead
            assert (facts["mma"] > 0) == ("float32" not in title), title  # and float32 stays float32
