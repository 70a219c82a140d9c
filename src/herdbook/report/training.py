"""The report's sections about training: the plan against what was spent, and the loss curves."""

from __future__ import annotations

from herdbook.report import numbers as n
from herdbook.report.blocks import Block, Figure, Paragraph, Section, Table, Words
from herdbook.report.read import Json, Run, blame
from herdbook.report.svg import Line, LineChart, smooth

TITLES = {"pretrain": "Pre-training", "sft": "Fine-tuning"}


def training_sections(run: Run) -> list[Section]:
    """Plan against spent, and the loss curve of each training station that has steps."""
    sections: list[Section] = []
    plan: list[Block] = []
    for station in TITLES:
        if station in run.plans:
            with blame(run.folder / station / "plan.json"):
                plan += plan_blocks(run, station, several=len(run.plans) > 1)
    if plan:
        sections.append(Section("plan", "Plan and what was spent", plan))
    curves: list[Block] = []
    for station in TITLES:
        if station in run.metrics:
            with blame(run.folder / station / "metrics.jsonl"):
                curves += curve_blocks(TITLES[station], run.metrics[station])
    if curves:
        sections.append(Section("loss", "Loss", curves))
    return sections


def plan_blocks(run: Run, station: str, *, several: bool) -> list[Block]:
    """A table of the planned and the spent."""
    plan, counts = run.plans[station], run.pedigrees.get(station, {}).get("counts", {})
    last = (run.metrics.get(station) or [{}])[-1]
    tokens, steps = counts.get("tokens", last.get("tokens")), counts.get("steps", last.get("step"))
    spent_s = counts.get("train_s", last.get("elapsed_s"))
    multiple = plan.get("chinchilla_multiple")
    reached = multiple * tokens / plan["tokens"] if multiple is not None and tokens is not None and plan.get("tokens") else None
    rows: list[list[Words]] = [
        ["parameters", n.count(plan.get("parameters")), n.count(counts.get("parameters"))],
        ["tokens", n.count(plan.get("tokens")), n.count(tokens)],
        ["steps", n.whole(plan.get("steps")), n.whole(steps)],
        ["computation", n.flops(plan.get("flops")), n.flops(counts.get("flops"))],
        ["time", n.seconds(plan.get("estimated_s")), n.seconds(spent_s)],
    ]
    if station == "pretrain":
        rows.append(["tokens a parameter, as a multiple of Chinchilla's 20", n.ratio(multiple), n.ratio(reached)])
    rows = [row for row in rows if row[1:] != [n.ABSENT, n.ABSENT]]
    caption = TITLES[station] if several else None
    blocks: list[Block] = [Table(("", "planned", "spent"), rows, "lrr", caption)]
    notes = [*_speed(counts), *_epochs(plan)]
    return [*blocks, *([Paragraph(" ".join(notes), note=True)] if notes else [])]


def _speed(counts: Json) -> list[str]:
    mfu, peak = counts.get("mfu"), counts.get("peak_flops_per_s")
    if mfu is None or peak is None:
        return []
    return [f"Training ran at {n.share(mfu)} of the {n.flops(peak)}/s that this machine's matrix products were measured at."]


def _epochs(plan: Json) -> list[str]:
    epochs = plan.get("epochs") or {}
    parts = [f"{source} {n.ratio(times)} times" for source, times in sorted(epochs.items())]
    return [f"Each source is read so often: {', '.join(parts)}."] if parts else []


def curve_blocks(title: str, rows: list[Json]) -> list[Block]:
    """The loss curve of one station, with a few of its points as a table."""
    train = [(float(row["tokens"]), float(row["loss"])) for row in rows]
    held = [(float(row["tokens"]), float(row["val_loss"])) for row in rows if row.get("val_loss") is not None]
    lines = [Line("each step", train, "c1", "raw"), Line("training, smoothed", smooth(train), "c1")]
    lines += [Line("held-out", held, "c2", "dots")] if held else []
    chart = LineChart(f"{title}: loss over tokens", lines, "tokens seen", "loss, nats a token")
    caption = f"{title}: from {n.fixed(train[0][1], 2)} to {n.fixed(smooth(train)[-1][1], 2)} nats a token"
    caption += f"; {n.fixed(held[-1][1], 2)} on held-out text." if held else "."
    return [Figure(chart, caption), _points(rows)]


def _points(rows: list[Json]) -> Table:
    """The first and last step and some between, on evaluation steps where there are any."""
    marked = [row for row in rows if row.get("val_loss") is not None] or rows
    picks = sorted({round(index * (len(marked) - 1) / 5) for index in range(6)}) if len(marked) > 1 else [0]
    held = any(row.get("val_loss") is not None for row in rows)
    bits = any(row.get("val_bits_per_byte") is not None for row in rows)
    columns = ["step", "tokens", "training loss", *(["held-out loss"] if held else []), *(["bits per byte"] if bits else []),
               "learning rate", "tokens/s"]  # fmt: skip
    cells: list[list[Words]] = []
    for row in (marked[index] for index in picks):
        rate = row.get("lr")
        cell: list[Words] = [n.whole(row["step"]), n.count(row["tokens"]), n.fixed(row["loss"])]
        cell += [n.fixed(row.get("val_loss"))] if held else []
        cell += [n.fixed(row.get("val_bits_per_byte"))] if bits else []
        cells.append([*cell, n.ABSENT if rate is None else f"{rate:.2e}", n.whole(row.get("tokens_per_s"))])
    return Table(columns, cells, "r" * len(columns))
