from __future__ import annotations

from pathlib import Path

import pytest

from herdbook.errors import UserError
from herdbook.facts.devices import find_device, list_devices


@pytest.mark.parametrize("device", list_devices(), ids=lambda device: device.name)
def test_figures_are_plausible(device) -> None:
    assert 10e9 < device.memory < 300e9
    assert device.flops["fp32"] < 0.1e15 or device.name == "mi300x"
    assert device.peak("bf16")[1] >= device.peak("fp32")[1]
    assert 200e9 < device.bandwidth < 10e12
    assert device.watts is not None
    assert 50 < device.watts < 1500
    assert 0.2 < device.mfu < 0.6
    assert device.mfu_source
    assert device.source
    assert (device.price is None) == (device.price_source == "")
    assert set(device.from_memory) <= {"memory", "flops", "bandwidth", "watts", "interconnect"}


def test_dense_rates_are_not_the_sparse_ones_of_the_sheets() -> None:
    assert find_device("a100-80gb").peak("bf16") == ("bf16", 312e12)
    assert find_device("h100-80gb").peak("bf16") == ("bf16", 989.4e12)
    assert find_device("t4").peak("bf16") == ("fp16", 65e12)
    assert find_device("v100-32gb").peak("fp32") == ("fp32", 15.7e12)
    with pytest.raises(UserError, match="no rate for fp8"):
        find_device("a100-80gb").peak("fp8")


def test_a_name_that_is_none() -> None:
    with pytest.raises(UserError, match=r"did you mean a100-80gb"):
        find_device("a100-80")


def test_a_device_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("memory: 48GiB\nflops: {bf16: 100e12}\nbandwidth: 1e12\nprice: 1.5\nwatts: 300\n")
    device = find_device(str(path))
    assert (device.name, device.memory, device.price, device.peak("bf16")[1]) == ("mine", 48 * 2**30, 1.5, 1e14)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("memory: 48GiB\n", "needs memory, flops, bandwidth"),
        ("- 1\n", "needs memory"),
        ("memory: lots\nflops: {bf16: 1e12}\nbandwidth: 1e12\n", "not a number"),
        ("memory: 1GB\nflops: {bf17: 1e12}\nbandwidth: 1e12\n", "by precision"),
        ("memory: 1GB\nflops: {bf16: 1e12}\nbandwidth: -1\n", "above zero"),
        ("memory: 1GB\nflops: {bf16: 1e12}\nbandwidth: 1e12\ncolour: red\n", "no colour"),
        ("memory: [\n", "not YAML"),
    ],
)
def test_files_that_describe_none(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=says):
        find_device(str(path))
    with pytest.raises(UserError, match="no such file"):
        find_device(str(tmp_path / "absent.yaml"))
