"""From some quantities of a training run to all others.

Four products tie seven quantities together, so three of them settle the rest:

    C = 6·N·D                      FLOPs, parameters, tokens (with a shape: FLOPs a token · D)
    H = C / (3600 · peak · MFU)    hours of one device
    H = G · T                      devices and wall time
    money = H · price

Where fewer are known a scaling law ties N and D, and one device is assumed. Where more are given than that, they have to agree.
Each quantity carries the formula it came from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from herdbook.errors import UserError
from herdbook.plan.laws import TOKENS_PER_PARAMETER, Law, flops_for

AGREE = 0.01  # two ways to one quantity may differ by rounding
NAMES = {
    "params": "parameters", "tokens": "tokens", "flops": "FLOPs", "gpu_hours": "device hours", "gpus": "devices",
    "time": "wall time", "budget": "money",
}  # fmt: skip
SPENT = ("gpu_hours", "gpus", "time", "budget")


@dataclass(frozen=True)
class Quantity:
    """A number and where it comes from: "given", or the formula with its source."""

    value: float
    how: str

    @property
    def given(self) -> bool:
        """Whether the user said it."""
        return self.how.startswith("given")

    def as_dict(self) -> dict[str, Any]:
        """The number as plain JSON."""
        return {"value": self.value, "how": self.how, "given": self.given}


@dataclass(frozen=True)
class Relation:
    """A product of powers that is constant: Π quantity^power = constant.

    Attributes:
        solved: name of a quantity → the formula for it.
        from_words: the keys that the constant was made from, for messages.
    """

    powers: Mapping[str, int]
    constant: float
    solved: Mapping[str, str]

    def solve(self, name: str, known: Mapping[str, float]) -> float:
        """The value of `name` by the others."""
        rest = math.prod(known[other] ** power for other, power in self.powers.items() if other != name)
        return float((self.constant / rest) ** (1 / self.powers[name]))


def relations(
    *,
    flops_per_token: float | None = None,
    multiple: float | None = None,
    rate: float | None = None,
    price: float | None = None,
) -> list[Relation]:
    """The ties between the quantities.

    Args:
        flops_per_token: of a known shape, in place of 6·N.
        multiple: of Chinchilla's 20 tokens a parameter.
        rate: FLOP/s that a device reaches in training; without it time and money are not known.
        price: US dollars a device and hour.
    """
    found = []
    if flops_per_token is None:
        found.append(Relation({"flops": 1, "params": -1, "tokens": -1}, 6.0, {
            "flops": "6·N·D (Kaplan et al. 2020, section 2.1)", "params": "C / (6·D)", "tokens": "C / (6·N)",
        }))  # fmt: skip
    else:
        found.append(Relation({"flops": 1, "tokens": -1}, flops_per_token, {
            "flops": f"D · {flops_per_token:.4g} FLOPs a token: 6·N + 6·L·H·E·T (PaLM, appendix B, causal)",
            "tokens": f"C / {flops_per_token:.4g} FLOPs a token: 6·N + 6·L·H·E·T (PaLM, appendix B, causal)",
        }))  # fmt: skip
    if multiple is not None:
        constant = multiple * TOKENS_PER_PARAMETER
        text = f"{multiple:g} × Chinchilla's 20 tokens a parameter"
        found.append(Relation({"tokens": 1, "params": -1}, constant, {"tokens": f"{text}, times N", "params": f"D by {text}"}))
    if rate is not None:
        found.append(Relation({"flops": 1, "gpu_hours": -1}, 3600 * rate, {
            "gpu_hours": f"C / (3600 s · {rate:.4g} FLOP/s)", "flops": f"device hours · 3600 s · {rate:.4g} FLOP/s",
        }))  # fmt: skip
    found.append(Relation({"gpu_hours": 1, "gpus": -1, "time": -1}, 1 / 3600, {
        "gpu_hours": "devices · wall time", "gpus": "device hours / wall time", "time": "device hours / devices",
    }))  # fmt: skip
    if price is not None:
        found.append(Relation({"budget": 1, "gpu_hours": -1}, price, {
            "budget": f"device hours · ${price:g}", "gpu_hours": f"money / ${price:g} an hour",
        }))  # fmt: skip
    return found


def solve(
    given: Mapping[str, Quantity], ties: list[Relation], law: Law, *, rate_known: bool, price_known: bool
) -> dict[str, Quantity]:
    """All quantities that follow from the given ones.

    Raises UserError when too little is given to know the size, and when what is given does not agree.
    """
    known = dict(given)
    _propagate(known, ties)
    _need_a_size(known, rate_known=rate_known, price_known=price_known)
    if not {"params", "tokens", "flops"} <= set(known):
        _close(known, ties, law)
    if "gpu_hours" in known and not {"gpus", "time"} & set(known):
        known["gpus"] = Quantity(1.0, "assumed: one device")
        _propagate(known, ties)
    _whole_devices(known)
    return {name: known[name] for name in NAMES if name in known}


def _propagate(known: dict[str, Quantity], ties: list[Relation]) -> None:
    """Solve every tie that has one unknown, until none has; check those that have none."""
    moved = True
    while moved:
        moved = False
        for tie in ties:
            unknown = [name for name in tie.powers if name not in known]
            values = {name: known[name].value for name in tie.powers if name in known}
            if len(unknown) == 1:
                name = unknown[0]
                known[name] = Quantity(tie.solve(name, values), tie.solved.get(name, "follows from the others"))
                moved = True
            elif not unknown:
                _agree(known, tie, values)


def _agree(known: Mapping[str, Quantity], tie: Relation, values: dict[str, float]) -> None:
    name = next(iter(tie.powers))
    other = tie.solve(name, {key: value for key, value in values.items() if key != name})
    if abs(other / values[name] - 1) <= AGREE:
        return
    given = [key.replace("_", "-") for key, quantity in known.items() if quantity.given]
    raise UserError(
        f"what is given does not agree: {NAMES[name]} are {values[name]:.4g} one way, and {other:.4g} by {tie.solved[name]}",
        where=", ".join(given), todo="leave one of them out, and it is worked out from the others",
    )  # fmt: skip


def _need_a_size(known: Mapping[str, Quantity], *, rate_known: bool, price_known: bool) -> None:
    if {"params", "tokens", "flops"} & set(known):
        return
    spent = [name.replace("_", "-") for name in SPENT if name in known and known[name].given]
    if not spent:
        todo = "give one of params, tokens, flops, gpu-hours, budget, time and gpus, depth or model; see `herdbook plan --help`"
        raise UserError("there is nothing to plan from", todo=todo)
    where = ", ".join(spent)
    if not rate_known:
        raise UserError("without a device this says nothing of a model's size", where=where,
                        todo="add device=NAME; `herdbook plan devices` lists them")  # fmt: skip
    if spent == ["budget"] and not price_known:
        raise UserError("this device has no price, so money says nothing of a model's size", where=where,
                        todo="add price=DOLLARS, of one device an hour")  # fmt: skip
    missing = "gpus" if "time" in spent else "time"
    raise UserError("this does not settle how much is computed", where=where,
                    todo=f"add {missing}=…, or one of gpu-hours, budget, flops, params, tokens")  # fmt: skip


def _close(known: dict[str, Quantity], ties: list[Relation], law: Law) -> None:
    """Let the law say what else follows from the one of N, D and C that is known."""
    how = f"{law.title}: {law.how} ({law.source})"
    if "flops" in known:
        known["params"] = Quantity(law.optimum(known["flops"].value)[0], how)
    elif "params" in known:
        flops = flops_for(law, parameters=known["params"].value)
        known["tokens"] = Quantity(law.optimum(flops)[1], how)
    else:
        flops = flops_for(law, tokens=known["tokens"].value)
        known["params"] = Quantity(law.optimum(flops)[0], how)
    _propagate(known, ties)


def _whole_devices(known: dict[str, Quantity]) -> None:
    """A run takes whole devices: their number is rounded up, and the wall time becomes the shorter one that follows."""
    gpus = known.get("gpus")
    if gpus is None or gpus.given or "gpu_hours" not in known:
        return
    count = round(gpus.value) if math.isclose(gpus.value, round(gpus.value), rel_tol=1e-6) else math.ceil(gpus.value)
    if count == gpus.value or math.isclose(count, gpus.value, rel_tol=1e-6):
        known["gpus"] = Quantity(float(count), gpus.how)
        return
    known["gpus"] = Quantity(float(count), f"{gpus.how} = {gpus.value:.4g}, rounded up")
    time = known["gpu_hours"].value * 3600 / count
    known["time"] = Quantity(time, f"device hours / devices; at most {known['time'].value / 3600:.4g} h were asked for")
