from __future__ import annotations

import pytest
import torch

from herdbook.plan import peak
from herdbook.plan.peak import measure_bandwidth, measure_here, measure_peak, training_dtype


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "BUDGET_S", 0.02)
    monkeypatch.setattr(peak, "SIDES", {"cpu": (256,)})


@pytest.mark.parametrize("dtype", [torch.float32, "float32", "bfloat16"])
def test_a_peak_is_plausible(dtype: torch.dtype | str) -> None:
    assert 1e8 < measure_peak(dtype, 1) < 1e14


def test_the_number_of_threads_is_set_back() -> None:
    before = torch.get_num_threads()
    measure_peak("float32", before + 1)
    assert torch.get_num_threads() == before


def test_names_that_are_no_dtype() -> None:
    for name in ("float33", "nn"):
        with pytest.raises(ValueError, match="not a torch dtype"):
            measure_peak(name)


def test_training_dtype_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert training_dtype("cuda") == "bfloat16"
    for text, expected in (
        ("flags\t\t: fpu avx512_bf16 sse", "bfloat16"), ("flags\t\t: fpu avx2", "float32"), ("", "float32"),
        ("Features\t: asimd bf16", "bfloat16"),
    ):  # fmt: skip
        monkeypatch.setattr(peak.Path, "read_text", lambda *_, text=text, **__: f"processor: 0\n{text}\n")
        assert training_dtype() == expected
    monkeypatch.setattr(peak.Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    assert training_dtype() == "float32"


def test_this_machine_as_a_device() -> None:
    here = measure_here()
    assert here.measured
    assert here.memory > 1e9
    assert 1e8 < here.flops["fp32"] < 1e14
    assert 1e8 < here.bandwidth < 1e13


def test_a_bandwidth_is_plausible() -> None:
    assert 1e8 < measure_bandwidth() < 1e13
