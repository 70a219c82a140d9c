"""Numbers as the report writes them."""

from __future__ import annotations

import pytest

from herdbook.report import numbers as n


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (n.whole(48211), "48,211"), (n.whole(None), "–"), (n.count(9999), "9,999"), (n.count(4_915_200), "4.92 M"),
        (n.count(1.3e9), "1.3 B"), (n.in_words(4_915_200), "4.92 million"), (n.in_words(812), "812"),
        (n.size(8_123_456), "8.12 MB"),
        (n.share(0.4231), "42.3 %"), (n.share(0.00004), "< 0.1 %"), (n.share(0.0), "0.0 %"), (n.share(1.0, 0), "100 %"),
        (n.seconds(0.53), "0.5 s"), (n.seconds(372), "6 min 12 s"), (n.seconds(180), "3 min"), (n.seconds(3599.7), "1 h"),
        (n.seconds(90_000), "1 d 1 h"), (n.flops(1.16e14), "116 TFLOP"), (n.flops(12.0), "12 FLOP"),
        (n.fixed(1.23456), "1.235"),
        (n.with_error(1.5, None, 1), "1.5"), (n.with_error(1.5, 0.25, 2), "1.50 ± 0.25"), (n.ratio(0.0401), "0.04"),
        (n.ratio(1234.0), "1,234"), (n.day("2026-11-03T06:14:00+00:00"), "3 November 2026"), (n.day("soon"), "soon"),
        (n.day(None), "–"),
    ],
)  # fmt: skip
def test_shown(shown: str, expected: str) -> None:
    assert shown.replace(n.THIN, " ") == expected
