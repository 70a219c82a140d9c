"""`herdbook plan`: what a run takes, before it starts; from any of its quantities to all others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from herdbook import pedigree
from herdbook.console import Terminal, emit
from herdbook.errors import UserError
from herdbook.facts.devices import HERE, Device, find_device, list_devices
from herdbook.facts.models import find_model, list_models
from herdbook.files import write_text
from herdbook.model.config import ModelConfig
from herdbook.plan.answer import Answer, answer
from herdbook.plan.laws import LAWS, TABLES, flops_for
from herdbook.plan.query import ServeQuery, TrainQuery, read_words
from herdbook.plan.recipe_text import recipe_text
from herdbook.plan.shapes import Settings, settings, shape
from herdbook.plan.solve import Quantity
from herdbook.units import human_bytes, human_count
from herdbook.verbs import plan_show
from herdbook.verbs.subject import find_subject

SERVED_LIKE = "mpt-30b"  # the model that was sized for one device


def plan(targets: Sequence[str], depth: int | None, out: Path | None, terminal: Terminal, *, force: bool = False) -> None:
    """Plan what the words ask for.

    Raises UserError for words that are none, and for too little or too much to plan with.
    """
    names = [word for word in targets if "=" not in word]
    words = [word for word in targets if "=" in word] + ([f"depth={depth}"] if depth is not None else [])
    if len(names) > 1:
        raise UserError(f"one thing at a time can be planned, not {' and '.join(names)}", where="command line",
                        todo="a setting is written key=value, as in params=7B")  # fmt: skip
    name = names[0] if names else None
    if out is not None and (name is not None or not any(word.startswith("depth=") for word in words)):
        raise UserError("only a depth fills in a recipe", where="--out", todo="add --depth 12")
    if name == "devices":
        _devices(terminal)
    elif name == "chinchilla":
        _chinchilla(terminal)
    elif name == "serve":
        _serve(read_words(ServeQuery, words), terminal)
    elif name is not None:
        _recipe(name, words, terminal)
    else:
        _train(read_words(TrainQuery, words), out, force, terminal)


def _train(query: TrainQuery, out: Path | None, force: bool, terminal: Terminal) -> None:
    if query.depth is not None and query.model is not None:
        raise UserError(
            "a depth and a model are two shapes", where="depth, model", todo="leave one of them out, or write like="
        )
    like = find_model(query.like).config if query.like else None
    model = find_subject(query.model).config.resolved() if query.model else None
    if query.depth is not None:
        model = shape(query.depth, like)
    query, device = _with_device(query)
    found = answer(query, model=model, like=like, device=device)
    chosen = None
    if query.depth is not None and model is not None:
        chosen = settings(model, tokens=round(found.quantities["tokens"].value))
        if out is not None:
            _write(out, query, model, chosen, found, force)
    _tell(found, query, chosen, out, terminal)


def _tell(found: Answer, query: TrainQuery, chosen: Settings | None, out: Path | None, terminal: Terminal) -> None:
    if terminal.as_json:
        extra: dict[str, Any] = {} if chosen is None else {"recipe": {**vars(chosen), "path": str(out) if out else None}}
        emit({**found.as_dict(), **extra})
        return
    plan_show.show(found, query, chosen, terminal)
    if out is not None:
        terminal.say(f"\nwrote {out}\n  → look it over, then: herdbook run {out} --dry-run")


def _write(out: Path, query: TrainQuery, model: ModelConfig, chosen: Settings, found: Answer, force: bool) -> None:
    if out.exists() and not force:
        raise UserError("there is a file here already", where=out, todo="choose another name, or --force to replace it")
    assert query.depth is not None
    multiple = found.quantities["multiple"].value
    write_text(out, recipe_text(query.depth, model, chosen, like=query.like, multiple=multiple))


def _recipe(name: str, words: list[str], terminal: Terminal) -> None:
    """Plan the training of a recipe or of a run's folder; words with a dot in their key change the recipe."""
    from herdbook.recipe import load_recipe

    if not Path(name).exists() and Path(name).suffix == "" and "/" not in name and not _ships(name):
        raise UserError(f"{name!r} is no recipe, and not one of serve, devices, chinchilla", where="command line",
                        todo=f"a model of the catalogue is written model={name}")  # fmt: skip
    overrides = [word for word in words if "." in word.partition("=")[0]]
    query = read_words(TrainQuery, [word for word in words if word not in overrides])
    if query.depth or query.model or query.params:
        raise UserError("a recipe has a model of its own", where=name, todo="leave depth, model and params out")
    recipe = load_recipe(name, overrides)
    model = recipe.model.resolved(recipe.model.vocab_size or recipe.tokenizer.vocab_size)
    context = query.context or recipe.train.context or model.context
    query = query.model_copy(update={"context": context})
    query, device = _with_device(query)
    found = answer(query, model=model, device=device, tokens=recipe.train.tokens, mfu=_measured(recipe.folder))
    if not terminal.as_json:
        terminal.say(f"the training of {name}, in steps of {recipe.train.tokens_per_step:,} tokens")
    _tell(found, query, None, None, terminal)


def _ships(name: str) -> bool:
    from herdbook.recipe import shipped_recipe

    return shipped_recipe(name) is not None


def _measured(run: Path) -> Quantity | None:
    """The utilisation that a run has reached, from its pedigree; None when it has not been trained."""
    folder = run / "pretrain"
    mfu = pedigree.read(folder)["counts"].get("mfu") if pedigree.exists(folder) else None
    return Quantity(float(mfu), f"measured in {run}") if mfu else None


def _with_device(query: TrainQuery) -> tuple[TrainQuery, Device | None]:
    """The device of a query; a processor without fast bfloat16 trains in float32, unless the query says otherwise."""
    device = _device(query.device)
    if device is not None and device.measured and "bf16" not in device.flops and "precision" not in query.model_fields_set:
        return query.model_copy(update={"precision": "fp32"}), device
    return query, device


def _device(name: str | None) -> Device | None:
    if name == HERE:
        from herdbook.plan.peak import measure_here

        return measure_here()
    return None if name is None else find_device(name)


# --- serving --------------------------------------------------------------------------------------------------------------


def _serve(query: ServeQuery, terminal: Terminal) -> None:
    from herdbook.plan.serving import largest_served, served

    device = _device(query.device)
    if device is None:
        raise UserError("a device is needed to serve on", todo="add device=a100-80gb; `herdbook plan devices` lists them")
    like = find_model(query.like or SERVED_LIKE)

    def judge(model: ModelConfig) -> Any:
        return served(model, device, query.precision, context=query.context or like.config.context,
                      sequences=query.sequences, usable=query.usable, bandwidth_share=query.bandwidth_share)  # fmt: skip

    best, stopped = largest_served(judge, like=like.config, speed=query.speed)
    named = [(preset.name, judge(preset.config)) for preset in list_models() if not preset.tiny]
    able = [(name, one) for name, one in named if one.fits and one.speed >= (query.speed or 0)]
    able = sorted(able, key=lambda pair: -pair[1].model.parameters())[:5]
    beside = [(SERVED_LIKE, judge(find_model(SERVED_LIKE).config)), *(pair for pair in able if pair[0] != SERVED_LIKE)]
    if terminal.as_json:
        emit({
            "device": device.as_dict(), "like": like.name, "precision": query.precision, "largest": best.as_dict(),
            "stopped_by": stopped, "beside": {name: one.as_dict() for name, one in beside},
        })  # fmt: skip
        return
    plan_show.show_served(query, device, like.name, best, stopped, beside, terminal)


# --- tables ---------------------------------------------------------------------------------------------------------------


def _devices(terminal: Terminal) -> None:
    devices = list_devices()
    if terminal.as_json:
        emit([device.as_dict() for device in devices])
        return
    rows = [
        [device.name, human_bytes(device.memory), f"{device.peak('bf16')[1] / 1e12:.4g}", f"{device.bandwidth / 1e9:,.0f} GB/s",
         f"{device.watts:.0f} W" if device.watts else "", f"${device.price:.2f}/h" if device.price else "", f"{device.mfu:.2f}",
         ", ".join(device.from_memory)]
        for device in devices
    ]  # fmt: skip
    terminal.table(["device", "memory", "TFLOP/s", "bandwidth", "power", "rent", "MFU", "from memory"], rows)
    terminal.say()
    terminal.say("TFLOP/s are dense, in bf16 (fp16 where there is none). Rent and MFU are assumptions: set price= and mfu=.")
    terminal.say(f"rent: {next(device.price_source for device in devices if device.price)}", style="dim")
    terminal.say(
        "device=here measures this machine; device=mine.yaml reads one of your own, in the words of facts/devices.yaml"
    )


def _chinchilla(terminal: Terminal) -> None:
    """The paper's tables beside what our laws give for the same size."""
    rows = []
    for name, table in TABLES.items():
        for parameters, flops, tokens in table:
            law = LAWS[name]
            ours = flops_for(law, parameters=parameters)
            ours_tokens, size = law.optimum(ours)[1], law.optimum(flops)[0]
            rows.append((name, parameters, flops, tokens, size, ours, ours_tokens))
    if terminal.as_json:
        keys = ("law", "parameters", "flops", "tokens", "our_parameters", "our_flops", "our_tokens")
        emit([dict(zip(keys, row, strict=True)) for row in rows])
        return
    shown = [
        [name, human_count(n), f"{c:.2e}", human_count(d), f"{ours:.2e}", human_count(ours_d), f"{size / n - 1:+.1%}"]
        for name, n, c, d, size, ours, ours_d in rows
    ]
    terminal.step("Chinchilla's projections and ours", "Hoffmann et al. 2022, Table 3 (approach 1) and Table A3")
    terminal.table(["law", "parameters", "FLOPs", "tokens", "our FLOPs", "our tokens", "size at its FLOPs"], shown)
    for name in TABLES:
        terminal.say(f"{name}: {LAWS[name].how}", style="dim")
    terminal.say("175B of approach 3 is printed with 1.26e24 FLOPs, a slip for 1.26e25: 6·N·D of its own tokens", style="dim")
