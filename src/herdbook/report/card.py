"""The model card: `README.md` of a model folder, with the front matter that Hugging Face's hub and tools read.

Everything on it comes from the pedigree of the model and of what went into it, and from the run's results; what is not known
is left out. The front matter follows the hub's model card metadata (language, license, datasets, metrics, base_model,
pipeline_tag, model-index).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from herdbook import pedigree
from herdbook.facts.licenses import License
from herdbook.files import read_json
from herdbook.report import numbers as n
from herdbook.report.blocks import Block, Bullets, Code, Command, Page, Paragraph, Section, Strong, Table, Words
from herdbook.report.data import language_name, published
from herdbook.report.markdown import markdown
from herdbook.report.read import Json, Run, blame, read_run
from herdbook.report.scores import NAMES

_SHARE_OF_A_LANGUAGE = 0.01  # a language with less of the text is not claimed
_METRICS = {"bits_per_byte": "bits per byte", "acc": "accuracy", "acc_norm": "accuracy, length-normalised"}


def model_card(model_folder: Path, run: Path | None) -> str:
    """The card of a model.

    Args:
        model_folder: a folder that `pretrain` or `sft` finished.
        run: the run it belongs to, for the corpus' facts and the scores; None writes what the model's own pedigree says.

    Raises:
        UserError: the model has no pedigree, or a file is broken.
    """
    manifest = pedigree.read(model_folder)
    facts = read_run(run) if run is not None else Run(model_folder, model_folder.resolve().name)
    station = str(manifest["station"])
    with blame(model_folder / pedigree.MANIFEST):
        license_ = License(**manifest["license"])
        title = f"{facts.name}, {NAMES.get(station, station)} model"
        page = Page(
            title, _lead(manifest, station), [], _sections(facts, model_folder, manifest, station, license_), _footer(manifest)
        )
        head = yaml.safe_dump(front_matter(facts, manifest, station, license_), sort_keys=False, allow_unicode=True)
        return f"---\n{head}---\n\n{markdown(page)}"


def front_matter(run: Run, manifest: Json, station: str, license_: License) -> Json:
    """The metadata at the top of the card."""
    head: Json = {}
    languages = [code for code in main_languages(run) if len(code) in (2, 3)]
    if languages:
        head["language"] = languages
    if " AND " in license_.id or license_.id.startswith("LicenseRef-"):
        head |= {"license": "other", "license_name": license_.id.replace(" ", "-").lower()}
    else:
        head["license"] = license_.id.lower()
    head |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if station == "sft" and "pretrain" in run.pedigrees:
        head["base_model"] = f"{run.name}/pretrain"
    head["tags"] = ["herdbook", *(["conversational"] if station == "sft" else [])]
    sources = [*((run.funnel or {}).get("sources", {}))]
    if sources:
        head["datasets"] = sources
    scores = _scores(run, station)
    if scores:
        head["metrics"] = list(dict.fromkeys("accuracy" if metric.startswith("acc") else metric for _, metric, _, _ in scores))
        head["model-index"] = [{"name": f"{run.name}-{station}", "results": _index(scores)}]
    return head


def main_languages(run: Run) -> list[str]:
    """The languages that make up at least a hundredth of what was read, the largest first."""
    found: dict[str, Any] = (run.funnel or {}).get("languages", {})
    total = sum(row["bytes"] for row in found.values())
    kept = [(row["bytes"], code) for code, row in found.items() if total and row["bytes"] / total >= _SHARE_OF_A_LANGUAGE]
    return [code for _, code in sorted(kept, reverse=True)]


def _scores(run: Run, station: str) -> list[tuple[str, str, float, float | None]]:
    """Task, metric, value and standard error of every score of this model."""
    found = (run.results or {}).get("models", {}).get(station, {}).get("results", {})
    rows: list[tuple[str, str, float, float | None]] = []
    for task, scores in found.items():
        for metric in _METRICS:
            if f"{metric},none" in scores:
                error = scores.get(f"{metric}_stderr,none")
                rows.append(
                    (task, metric, float(scores[f"{metric},none"]), float(error) if isinstance(error, int | float) else None)
                )
    return rows


def _index(scores: list[tuple[str, str, float, float | None]]) -> list[Json]:
    """The scores as the hub's model-index wants them: one entry a task with its metrics."""
    tasks: dict[str, list[Json]] = {}
    for task, metric, value, _ in scores:
        kind = "accuracy" if metric.startswith("acc") else metric
        tasks.setdefault(task, []).append({"type": kind, "name": _METRICS[metric], "value": round(value, 4)})
    return [
        {"task": {"type": "text-generation"}, "dataset": {"name": task, "type": task}, "metrics": metrics}
        for task, metrics in tasks.items()
    ]


def _lead(manifest: Json, station: str) -> str:
    parameters = manifest["counts"].get("parameters")
    size = f" with {n.in_words(parameters)} parameters" if parameters else ""
    kind = "fine-tuned on conversations" if station == "sft" else "that continues text"
    return f"A language model{size} {kind}, raised with herdbook."


def _sections(run: Run, folder: Path, manifest: Json, station: str, license_: License) -> list[Section]:
    sections = [Section("use", "Use", _use(folder, station))]
    counts = manifest["counts"]
    rows: list[list[Words]] = [[label, shown(counts[key])] for label, key, shown in _FACTS if counts.get(key) is not None]
    if rows:
        sections.append(Section("training", "Training", [Table(("", ""), rows, "lr")]))
    if run.funnel is not None:
        sections.append(Section("text", "Text", _text(run, run.funnel)))
    scores = _scores(run, station)
    if scores:
        cells: list[list[Words]] = [
            [Code(task), _METRICS[metric], n.with_error(value, error)] for task, metric, value, error in scores
        ]
        note = "± is one standard error. Measured on documents that were held out of training."
        sections.append(
            Section("scores", "Scores", [Table(("task", "metric", "score"), cells, "llr"), Paragraph(note, note=True)])
        )
    sections.append(Section("limits", "Limits", _limits(counts)))
    words = "What goes in decides: the model may be used as the strictest of these licences allows. "
    went_in: list[Words] = [(Strong(row["id"]), f" {row['name']}") for row in manifest["licenses"]]
    sections.append(Section("licence", "Licence", [Paragraph((words, Strong(f"{license_.in_words()}."))), Bullets(went_in)]))
    return sections


_FACTS = (
    ("parameters", "parameters", n.count),
    ("tokens", "tokens", n.count),
    ("steps", "steps", n.whole),
    ("computation", "flops", n.flops),
    ("time", "train_s", n.seconds),
    ("final loss, nats a token", "final_loss", n.fixed),
)


def _use(folder: Path, station: str) -> list[Block]:
    question = "What does `json.dumps` do?"
    call = f'lm.chat([{{"role": "user", "content": "{question}"}}])' if station == "sft" else 'lm.generate("The history of")'
    lines = ["import herdbook as hb", "", f'lm = hb.load("{station}")  # the path of this folder', f"print({call})"]
    blocks: list[Block] = [Command("\n".join(lines), "python")]
    kind = read_json(folder / "config.json", what="model config").get("model_type")
    if kind not in (None, "herdbook"):  # a shape that transformers has no class for is saved under our own type
        words = ("It is a ", Code(str(kind)), " model, and opens with ", Code("AutoModelForCausalLM.from_pretrained"), " too.")
        blocks.append(Paragraph(words))
    return blocks


def _text(run: Run, funnel: Json) -> list[Block]:
    rows: list[list[Words]] = [
        [
            name,
            source.get("description") or "",
            source["license"],
            n.whole(source["documents_out"]),
            n.size(source["bytes_out"]),
        ]
        for name, source in funnel["sources"].items()
    ]
    blocks: list[Block] = [Table(("source", "what it is", "licence", "documents", "text"), rows, "lllrr")]
    languages = [language_name(code) for code in main_languages(run)]
    return [*blocks, *([Paragraph(f"Languages: {', '.join(languages)}.")] if languages else [])]


def _limits(counts: Json) -> list[Block]:
    words = "It repeats what its texts say and how they say it, with their errors and their slant, and it states falsehoods "
    words += "fluently. It was not tested for safety."
    parameters = counts.get("parameters")
    if parameters and parameters < 1e9:
        peer = published()["llama2"]
        words += f" With {n.in_words(parameters)} parameters (the smallest {peer['name'].rpartition(' ')[0]} has "
        words += f"{n.in_words(peer['parameters'])}) it is for study: do not rely on anything it says."
    return [Paragraph(words)]


def _footer(manifest: Json) -> str:
    code = manifest["code"]
    commit = f", commit {code['commit'][:12]}" if code.get("commit") else ""
    return f"Made with herdbook {code['herdbook']}{commit}. The files' hashes and the chain behind them are in pedigree.json."
