"""Devices to plan for: memory, peak rates, power, links, and what renting one costs.

`devices.yaml` says which figures are a maker's and which are assumptions (rents and utilisation), and is meant to be edited. A
device of one's own is a YAML file in the same words, given by its path. The machine this runs on is measured, not looked up:
`herdbook.plan.here`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from herdbook.errors import UserError
from herdbook.units import parse_bytes

HERE = "here"  # the name under which the machine at hand goes
_NEEDED = ("memory", "flops", "bandwidth")
_RATES = {"bf16", "fp16", "tf32", "fp32", "fp8", "int8"}


@dataclass(frozen=True)
class Device:
    """An accelerator or a machine.

    Attributes:
        memory: bytes on board.
        flops: dense peak by precision (bf16, fp16, tf32, fp32, fp8, int8), FLOP/s.
        bandwidth: of the memory, bytes/s.
        watts: of the board at most; None where that is not known.
        interconnect: bytes/s to the other devices of a node, both directions together; None for one that stands alone.
        node: how many devices are so linked.
        price: rent in US dollars an hour, an assumption; None where none is stated.
        mfu: the share of the peak that training reaches, an assumption; `mfu_source` says what it goes by.
        from_memory: names of figures that were not read again in the source.
        measured: this machine, measured now.
    """

    name: str
    title: str
    memory: int
    flops: Mapping[str, float]
    bandwidth: float
    source: str
    watts: float | None = None
    interconnect: float | None = None
    node: int = 1
    price: float | None = None
    price_source: str = ""
    mfu: float = 0.4
    mfu_source: str = "assumed"
    from_memory: tuple[str, ...] = field(default=())
    measured: bool = False

    def peak(self, precision: str) -> tuple[str, float]:
        """(name of the rate, FLOP/s) of products in "bf16" or "fp32"; what has no bfloat16 takes fp16, fp32 goes over TF32.

        Raises UserError when the device states no such rate.
        """
        for name in {"bf16": ("bf16", "fp16", "fp32"), "fp32": ("tf32", "fp32")}.get(precision, (precision,)):
            if name in self.flops:
                return name, self.flops[name]
        raise UserError(f"{self.title} has no rate for {precision}", where="device", todo=f"there are {', '.join(self.flops)}")

    def as_dict(self) -> dict[str, Any]:
        """The facts as plain JSON."""
        return {**vars(self), "flops": dict(self.flops), "from_memory": list(self.from_memory)}


def list_devices() -> list[Device]:
    """All devices of the catalogue."""
    return list(_catalogue().values())


def find_device(name: str) -> Device:
    """The device of this name, or described in this YAML file.

    Raises UserError, with near names, when there is none, and for a file that does not describe one.
    """
    if name in _catalogue():
        return _catalogue()[name]
    if Path(name).suffix in (".yaml", ".yml"):
        return _read(Path(name))
    close = difflib.get_close_matches(name.lower(), [*_catalogue(), HERE], n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    todo = f"{hint}`herdbook plan devices` lists them; `here` is this machine, and a YAML file describes one of your own"
    raise UserError(f"there is no device {name!r}", where="device", todo=todo)


@cache
def _catalogue() -> dict[str, Device]:
    raw = yaml.safe_load(resources.files("herdbook.facts").joinpath("devices.yaml").read_text(encoding="utf-8"))
    return {name: _device(name, {"price_source": raw["price_source"], **row}) for name, row in raw["devices"].items()}


def _read(path: Path) -> Device:
    try:
        row = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("there is no such file", where=path, todo="`herdbook plan devices` lists known devices") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError("this is not YAML text", where=path) from error
    todo = "write it like an entry of facts/devices.yaml: memory: 24GiB, flops: {bf16: 165e12}, bandwidth: 1e12"
    if not isinstance(row, dict) or any(key not in row for key in _NEEDED):
        raise UserError(f"a device needs {', '.join(_NEEDED)}", where=path, todo=todo)
    unknown = sorted(set(row) - (set(Device.__dataclass_fields__) - {"name", "measured"}))
    if unknown:
        raise UserError(f"a device has no {', '.join(unknown)}", where=path, todo=todo)
    try:
        return _device(path.stem, {"source": str(path), "title": path.stem, **row})
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"this does not describe a device: {error}", where=path, todo=todo) from error


def _device(name: str, row: Mapping[str, Any]) -> Device:
    unknown = sorted(set(row["flops"]) - _RATES)
    if unknown or not row["flops"]:
        raise ValueError(f"flops are stated by precision, one of {', '.join(sorted(_RATES))}")
    numbers = {
        key: float(row[key]) for key in ("bandwidth", "watts", "interconnect", "price", "mfu") if row.get(key) is not None
    }
    if min([*numbers.values(), *map(float, row["flops"].values())]) <= 0 or parse_bytes(row["memory"]) <= 0:
        raise ValueError("every figure is above zero")
    texts = {key: str(row[key]) for key in ("title", "source", "mfu_source") if key in row}
    return Device(
        name=name, memory=parse_bytes(row["memory"]), flops={key: float(value) for key, value in row["flops"].items()},
        node=int(row.get("node", 1)), price_source=str(row.get("price_source", "")) if "price" in row else "",
        from_memory=tuple(row.get("from_memory", ())), **numbers, **texts,  # type: ignore[arg-type]
    )  # fmt: skip
