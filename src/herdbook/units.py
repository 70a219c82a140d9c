"""Human numbers in and out: `1.3B`, `32Ki`, `2M`, `10min`, `24GB`, `2ep`.

One rule for suffixes: `k K M B G T` are powers of 1000 (`32K` tokens are 32,000), `Ki Mi Gi Ti` are powers of 1024. The
annotated types (`Count`, `Bytes`, `Seconds`, `Share`) are used in configs, so that YAML and the command line accept both
plain numbers and human ones.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator

_SCALE = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12, "p": 10**15,
          "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}  # fmt: skip
_SECONDS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"\s*([0-9][0-9_,]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?|\.[0-9]+)\s*([A-Za-z%]*)\s*")


def _split(text: str) -> tuple[float, str]:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a number")
    return float(match[1].replace("_", "").replace(",", "")), match[2]


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def parse_count(value: Any) -> int:
    """A whole number: `1300`, `1.3B`, `32Ki`, `1e6`. Raises ValueError for anything else, fractions included."""
    if isinstance(value, bool) or value is None:
        raise ValueError(f"{value!r} is not a number")
    if isinstance(value, int):
        return value
    number, suffix = _split(value) if isinstance(value, str) else (_finite(value), "")
    if suffix.lower() not in _SCALE:
        raise ValueError(f"unknown suffix {suffix!r} in {value!r}; use K, M, B, T (thousands) or Ki, Mi, Gi (1024s)")
    scaled = number * _SCALE[suffix.lower()]
    if not math.isfinite(scaled):
        raise ValueError(f"{value!r} is too large")
    whole = round(scaled)
    if abs(whole - scaled) > 1e-6 * max(1.0, abs(scaled)):
        raise ValueError(f"{value!r} is not a whole number")
    return whole


def parse_bytes(value: Any) -> int:
    """A size in bytes: `24GB` (1000s), `24GiB` (1024s), `512MB`, or a plain number of bytes."""
    if isinstance(value, str):
        number, suffix = _split(value)
        return parse_count(f"{number!r}{suffix.removesuffix('B') if len(suffix) > 1 else suffix.strip('Bb')}")
    return parse_count(value)


def parse_seconds(value: Any) -> float:
    """A duration in seconds: `90`, `90s`, `10min`, `2h`, `1.5d`."""
    if isinstance(value, bool) or value is None:
        raise ValueError(f"{value!r} is not a duration")
    if isinstance(value, int | float):
        return float(value)
    number, suffix = _split(str(value))
    if (suffix or "s").lower() not in _SECONDS:
        raise ValueError(f"unknown unit {suffix!r} in {value!r}; use s, min, h or d")
    return number * _SECONDS[(suffix or "s").lower()]


def parse_share(value: Any) -> float:
    """A share between 0 and 1: `0.02` or `2%`."""
    if isinstance(value, str):
        number, suffix = _split(value)
        if suffix not in ("", "%"):
            raise ValueError(f"{value!r} is not a share; write 0.02 or 2%")
        return number / 100 if suffix == "%" else number
    return _finite(value)


Count = Annotated[int, BeforeValidator(parse_count)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]
Seconds = Annotated[float, BeforeValidator(parse_seconds)]
Share = Annotated[float, BeforeValidator(parse_share)]


def human_count(number: float) -> str:
    """`1_300_000_000` → `1.3B`; three significant digits at most."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(number) >= limit * 0.9995:
            return f"{number / limit:.3g}{suffix}"
    return f"{number:.3g}" if isinstance(number, float) else str(number)


def human_bytes(number: float) -> str:
    """`24_000_000_000` → `24 GB` (powers of 1000, as disks and datasheets count)."""
    for limit, suffix in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(number) >= limit * 0.9995:
            return f"{number / limit:.3g} {suffix}"
    return f"{number:.0f} B"


def human_seconds(seconds: float) -> str:
    """`75` → `1m15s`; `4020` → `1h07m`; `0.5` → `0.5s`."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
