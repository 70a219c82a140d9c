"""The report's sections about what the model can do: scores with error bars, and what it writes."""

from __future__ import annotations

from typing import Any

from herdbook.report import numbers as n
from herdbook.report.blocks import Block, Exchange, Figure, Paragraph, Section, Strong, Table, Words
from herdbook.report.read import Json, Run, blame
from herdbook.report.svg import DotChart, DotRow, Estimate

NAMES = {"pretrain": "base", "sft": "fine-tuned"}
BITS = "bits_per_byte"
_COLOURS = ("c1", "c2", "c3", "c4", "c5")
_GUESSING = "cannot be told from guessing"
_CHOICES = {
    "docstring_choice": "Docstring choice: which of four first sentences, all from held-out documents, belongs to this "
    "function? Most functions are named for what they do. Where the right sentence repeats a word of the name (“named”), "
    "copying helps, and the other sentences repeat it too if there are such; “unnamed” questions leave what was learned.",
    "continuation_choice": "Continuation choice: which of four second sentences, all from held-out articles of the same "
    "language, follows this first sentence?",
}


def score_sections(run: Run) -> list[Section]:
    """Scores and generations, as far as the evaluation ran."""
    sections: list[Section] = []
    if run.results is not None:
        with blame(run.folder / "eval" / "results.json"):
            sections += scores_section(run.results)
    if run.generations:
        with blame(run.folder / "eval" / "generations.json"):
            sections.append(generations_section(run.generations))
    return sections


def model_name(name: str) -> str:
    """What the report calls a model of the results."""
    return NAMES.get(name, name)


def scores_section(results: Json) -> list[Section]:
    """Bits per byte and multiple choice, all models side by side."""
    models: dict[str, Json] = results["models"]
    tasks = list(dict.fromkeys(task for found in models.values() for task in found["results"]))
    bits = [task for task in tasks if any(f"{BITS},none" in found["results"].get(task, {}) for found in models.values())]
    others = [task for task in tasks if task not in bits]
    blocks: list[Block] = []
    if bits:
        blocks += _bits_blocks(models, bits)
    if others:
        blocks += _choice_blocks(models, others)
    for task, reason in results.get("skipped", {}).items():
        blocks.append(Paragraph(f"{task.replace('_', ' ')}: not run, as {reason}.", note=True))
    return [Section("scores", "Scores", blocks)] if blocks else []


def _score(found: Json, task: str, metric: str) -> tuple[float, float | None] | None:
    """A score with its standard error, or None where this model has none."""
    row = found["results"].get(task, {})
    value, error = row.get(f"{metric},none"), row.get(f"{metric}_stderr,none")
    return None if value is None else (float(value), float(error) if isinstance(error, int | float) else None)


def _legend(models: dict[str, Json]) -> list[tuple[str, str]]:
    return [(colour, model_name(name)) for colour, name in zip(_COLOURS, models, strict=False)]


def _bits_blocks(models: dict[str, Json], tasks: list[str]) -> list[Block]:
    title = "Bits per byte of held-out text"
    labels = {task: "all sources" if task == BITS else task.removeprefix(f"{BITS}_") for task in tasks}
    rows = [DotRow(labels[task], _estimates(models, task, BITS, 1)) for task in tasks]
    top = max(item.value + 2 * (item.error or 0) for row in rows for item in row.estimates) * 1.04
    words = (
        "Bits per byte is how many bits the model needs for each byte of text it has not seen; lower is better, and a model "
    )
    words += "that knows nothing needs 8. It does not depend on the tokenizer, so any two models compare."
    chart = DotChart(title, rows, top, "", _legend(models))
    table = _table(models, [(labels[task], task, BITS) for task in tasks], scale=1, chance=False)
    return [Paragraph(words), Figure(chart, f"{title}, with 95 % intervals."), table]


def _choice_blocks(models: dict[str, Json], tasks: list[str]) -> list[Block]:
    labels = {task: _task_name(task, models) for task in tasks if _any_has(models, task, "acc_norm")}
    if not labels:
        return []
    rows = [
        DotRow(label, _estimates(models, task, "acc_norm", 100), _percent(_chance(models, task)))
        for task, label in labels.items()
    ]
    chart = DotChart("Multiple choice", rows, 100, f"{n.THIN}%", _legend(models))
    named = [(f"{label}, {metric}", task, metric) for task, label in labels.items() for metric in ("acc_norm", "acc")]
    blocks: list[Block] = [Paragraph(_CHOICES[task]) for task in labels if task in _CHOICES]
    blocks += [
        Figure(chart, "Share answered right (acc_norm), with 95 % intervals."),
        _table(models, named, scale=100, chance=True),
    ]
    blocks += [Paragraph(" ".join(_verdicts(models, [task for task in labels if task not in _parts(models)])))]
    note = "acc takes the likeliest answer; acc_norm divides each answer's log-likelihood by its length in characters first. "
    note += "± is one standard error."
    if len({found.get("config", {}).get("prompts") for found in models.values()}) > 1:
        note += " The base model sees questions in the form of its documents, the fine-tuned one in its chat format."
    return [*blocks, Paragraph(note, note=True)]


def _parts(models: dict[str, Json]) -> set[str]:
    """Tasks that are a part of another one."""
    groups = [group for found in models.values() for group in found.get("group_subtasks", {}).values()]
    return {task for group in groups for task in group}


def _task_name(task: str, models: dict[str, Json]) -> str:
    """`docstring_choice_named` → `docstring choice: named`."""
    for found in models.values():
        for group, parts in found.get("group_subtasks", {}).items():
            if task in parts:
                return f"{group.replace('_', ' ')}: {task.removeprefix(group)[1:].replace('_', ' ')}"
    return task.replace("_", " ")


def _any_has(models: dict[str, Json], task: str, metric: str) -> bool:
    return any(_score(found, task, metric) is not None for found in models.values())


def _chance(models: dict[str, Json], task: str) -> float | None:
    for found in models.values():
        chance = found.get("configs", {}).get(task, {}).get("metadata", {}).get("chance")
        if chance is not None:
            return float(chance)
    return None


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _estimates(models: dict[str, Json], task: str, metric: str, scale: float) -> list[Estimate]:
    found = []
    for colour, model in zip(_COLOURS, models.values(), strict=False):
        value = _score(model, task, metric)
        if value is not None:
            error = None if value[1] is None else scale * value[1]
            found.append(Estimate(scale * value[0], error, colour, n.fixed(scale * value[0], 3 if scale == 1 else 1)))
    return found


def _table(models: dict[str, Json], rows: list[tuple[str, str, str]], *, scale: float, chance: bool) -> Table:
    digits = 3 if scale == 1 else 1
    cells: list[list[Words]] = []
    for label, task, metric in rows:
        scores = [_score(found, task, metric) for found in models.values()]
        shown = [
            n.ABSENT if pair is None else n.with_error(scale * pair[0], _scaled(pair[1], scale), digits) for pair in scores
        ]
        samples = [found.get("n-samples", {}).get(task, {}).get("effective") for found in models.values()]
        level = _chance(models, task)
        extra: list[Words] = [n.ABSENT if level is None else n.fixed(100 * level, 1)] if chance else []
        cells.append([label, *shown, *extra, n.whole(next((count for count in samples if count is not None), None))])
    unit = " (%)" if scale == 100 else ""
    columns = ["", *(f"{model_name(name)}{unit}" for name in models), *(["chance (%)"] if chance else []), "samples"]
    return Table(columns, cells, "l" + "r" * (len(columns) - 1))


def _scaled(error: float | None, scale: float) -> float | None:
    return None if error is None else scale * error


def _verdicts(models: dict[str, Json], tasks: list[str]) -> list[str]:
    """For each task, in a sentence, whether the scores can be told from guessing."""
    sentences = []
    for task in tasks:
        level = _chance(models, task)
        parts = [part for name, found in models.items() if (part := _verdict(name, _score(found, task, "acc_norm"), level))]
        if parts:
            if len(parts) > 1 and all(part.endswith(_GUESSING) for part in parts):
                parts = [f"{'neither' if len(parts) == 2 else 'no'} model can be told from guessing"]
            sentences.append(f"On {task.replace('_', ' ')} (acc_norm) {' and '.join(parts)}.")
    return sentences


def _verdict(name: str, score: tuple[float, float | None] | None, chance: float | None) -> str:
    if score is None or chance is None or not score[1]:
        return ""
    distance = (score[0] - chance) / score[1]
    subject = f"the {model_name(name)} model"
    if abs(distance) <= 1.96:
        return f"{subject} {_GUESSING}"
    return f"{subject} is {abs(distance):.1f} standard errors {'above' if distance > 0 else 'below'} guessing"


def headline_bits(results: Json | None) -> tuple[float, float | None, str] | None:
    """The overall bits per byte of the first model that has them, its standard error, and the model's name."""
    for name, found in (results or {}).get("models", {}).items():
        value = _score(found, BITS, BITS)
        if value is not None:
            return value[0], value[1], model_name(name)
    return None


def generations_section(rows: list[Json]) -> Section:
    """What the models wrote, unedited."""
    intro = "Unedited, the first draw of each prompt. The base model continues a text; the fine-tuned one answers."
    exchanges = [
        Exchange(model_name(row["model"]), row["kind"] == "chat", row["prompt"], row["text"], _sampling(row)) for row in rows
    ]
    return Section("samples", "What it writes", [Paragraph((Strong("Do not take what it says for true. "), intro)), *exchanges])


def _sampling(row: Json) -> str:
    settings: dict[str, Any] = row.get("sampling", {})
    shown = {"temperature": "temperature", "top_p": "top-p", "top_k": "top-k", "min_p": "min-p", "seed": "seed"}
    parts = [
        f"{name} {settings[key]:g}"
        for key, name in shown.items()
        if settings.get(key) or (key in ("temperature", "seed") and key in settings)
    ]
    if row.get("finish_reason") == "length":
        parts.append(f"cut off after {settings.get('max_tokens')} tokens")
    return ", ".join(parts)
