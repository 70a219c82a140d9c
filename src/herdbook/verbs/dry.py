"""`--dry-run`: what a recipe would do, worked out without doing it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from herdbook import pedigree, road
from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.recipe import Recipe
from herdbook.units import human_bytes, human_count, human_seconds

# Achieved share of the matrix peak that a small model on a CPU is planned with; the run itself measures the real one.
PLANNED_UTILISATION = 0.35


def describe(recipe: Recipe) -> dict[str, Any]:
    """Stations and their state, input sizes, the training plan, and the disk it takes; all as JSON.

    What the run would stop at, such as a source that is not there yet, is one of the `problems` and no error: a recipe can be
    looked at before its data has come.
    """
    from herdbook.corpus.curate import input_paths
    from herdbook.plan.plan import plan_training
    from herdbook.train.schedule import plan_batches

    vocab = _vocabulary(recipe)
    model = recipe.model.resolved(vocab)
    context = recipe.train.context or model.context
    batches = plan_batches(recipe.train, context)
    plan = plan_training(
        model,
        tokens=batches.tokens_after(batches.steps),
        steps=batches.steps,
        tokens_per_step=recipe.train.tokens_per_step,
        context=context,
        flops_per_s=_planned_flops(),
        # The run takes as many sequences at once as memory holds; one is the least it can do with.
        micro_batch_tokens=context * (1 if recipe.train.micro_batch == "auto" else recipe.train.micro_batch),
    )
    paths = input_paths(recipe.corpus) if recipe.corpus else []
    sizes = {str(path): _size(path) for path in paths}
    problems: list[UserError] = []
    states = [
        {"station": station.name, "title": station.title, "state": state}
        for station, state in road.station_states(recipe, problems)
    ]
    # A checkpoint holds weights and two moments in float32; two are kept, and the model folder holds the weights once more.
    disk = sum(sizes.values()) + model.parameters() * 4 * (3 * 3 + 1)
    existing = recipe.folder
    while not existing.exists():
        existing = existing.parent
    return {
        "run": str(recipe.folder),
        "stations": states,
        "problems": [problem.render() for problem in problems],
        "sources": [source.model_dump(mode="json", exclude_defaults=True) for source in recipe.corpus.sources]
        if recipe.corpus
        else [],
        "absent": _absent(recipe),
        "input_bytes": sizes,
        "plan": plan.as_dict(),
        "disk_bytes": disk,
        "disk_free_bytes": shutil.disk_usage(existing).free,
        "vocab_size": model.vocab_size,
    }


def show(facts: dict[str, Any], terminal: Terminal) -> None:
    """The same for a person."""
    terminal.step("What would happen", f"in {facts['run']}; nothing was done")
    terminal.table(["station", "what", "state"], [[row["station"], row["title"], row["state"]] for row in facts["stations"]])
    rows = []
    for source in facts["sources"]:
        where = source.get("builtin") or source.get("path") or ""
        mark = " (nothing there)" if source["name"] in facts["absent"] else ""
        rows.append([source["name"], f"{where}{mark}", source.get("license", "")])
    terminal.say()
    terminal.table(["source", "from", "licence"], rows)
    if facts["input_bytes"]:
        terminal.say(f"reads {human_bytes(sum(facts['input_bytes'].values()))} in {len(facts['input_bytes'])} files")
    plan = facts["plan"]
    terminal.say()
    terminal.table(
        ["plan", ""],
        [
            ["parameters", human_count(plan["parameters"])],
            ["tokens", f"{human_count(plan['tokens'])} in {plan['steps']:,} steps of {plan['tokens_per_step']:,}"],
            ["compute", f"{plan['flops']:.2e} FLOPs ({plan['chinchilla_multiple']:.2g}× Chinchilla's tokens for this size)"],
            ["memory", human_bytes(plan["memory_bytes"])],
            ["time to train", human_seconds(plan["estimated_s"]) if plan["estimated_s"] else "not estimated"],
            ["disk", f"{human_bytes(facts['disk_bytes'])} of {human_bytes(facts['disk_free_bytes'])} free"],
        ],
    )
    for problem in facts["problems"]:
        terminal.warn(f"the run would stop: {problem}")


def _absent(recipe: Recipe) -> list[str]:
    """The names of the sources that lead to no file on this machine; addresses are not asked."""
    from herdbook.corpus.places import is_url
    from herdbook.corpus.readers import source_files

    sources = recipe.corpus.sources if recipe.corpus else []
    local = [source for source in sources if source.paths and not any(is_url(path) for path in source.paths)]
    return [source.name for source in local if not source_files(source)[0]]


def _vocabulary(recipe: Recipe) -> int:
    return recipe.model.vocab_size or recipe.tokenizer.vocab_size


def _planned_flops() -> float:
    from herdbook.plan.peak import measure_peak, training_dtype

    return measure_peak(training_dtype()) * PLANNED_UTILISATION


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in pedigree.output_files(path)) if path.is_dir() else 0
