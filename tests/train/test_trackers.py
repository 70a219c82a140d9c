from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.train.trackers import Trackers


class Run:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.finished = False

    def log(self, numbers: dict[str, float], step: int) -> None:
        if step == 3:
            raise ConnectionError("no network")
        self.rows.append((step, numbers))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Run:
    """A module with the calls of wandb that are used."""
    run, module = Run(), ModuleType("wandb")

    def init(**settings: Any) -> Run:
        assert settings["name"].endswith("r-pretrain") and settings["config"] == {"lr": 1}
        return run

    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return run


def test_numbers_are_handed_on_and_a_failing_tracker_is_let_go(
    wandb: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r" / "pretrain"
    trackers = Trackers(["wandb"], out, {"lr": 1}, Terminal())
    trackers.write({"step": 1, "loss": 2.5, "source_loss": {"web": 2.0}, "mfu": None, "skipped": "spike"})
    assert wandb.rows == [(1, {"step": 1.0, "loss": 2.5, "source_loss/web": 2.0})]
    for step in (3, 4):
        trackers.write({"step": step, "loss": 2.0})
    trackers.close()
    assert len(wandb.rows) == 1 and not wandb.finished
    assert capsys.readouterr().err.count("no network") == 1


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match=r"trackio is not installed.*\n.*pip install trackio"):
        Trackers(["trackio"], tmp_path, {}, Terminal(quiet=True))
