"""The verbs of the whole road: run, quickstart, init, plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from herdbook.cli.options import (
    AsJson,
    Commercial,
    DryRun,
    Force,
    Quiet,
    Recipe,
    Words,
    Workers,
    all_words,
    open_terminal,
    show_facts,
)

app = typer.Typer()


@app.command()
def run(
    recipe: Recipe,
    words: Words = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="STATION", help="make this station and all after it anew")
    ] = None,
    dry_run: DryRun = False,
    commercial: Commercial = False,
    workers: Workers = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe whole: curate, tokenize, pre-train, fine-tune, evaluate, report. Goes on where it was cut off."""
    from herdbook import road
    from herdbook.console import emit
    from herdbook.recipe import load_recipe
    from herdbook.verbs import dry

    terminal = open_terminal(quiet, as_json)
    chosen = load_recipe(recipe, all_words(words, commercial))
    if dry_run:
        show_facts(dry.describe(chosen), as_json, lambda facts: dry.show(facts, terminal))
        return
    folder = road.run(chosen, start_from=start, workers=workers, terminal=terminal)
    if as_json:
        emit({"run": str(folder), "report": str(folder / "report.html")})


@app.command()
def quickstart(
    words: Words = None, dry_run: DryRun = False, workers: Workers = None, as_json: AsJson = False, quiet: Quiet = False
) -> None:
    """Raise a small model from the text that is on every machine: about five minutes on two cores."""
    from herdbook import road
    from herdbook.console import emit
    from herdbook.recipe import load_recipe
    from herdbook.verbs import dry, samples

    terminal = open_terminal(quiet, as_json)
    chosen = load_recipe("quickstart", words or ())
    if dry_run:
        show_facts(dry.describe(chosen), as_json, lambda facts: dry.show(facts, terminal))
        return
    folder = road.run(chosen, workers=workers, terminal=terminal)
    shown = samples.read(folder)
    if as_json:
        emit({"run": str(folder), "report": str(folder / "report.html"), "samples": shown})
    else:
        samples.show(shown, folder, terminal)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="the recipe to write")] = Path("recipe.yaml"),
    source: Annotated[
        list[str] | None, typer.Option("--source", "-s", help="a WARC, HTML folder, jsonl or parquet; repeatable")
    ] = None,
    license_id: Annotated[str | None, typer.Option("--license", help="SPDX id of the sources' licence")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace a recipe that is there")] = False,
) -> None:
    """Write a commented recipe for your own pages."""
    from herdbook.verbs.init import write_recipe

    write_recipe(path, source or [], license_id, force=force, terminal=open_terminal())


@app.command(epilog="Numbers may be human: 7B, 2T, 1e22, 7d, 12h, 45%. Every number is printed with the formula it comes from.")
def plan(
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE|serve|devices|chinchilla] [KEY=VALUE]...", help="what to plan from")
    ] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="the one dial: so many layers, and a whole recipe follows")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="write the recipe of a depth to this file")] = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what a run takes before it starts: from any of size, tokens, FLOPs, time, devices and money to all others.

    \b
    herdbook plan params=7B                              tokens and FLOPs by the scaling laws
    herdbook plan flops=1e22 law=approach1               the best size for a budget of compute
    herdbook plan gpus=8 device=a100-80gb time=7d        what eight GPUs train in a week
    herdbook plan budget=10000 device=h100-80gb          what money buys
    herdbook plan params=7B tokens=2T serve-tokens=1T    training and serving together
    herdbook plan model=llama2-7b device=a100-80gb gpus=8   memory of each GPU, and the layout that fits
    herdbook plan --depth 12 -o recipe.yaml              one dial, a whole recipe
    herdbook plan recipe.yaml device=here                the training of a recipe on this machine
    herdbook plan serve device=rtx4090 speed=20          the largest model one device serves
    herdbook plan devices                                what is known of devices
    herdbook plan chinchilla                             the laws beside Chinchilla's own tables

    \b
    Keys: params tokens flops gpu-hours gpus time budget depth model device
          like law (epoch approach1 approach2 approach3) multiple serve-tokens
          context precision (mixed zero fp32 bf16) micro-batch usable
          mfu serve-mfu price watts pue co2
    serve: device speed precision (bf16 fp16 fp32 int8 int4) context
          sequences like usable bandwidth-share
    """
    from herdbook.verbs import plan as verb

    verb.plan(targets or [], depth, out, open_terminal(quiet, as_json), force=force)
