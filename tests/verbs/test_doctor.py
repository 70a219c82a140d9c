"""What `herdbook doctor` says of the CPU kernels, with and without them."""

from __future__ import annotations

import pytest

from herdbook.infer import native
from herdbook.verbs.doctor import Finding, examine


def kernels() -> Finding:
    return next(finding for finding in examine() if finding.what == "CPU kernels")


def test_the_kernels_that_are_used_are_named() -> None:
    able, why = native.available()
    assert able, f"the tests of the kernels need a compiler: {why}"
    finding = kernels()
    assert (finding.state, finding.todo) == ("ok", "")
    assert finding.detail.startswith(str(native.describe()["path"]))


@pytest.mark.parametrize(
    ("why", "todo"), [("there is no C++ compiler", "apt install g++"), ("HERDBOOK_KERNELS=none", "unset HERDBOOK_KERNELS")]
)
def test_without_them_it_says_what_that_costs(why: str, todo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: (False, why))
    finding = kernels()
    assert (finding.state, finding.todo) == ("missing", todo)
    assert "slowly" in finding.detail
    assert why in finding.detail
