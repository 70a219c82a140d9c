from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdbook.units import human_bytes, human_count, human_seconds, parse_bytes, parse_count, parse_seconds, parse_share


@pytest.mark.parametrize(
    ("text", "value"),
    [("1.3B", 1_300_000_000), ("20T", 20 * 10**12), ("32K", 32_000), ("32Ki", 32_768), ("2M", 2_000_000),
     ("1e6", 1_000_000), ("1_000", 1000), ("4,096", 4096), (7, 7), (2e3, 2000)],
)  # fmt: skip
def test_counts(text: object, value: int) -> None:
    assert parse_count(text) == value


@pytest.mark.parametrize("text", ["", "abc", "1.5", "3X", None, True, "-", "1.3.4K", "2M tokens"])
def test_what_is_no_count_is_refused(text: object) -> None:
    with pytest.raises(ValueError):
        parse_count(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("24GB", 24 * 10**9), ("24GiB", 24 * 2**30), ("512MB", 512 * 10**6), ("10kB", 10_000), ("7B", 7), (9, 9)],
)
def test_bytes(text: object, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize(("text", "value"), [("10min", 600), ("90", 90), ("2h", 7200), (3, 3), ("1.5d", 129_600), ("5s", 5)])
def test_seconds(text: object, value: float) -> None:
    assert parse_seconds(text) == value


def test_shares() -> None:
    assert parse_share("2%") == pytest.approx(0.02)
    assert parse_share("0.5") == 0.5
    with pytest.raises(ValueError):
        parse_share("3K")


@given(st.integers(0, 10**15))
def test_human_counts_lead_back_to_about_the_same_number(number: int) -> None:
    assert parse_count(human_count(number)) == pytest.approx(number, rel=0.006)


def test_human_forms() -> None:
    assert human_count(1_300_000_000) == "1.3B"
    assert human_count(999_960) == "1M"
    assert human_bytes(24e9) == "24 GB"
    assert [human_seconds(s) for s in (0.5, 59.6, 75, 4020, 90_000)] == ["0.5s", "1m00s", "1m15s", "1h07m", "1d01h"]


@pytest.mark.parametrize("value", [{"a": 1}, [1], None, True, float("inf"), float("nan"), "1e400", "9e999T"])
def test_what_is_no_number_is_a_value_error(value: object) -> None:
    """Anything else would reach the user as a traceback instead of as a mistake in the recipe."""
    for parse in (parse_count, parse_bytes, parse_share):
        if parse is not parse_share or not isinstance(value, str):
            with pytest.raises(ValueError, match=r"number|too large"):
                parse(value)
