from __future__ import annotations

import time
from pathlib import Path

import pytest

from herdbook.train import energy
from herdbook.train.energy import EnergyMeter


@pytest.fixture
def counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a processor with two packages, one with a part."""
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text("1000000\n")
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    return tmp_path


def test_counters_of_packages_are_added_up(counters: Path) -> None:
    meter = EnergyMeter("cpu", None)
    for name, value in (("intel-rapl:0", 3_000_000), ("intel-rapl:1", 5_500_000), ("intel-rapl:0:0", 9_000_000)):
        (counters / name / "energy_uj").write_text(f"{value}\n")
    meter.add()
    assert meter.source == "measured" and meter.joules == pytest.approx(2.0 + 4.5)
    (counters / "intel-rapl:0" / "energy_uj").write_text("10\n")  # gone round
    (counters / "intel-rapl:1" / "energy_uj").write_text("6500000\n")
    meter.add()
    assert meter.joules == pytest.approx(7.5) and meter.kwh == pytest.approx(7.5 / 3.6e6)


def test_without_counters_it_is_watts_times_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    meter = EnergyMeter("cpu", 100.0, devices=3, joules=50.0)
    began = time.monotonic()
    time.sleep(0.05)
    meter.add()
    assert meter.source == "estimated"
    assert 15.0 <= meter.joules - 50.0 <= 300 * (time.monotonic() - began) + 1


def test_nothing_is_known_without_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    meter = EnergyMeter("cpu", None)
    meter.add()
    assert meter.source is None and meter.kwh is None
