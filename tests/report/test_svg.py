"""Plots: valid XML, nothing outside the picture, sane ticks."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdbook.report.svg import (
    Bar,
    BarChart,
    Chart,
    DotChart,
    DotRow,
    Estimate,
    Line,
    LineChart,
    StackedBar,
    log_ticks,
    nice_ticks,
    smooth,
    thin_out,
)

LOSSES = [(float(step), 9.0 / step + 2) for step in range(1, 900)]
CHARTS: list[Chart] = [
    BarChart(
        "b",
        [Bar("<a> & b", 1.0, "10"), Bar("c", 0.2, "2", before=1.0, mark=0.5), Bar("d", 0.0, "0")],
        1.0,
        "c1",
        [("c1", "x")] * 9,
    ),
    BarChart("none", [], 1.0),
    LineChart("l", [Line("a", LOSSES), Line("b", LOSSES[::100], "c2", "dots"), Line("c", LOSSES, "c1", "raw")], "x", "y"),
    LineChart("flat", [Line("a", [(0.0, 0.0), (0.0, 0.0)])], "x", "y"),
    DotChart(
        "d", [DotRow("r", [Estimate(99.0, 9.0, "c1", "99"), Estimate(1.0, None, "c2", "1")], 25.0)], 100, "%", [("c1", "m")]
    ),
    StackedBar("s", [("one", 10.0, "c1"), ("two", 0.0, "c2"), ("three", 1.0, "c3")]),
    StackedBar("zero", [("one", 0.0, "c1")]),
]


@pytest.mark.parametrize("width", [350, 800])
@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: f"{type(chart).__name__}-{chart.title}")
def test_valid_and_within_the_picture(chart: Chart, width: int) -> None:
    root = ElementTree.fromstring(chart.svg(width))
    _, _, across, down = map(float, root.attrib["viewBox"].split())
    assert across == width
    for element in root.iter():
        for name, limit in (
            ("x", across),
            ("x1", across),
            ("x2", across),
            ("cx", across),
            ("y", down),
            ("cy", down),
            ("y2", down),
        ):
            if name in element.attrib:
                assert -0.5 <= float(element.attrib[name]) <= limit + 0.5
        if element.tag == "rect":
            assert float(element.attrib["width"]) >= 0
            assert float(element.attrib["x"]) + float(element.attrib["width"]) <= across + 0.5
        for pair in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", element.attrib.get("d", "")):
            assert 0 <= float(pair[0]) <= across and -0.5 <= float(pair[1]) <= down


@given(low=st.floats(-1e9, 1e9), span=st.floats(1e-6, 1e9))
def test_ticks_lie_within_and_are_few(low: float, span: float) -> None:
    high = low + span
    ticks = nice_ticks(low, high)
    assert 1 <= len(ticks) <= 12
    assert all(low - span * 1e-3 - 1e-9 <= tick <= high + span * 1e-3 + 1e-9 for tick in ticks) or span < abs(low) * 1e-8


@given(low=st.floats(1e-3, 1e3), factor=st.floats(2.1, 1e4))
def test_log_ticks_lie_within_and_rise(low: float, factor: float) -> None:
    ticks = log_ticks(low, low * factor)
    assert ticks == sorted(set(ticks)) and len(ticks) >= 1
    assert all(low <= tick <= low * factor for tick in ticks)


@given(values=st.lists(st.floats(-5, 5), min_size=1, max_size=500))
def test_smoothing_keeps_place_and_range(values: list[float]) -> None:
    points = [(float(index), value) for index, value in enumerate(values)]
    smoothed = smooth(points)
    assert [x for x, _ in smoothed] == [x for x, _ in points]
    assert all(min(values) - 1e-9 <= y <= max(values) + 1e-9 for _, y in smoothed)
    assert smoothed[0] == points[0] and smoothed[-1] == points[-1]


@given(count=st.integers(1, 3000), most=st.integers(2, 900))
def test_thinning_keeps_ends(count: int, most: int) -> None:
    points = [(float(index), 0.0) for index in range(count)]
    kept = thin_out(points, most)
    assert kept[0] == points[0] and kept[-1] == points[-1]
    assert len(kept) <= most + 1
