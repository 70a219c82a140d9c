"""Numbers as the report writes them: three significant digits, thin spaces before units, thousands apart."""

from __future__ import annotations

from datetime import datetime

from herdbook.units import human_bytes, human_count

THIN = "\u202f"  # narrow no-break space
ABSENT = "–"
_COUNT_UNITS = {"K": "thousand", "M": "million", "B": "billion", "T": "trillion"}


def whole(number: float | None) -> str:
    """`48211` → `48,211`."""
    return ABSENT if number is None else f"{round(number):,}"


def count(number: float | None) -> str:
    """`4_915_200` → `4.92 M`; below ten thousand in full."""
    if number is None:
        return ABSENT
    if abs(number) < 10_000:
        return whole(number)
    text = human_count(float(number))
    return f"{text[:-1]}{THIN}{text[-1]}" if text[-1].isalpha() else text


def in_words(number: float) -> str:
    """`4_915_200` → `4.92 million`."""
    text = human_count(float(number))
    return f"{text[:-1]} {_COUNT_UNITS[text[-1]]}" if text[-1] in _COUNT_UNITS else text


def size(number: float | None) -> str:
    """`8_123_456` → `8.12 MB`."""
    return ABSENT if number is None else human_bytes(number).replace(" ", THIN)


def share(value: float | None, digits: int = 1) -> str:
    """`0.4231` → `42.3 %`; what is not nothing is never shown as 0."""
    if value is None:
        return ABSENT
    if 0 < value < 0.5 * 10.0 ** -(2 + digits):
        return f"< {10.0**-digits:.{digits}f}{THIN}%"
    return f"{100 * value:.{digits}f}{THIN}%"


def seconds(value: float | None) -> str:
    """`372` → `6 min 12 s`; `0.53` → `0.5 s`."""
    if value is None:
        return ABSENT
    if value < 10:
        return f"{value:.1f}{THIN}s"
    total = round(value)
    days, rest = divmod(total, 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (left, "s")]
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    shown = [f"{amount}{THIN}{unit}" for amount, unit in parts[:2] if amount or len(parts) == 1]
    return " ".join(shown)


def flops(value: float | None) -> str:
    """`3.2e14` → `320 TFLOP`."""
    if value is None:
        return ABSENT
    for limit, prefix in ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= limit * 0.9995:
            return f"{value / limit:.3g}{THIN}{prefix}FLOP"
    return f"{value:.3g}{THIN}FLOP"


def fixed(value: float | None, digits: int = 3) -> str:
    """`1.23456` → `1.235`."""
    return ABSENT if value is None else f"{value:.{digits}f}"


def ratio(value: float | None) -> str:
    """`0.0401` → `0.04`; two significant digits."""
    return ABSENT if value is None else f"{value:.2g}" if value < 100 else whole(value)


def with_error(value: float, error: float | None, digits: int = 3) -> str:
    """`1.235 ± 0.012`; the value alone where there is no error."""
    return fixed(value, digits) if error is None else f"{fixed(value, digits)} ± {fixed(error, digits)}"


def day(moment: str | None) -> str:
    """`2026-11-23T06:14:00+00:00` → `23 November 2026`; other text is left as it is."""
    try:
        date = datetime.fromisoformat(moment or "")
    except ValueError:
        return moment or ABSENT
    return f"{date.day} {date:%B %Y}"
