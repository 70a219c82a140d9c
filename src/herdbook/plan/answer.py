"""The answer to a training query: all quantities with their formulas, the laws side by side, what training and serving cost
together, and the layout that fits.

Energy and carbon are LLaMA's sums (Touvron et al. 2023, arXiv:2302.13971, section 6): device hours · watts · PUE, and 0.385 kg
of CO2 a kWh. Training and serving together are Sardana et al. 2023 (arXiv:2401.00448): 6·N·D + 2·N·tokens served, and the size
that reaches the same loss for the least of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from herdbook.errors import UserError
from herdbook.facts.devices import HERE, Device
from herdbook.model.config import ModelConfig
from herdbook.plan.laws import BESIROGLU_2024, LAWS, TOKENS_PER_PARAMETER, Law, ScalingLaw
from herdbook.plan.layouts import (
    SHARDINGS,
    TENSOR,
    Held,
    Layout,
    choose,
    fewest_devices,
    held,
    largest_micro_batch,
)
from herdbook.plan.memory import PRECISIONS, RECOMPUTE, Recompute
from herdbook.plan.query import TrainQuery
from herdbook.plan.shapes import shape_for
from herdbook.plan.solve import Quantity, relations, solve

FITTED = (70e6, 16e9)  # parameters of the models that the laws of the loss were fitted on
MEANINGLESS = 10e6  # below, those laws give more nats than guessing among a vocabulary costs


def expected_loss(law: Law, parameters: float, tokens: float) -> float | None:
    """The loss by a law that speaks of it, where that can mean something; else None."""
    return law.loss(parameters, tokens) if parameters >= MEANINGLESS else None


@dataclass(frozen=True)
class Life:
    """Training and serving of one size, in FLOPs; hours and money where a device is known."""

    what: str
    parameters: float
    tokens: float
    train_flops: float
    serve_flops: float
    hours: float | None = None
    money: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The numbers as plain JSON."""
        return {**vars(self), "total_flops": self.train_flops + self.serve_flops}


@dataclass(frozen=True)
class Spread:
    """A layout with what each device holds, by what is recomputed."""

    sharding: str
    data: int
    tensor: int
    title: str
    held: dict[Recompute, Held]
    fits: tuple[Recompute, ...]

    def as_dict(self) -> dict[str, Any]:
        """The numbers as plain JSON."""
        kept = {recompute: one.as_dict() for recompute, one in self.held.items()}
        return {**vars(self), "held": kept, "fits": list(self.fits)}


@dataclass(frozen=True)
class Spreads:
    """How training is spread over the devices.

    Attributes:
        model: the shape that was reckoned with; `exact`: it was given, and not made up from a number of parameters.
        taken: the layout to take; None where none fits, and then `needed` devices would do (None: no number does).
        micro_batch: the most sequences that the taken layout computes at once.
    """

    model: ModelConfig
    exact: bool
    context: int
    room: float
    rows: tuple[Spread, ...]
    taken: Layout | None
    micro_batch: int
    needed: int | None


@dataclass(frozen=True)
class Answer:
    """All there is to say."""

    quantities: dict[str, Quantity]
    advice: dict[str, tuple[float, float]]
    life: tuple[Life, ...]
    spreads: Spreads | None
    device: Device | None
    model: ModelConfig | None

    def as_dict(self) -> dict[str, Any]:
        """The answer as plain JSON."""
        spread = self.spreads
        return {
            "plan": {name: quantity.as_dict() for name, quantity in self.quantities.items()},
            "laws": {
                name: {"parameters": n, "tokens": d, "loss": expected_loss(law, n, d), "how": law.how, "source": law.source}
                for law, (name, (n, d)) in zip(LAWS.values(), self.advice.items(), strict=True)
            },
            "life": [life.as_dict() for life in self.life],
            "device": None if self.device is None else self.device.as_dict(),
            "model": None if self.model is None else self.model.model_dump(mode="json"),
            "layouts": None if spread is None else {
                "parameters": spread.model.parameters(), "exact": spread.exact, "context": spread.context, "room": spread.room,
                "rows": [row.as_dict() for row in spread.rows], "micro_batch": spread.micro_batch,
                "taken": None if spread.taken is None else {**vars(spread.taken), "title": spread.taken.title},
                "devices_needed": spread.needed,
            },
        }  # fmt: skip


def answer(
    query: TrainQuery, *, model: ModelConfig | None = None, like: ModelConfig | None = None, device: Device | None = None,
    tokens: int | None = None, mfu: Quantity | None = None,
) -> Answer:  # fmt: skip
    """Work a query out.

    Args:
        model: the shape, where one is given; `like`: what a shape made up for a number of parameters takes over.
        tokens: of a recipe, where the query says nothing.
        mfu: measured in a run; the query's own goes first, the device's assumption last.

    Raises UserError when too little is given, or what is given does not agree.
    """
    given = _given(query, model, tokens)
    share = _share(query, device, mfu)
    rate, rate_how = _rate(query, device, share)
    price = query.price or (device.price if device else None)
    per_token = model.flops_per_token(_context(query, model)) if model else None
    multiple = query.multiple
    if model is not None and multiple is None and not _settled(given):
        multiple = 1.0
    law = LAWS[query.law]
    ties = relations(flops_per_token=per_token, multiple=multiple, rate=rate, price=price)
    found = solve(given, ties, law, rate_known=rate is not None, price_known=price is not None)
    quantities = {**found, **_derived(query, found, law, device, rate, rate_how, price)}
    return Answer(
        quantities=quantities,
        advice={name: one.optimum(found["flops"].value) for name, one in LAWS.items()},
        life=_life(query, found, law, share, rate, price),
        spreads=_spreads(query, found, model, like, device),
        device=device,
        model=model,
    )


def _given(query: TrainQuery, model: ModelConfig | None, tokens: int | None) -> dict[str, Quantity]:
    names = ("params", "tokens", "flops", "gpu_hours", "gpus", "time", "budget")
    given = {name: Quantity(float(value), "given") for name in names if (value := getattr(query, name)) is not None}
    if model is not None:
        if query.params is not None:
            raise UserError("a model has its own number of parameters", where="params", todo="leave params or the model out")
        given["params"] = Quantity(float(model.parameters()), "given: counted in the shape, a tied head once")
    if tokens is not None and not _settled(given):
        given["tokens"] = Quantity(float(tokens), "given: train.tokens of the recipe")
    if "time" in given and query.device == HERE and not _settled(given):
        given.setdefault("gpus", Quantity(1.0, "this machine"))
    return given


def _settled(given: dict[str, Quantity]) -> bool:
    """Whether something beside the model says how long it is trained."""
    return bool({"tokens", "flops", "gpu_hours", "budget"} & set(given)) or {"gpus", "time"} <= set(given)


def _context(query: TrainQuery, model: ModelConfig) -> int:
    return query.context or model.context


def _share(query: TrainQuery, device: Device | None, mfu: Quantity | None) -> Quantity | None:
    """The share of the peak that training reaches: stated, else measured in a run, else assumed for the device."""
    if query.mfu is not None:
        return Quantity(query.mfu, "stated")
    return mfu or (Quantity(device.mfu, f"assumed: {device.mfu_source}") if device else None)


def _rate(query: TrainQuery, device: Device | None, share: Quantity | None) -> tuple[float | None, str]:
    """FLOP/s that one device reaches in training, and how that is known."""
    if device is None or share is None:
        return None, ""
    name, peak = device.peak(PRECISIONS[query.precision].products)
    kind = "measured now" if device.measured else device.source
    return peak * share.value, f"{_tera(peak)} dense in {name} ({kind}) · MFU {share.value:.3g} ({share.how})"


def _tera(rate: float) -> str:
    return f"{rate / 1e12:.4g} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.4g} GFLOP/s"


def _derived(
    query: TrainQuery, found: dict[str, Quantity], law: Law, device: Device | None, rate: float | None, rate_how: str,
    price: float | None,
) -> dict[str, Quantity]:  # fmt: skip
    """What follows from the seven quantities: pace, loss, speed, energy, carbon, and where the price is from."""
    n, d = found["params"].value, found["tokens"].value
    more = {"multiple": Quantity(d / n / TOKENS_PER_PARAMETER, f"D / N = {d / n:.3g} tokens a parameter, of Chinchilla's 20")}
    parametric = law if isinstance(law, ScalingLaw) else BESIROGLU_2024
    loss = expected_loss(parametric, n, d)
    if loss is not None:
        formula = f"{parametric.e:g} + {parametric.a:g}/N^{parametric.alpha:g} + {parametric.b:g}/D^{parametric.beta:g}"
        within = "" if FITTED[0] <= n <= FITTED[1] else "; extrapolated from models of 70M to 16B"
        more["loss"] = Quantity(loss, f"{formula}, nats a token of Chinchilla's text ({parametric.source}){within}")
    if rate is None or device is None:
        return more
    more["rate"] = Quantity(rate, rate_how)
    if price is not None:
        more["price"] = Quantity(price, "given" if query.price else f"assumed: {device.price_source}")
    watts = query.watts or device.watts
    if watts is not None and "gpu_hours" in found:
        kwh = found["gpu_hours"].value * watts * query.pue / 1000
        more["energy"] = Quantity(kwh, f"device hours · {watts:g} W · PUE {query.pue:g} (LLaMA, section 6)")
        more["carbon"] = Quantity(kwh * query.co2, f"energy · {query.co2:g} kg a kWh (LLaMA, section 6)")
    return more


def _life(
    query: TrainQuery, found: dict[str, Quantity], law: Law, share: Quantity | None, rate: float | None,
    price: float | None,
) -> tuple[Life, ...]:  # fmt: skip
    """This plan, the best of the same loss for training alone, and for training and serving together."""
    if query.serve_tokens is None:
        return ()
    parametric = law if isinstance(law, ScalingLaw) else BESIROGLU_2024
    served = float(query.serve_tokens)
    weight = _weight(query, share)
    n, d = found["params"].value, found["tokens"].value
    loss = parametric.loss(n, d)
    alone, together = parametric.cheapest(loss, 0.0), parametric.cheapest(loss, served, weight)

    def life(what: str, n: float, d: float) -> Life:
        train, serve = 6 * n * d, 2 * n * served
        hours = (train + serve * weight) / rate / 3600 if rate else None
        return Life(what, n, d, train, serve, hours, hours * price if hours and price else None)

    return (
        life("this plan", n, d),
        life("same loss, cheapest to train", *alone),
        life("same loss, cheapest in all", *together),
    )


def _weight(query: TrainQuery, share: Quantity | None) -> float:
    """What a FLOP of serving costs beside one of training: the ratio of utilisations."""
    if query.serve_mfu is None:
        return 1.0
    if share is None:
        raise UserError("serving is weighed against training by their utilisations", where="serve-mfu", todo="add mfu=0.4")
    return share.value / query.serve_mfu


def _spreads(
    query: TrainQuery, found: dict[str, Quantity], model: ModelConfig | None, like: ModelConfig | None, device: Device | None
) -> Spreads | None:  # fmt: skip
    """The layouts over the devices of the plan; None without a device."""
    if device is None:
        return None
    precision = PRECISIONS[query.precision]
    shaped = model or shape_for(found["params"].value, like)
    context, devices = _context(query, shaped), int(found["gpus"].value)
    room = query.usable * device.memory
    rows = []
    for tensor in TENSOR:
        if tensor > device.node or devices % tensor or shaped.n_heads % tensor:
            continue
        for sharding in SHARDINGS if devices > tensor else SHARDINGS[:1]:
            kept = {}
            for recompute in RECOMPUTE:
                layout = Layout(sharding, devices // tensor, tensor, recompute)
                kept[recompute] = held(shaped, layout, precision, context=context, micro_batch=query.micro_batch)
            fits = tuple(recompute for recompute, one in kept.items() if one.total <= room)
            rows.append(Spread(sharding, layout.data, tensor, layout.title, kept, fits))
    taken = choose(
        shaped, device, devices, precision, context=context, micro_batch=query.micro_batch, usable=query.usable
    )  # fmt: skip
    size = largest_micro_batch(shaped, taken, device, precision, context=context, usable=query.usable) if taken else 0
    needed = None if taken else fewest_devices(shaped, device, precision, context=context, usable=query.usable)
    return Spreads(shaped, model is not None, context, room, tuple(rows), taken, size, needed)
