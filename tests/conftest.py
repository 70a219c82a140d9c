"""What all tests share: a quiet terminal, one thread, and no network."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest

from herdbook.console import Terminal

# A busy machine is slow now and then; that is no defect. The same examples every time, so that a failure can be repeated.
hypothesis.settings.register_profile("herdbook", deadline=None, derandomize=True)
hypothesis.settings.load_profile("herdbook")


@pytest.fixture
def terminal() -> Terminal:
    """A terminal that says nothing but warnings."""
    return Terminal(quiet=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data outside the project (see CONTRIBUTING); tests that need it skip without it."""
    root = Path(os.environ.get("HERDBOOK_SHARED", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip("no shared data: set HERDBOOK_SHARED")
    return root
