"""A plan for people: every number with the formula it comes from."""

from __future__ import annotations

from collections.abc import Sequence

from herdbook.console import Terminal
from herdbook.facts.devices import Device
from herdbook.plan.answer import Answer, Spreads, expected_loss
from herdbook.plan.laws import LAWS
from herdbook.plan.memory import PRECISIONS
from herdbook.plan.query import ServeQuery, TrainQuery
from herdbook.plan.serving import BITS, Served
from herdbook.plan.shapes import Settings
from herdbook.units import human_bytes, human_count, human_seconds

_ROWS = {
    "params": "parameters N", "tokens": "tokens D", "multiple": "× Chinchilla", "flops": "FLOPs C", "loss": "loss expected",
    "rate": "FLOP/s a device", "gpu_hours": "device hours", "gpus": "devices", "time": "wall time", "price": "rent an hour",
    "budget": "money", "energy": "energy", "carbon": "CO2",
}  # fmt: skip


def show(found: Answer, query: TrainQuery, chosen: Settings | None, terminal: Terminal) -> None:
    """Print the answer to a training query."""
    terminal.step("Plan", found.device.title if found.device else "")
    rows = [
        [what, _amount(name, found.quantities[name].value), found.quantities[name].how]
        for name, what in _ROWS.items()
        if name in found.quantities
    ]
    terminal.table(["what", "how much", "how"], rows)
    if chosen is not None and found.model is not None:
        _dial(found, chosen, terminal)
    terminal.say()
    terminal.step("What the laws advise for these FLOPs")
    table = []
    for name, (n, d) in found.advice.items():
        law = LAWS[name]
        loss = expected_loss(law, n, d)
        table.append([name, human_count(n), human_count(d), f"{d / n:.3g}", f"{loss:.3f}" if loss else "", law.how])
    terminal.table(["law", "parameters", "tokens", "a parameter", "loss", "how"], table)
    if found.life:
        _life(found, query, terminal)
    if found.spreads is not None and found.device is not None:
        _spreads(found.spreads, query, found.device, terminal)
    elif found.device is None:
        terminal.say()
        terminal.say(
            "device=NAME adds time, energy, money, and memory a device; `herdbook plan devices` lists them", style="dim"
        )


def _amount(name: str, value: float) -> str:
    forms = {
        "flops": f"{value:.3g}", "multiple": f"{value:.3g}", "loss": f"{value:.3f}", "gpus": f"{value:,.0f}",
        "gpu_hours": f"{value:,.0f}" if value >= 10 else f"{value:.3g}", "time": human_seconds(value), "price": f"${value:g}",
        "budget": f"${value:,.0f}" if value >= 10 else f"${value:.2f}", "rate": f"{value:.3g}", "carbon": _mass(value),
        "energy": f"{value / 1000:,.3g} MWh" if value >= 1000 else f"{value:.3g} kWh",
    }  # fmt: skip
    return forms.get(name) or human_count(value)


def _mass(kilograms: float) -> str:
    return f"{kilograms / 1000:,.3g} t" if kilograms >= 1000 else f"{kilograms:.3g} kg"


def _dial(found: Answer, chosen: Settings, terminal: Terminal) -> None:
    model = found.model
    assert model is not None
    law = f"C = {chosen.flops:.3g} FLOPs without the head (DeepSeek LLM, arXiv:2401.02954, equation 1)"
    heads = f"{model.n_heads} heads of {model.head_width}, feed-forward {model.ff_width:,}"
    terminal.say()
    terminal.step("The recipe")
    terminal.table(["what", "how much", "how"], [
        ["shape", f"{model.n_layers} × {model.d_model:,}", f"width = depth · (4·depth within 64 and 128); {heads}"],
        ["vocabulary", f"{model.vocabulary:,}", "32,768·(N/1e9)^(1/3) to a power of two, within 4,096 and 32,768; or `like`'s"],
        ["context", f"{model.context:,}", "the power of two from the width up, within 256 and 2,048; or `like`'s"],
        ["tokens a step", f"{chosen.tokens_per_step:,}", f"0.2920·C^0.3271 to a power of two of sequences; {law}"],
        ["steps", f"{-(-chosen.tokens // chosen.tokens_per_step):,}", "D / tokens a step"],
        ["learning rate", f"{chosen.lr:g}", "0.3118·C^-0.1250, the same"],
    ])  # fmt: skip


def _life(found: Answer, query: TrainQuery, terminal: Terminal) -> None:
    assert query.serve_tokens is not None
    terminal.say()
    terminal.step("Training and serving", f"{human_count(query.serve_tokens)} tokens to be served")
    rows = []
    least = min(life.train_flops + life.serve_flops for life in found.life)
    for life in found.life:
        total = life.train_flops + life.serve_flops
        cost = f"${life.money:,.0f}" if life.money is not None else f"{life.hours:,.0f} h" if life.hours is not None else ""
        rows.append([life.what, human_count(life.parameters), human_count(life.tokens), f"{life.tokens / life.parameters:.3g}",
                     f"{life.train_flops:.3g}", f"{life.serve_flops:.3g}", f"{total:.3g}", f"{total / least - 1:+.0%}",
                     cost])  # fmt: skip
    columns = ["what", "parameters", "tokens", "a parameter", "train 6·N·D", "serve 2·N·tokens", "in all", "over least", "cost"]
    terminal.table(columns, rows)
    terminal.say(
        "least 6·N·D + 2·N·served at the same E + A/N^α + B/D^β: Sardana et al. 2023, arXiv:2401.00448, equation 4", style="dim"
    )


def _spreads(spreads: Spreads, query: TrainQuery, device: Device, terminal: Terminal) -> None:
    precision = PRECISIONS[query.precision]
    model = spreads.model
    shape = f"{model.n_layers} layers of {model.d_model:,}, {human_count(model.parameters())} parameters"
    kind = shape if spreads.exact else f"reckoned with a shape of about this size: {shape}"
    sequences = "1 sequence" if query.micro_batch == 1 else f"{query.micro_batch} sequences"
    terminal.say()
    terminal.step("Memory of each device", kind)
    terminal.say(f"{query.precision}: {precision.what}; {sequences} of {spreads.context:,} tokens", style="dim")
    rows = []
    for row in spreads.rows:
        one = row.held["selective"]
        totals = [human_bytes(row.held[recompute].total) + (" ✓" if recompute in row.fits else "") for recompute in row.held]
        rows.append([row.title, *map(human_bytes, (one.weights, one.casts, one.gradients, one.optimizer)), *totals])
    columns = ["layout", "weights", "copies", "gradients", "optimizer", "in all, keeping all", "selective", "full recompute"]
    terminal.table(columns, rows)
    activations = ", ".join(f"{recompute} {human_bytes(one.activations)}" for recompute, one in spreads.rows[0].held.items())
    state = " + ".join(f"{getattr(precision, part)} bytes of {part}" for part in ("weights", "gradients", "optimizer"))
    for line in (
        f"✓ fits {human_bytes(spreads.room)}: {query.usable:.0%} of {human_bytes(device.memory)}; "
        "the rest is for the driver, buffers and fragments",
        f"a parameter: {state}{', and 2 of 16-bit copies' if precision.casts else ''}; zero1 divides the optimizer, "
        "zero2 the gradients too, fsdp all (ZeRO, arXiv:1910.02054, section 5), tp everything",
        f"activations by what is recomputed, {spreads.rows[0].title}: {activations} "
        "(Korthikanti et al., arXiv:2205.05198, section 4; selective is what a fused attention does)",
    ):
        terminal.say(line, style="dim")
    terminal.say(_verdict(spreads, device))


def _verdict(spreads: Spreads, device: Device) -> str:
    if spreads.taken is None:
        if spreads.needed is None:
            return "→ nothing fits: a single sequence is too much for any number of these devices"
        return f"→ nothing fits; {spreads.needed:,} × {device.name} would be enough for one sequence each"
    slow = ", with full recomputation, which takes a third more time than stated" if spreads.taken.recompute == "full" else ""
    most = "1 sequence" if spreads.micro_batch == 1 else f"up to {spreads.micro_batch:,} sequences"
    return f"→ take {spreads.taken.title}{slow}; {most} at once on each"


def show_served(
    query: ServeQuery, device: Device, like: str, best: Served, stopped: str, beside: Sequence[tuple[str, Served]],
    terminal: Terminal,
) -> None:  # fmt: skip
    """Print the largest model that a device serves, and known models beside it."""
    need = best.need
    speed = f", {query.speed:g} tokens/s a sequence" if query.speed else ""
    terminal.step(
        "The largest model to serve", f"{device.title}, {query.precision}, {need.context:,} tokens × {need.sequences}{speed}"
    )
    rows = [[f"depth {best.model.n_layers}, like {like}", *_served(best)], *([name, *_served(one)] for name, one in beside)]
    columns = ["model", "parameters", "weights", "cache", "in all", "fits", "tokens/s at most", "bound by"]
    terminal.table(columns, rows)
    value = 4 if query.precision == "fp32" else 2
    next_one = "would not fit" if stopped == "memory" else "would be slower than asked"
    for line in (
        f"one layer more {next_one}; room: {human_bytes(best.room)}, {query.usable:.0%} of {human_bytes(device.memory)}",
        f"in all = N · {BITS[query.precision]:g} / 8 + 2·L·K·E · {value} bytes · context · sequences",
        f"tokens/s = the smaller of {device.bandwidth / 1e9:,.4g} GB/s ({device.source}) · {query.bandwidth_share:g} / in all, "
        "and peak / (FLOPs a token · sequences) (Pope et al., arXiv:2211.05102, section 3)",
        "it is a bound: engines reach about half to four fifths of the bandwidth (bandwidth-share=0.6)",
        "depth d: width d · (4·d within 64 and 128), every other field as the model it is like",
    ):
        terminal.say(line, style="dim")
    if beside and beside[0][0] == "mpt-30b" and device.name in ("a100-80gb", "a100-40gb"):
        terminal.say("MPT-30B was sized for one A100-80GB in 16 bits, or one A100-40GB in 8 (its model card)", style="dim")


def _served(one: Served) -> list[str]:
    return [human_count(one.model.parameters()), human_bytes(one.need.weights), human_bytes(one.need.cache),
            human_bytes(one.need.total), "yes" if one.fits else "no", f"{one.speed:.3g}", one.bound]  # fmt: skip
