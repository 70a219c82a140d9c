from __future__ import annotations

import os
import subprocess
import sys

import pytest


def spins(code: str, **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
    show = f"{code}; import os; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, env=clean | environment, check=True)
    return done.stdout.strip()


def test_set_before_torch_is_loaded_by_the_python_face() -> None:
    assert spins("import herdbook; herdbook.load") == "2000"


@pytest.mark.parametrize("variable", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_user_chose_stays(variable: str) -> None:
    chosen = "active" if variable == "OMP_WAIT_POLICY" else "7"
    expected = "None" if variable == "OMP_WAIT_POLICY" else "7"
    assert spins("from herdbook.threads import wait_politely; wait_politely()", **{variable: chosen}) == expected


def test_importing_herdbook_alone_changes_nothing() -> None:
    assert spins("import herdbook, herdbook.cli") == "None"
