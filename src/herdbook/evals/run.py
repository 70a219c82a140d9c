"""The evaluation station: measures models on a corpus' held-out documents and lets them answer the prompts of the recipe.

It leaves
- `results.json`: lm-eval's results layout for each model (`results`, `group_subtasks`, `configs`, `versions`, `n-samples`,
  `higher_is_better`, `n-shot`), with chance levels in each task's `metadata`;
- `samples.jsonl`: one line a document or question, with the choices and their log-likelihoods;
- `generations.json`: what the models wrote for the prompts.

- `answers/MODEL/TASK.jsonl`: what the model answered to each question of a set, from which a run that was cut off goes on.

Tasks are of two kinds: those that a corpus' held-out documents make (`bpb`, `choice`), and those on published sets in local
files (`sets`). A task whose source the corpus lacks is skipped; the reason stands in `results.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herdbook import pedigree
from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.evals import bpb, choice
from herdbook.evals.config import HELD_OUT, EvalConfig, PromptConfig
from herdbook.evals.scoring import Subject
from herdbook.evals.sets import Sets, load_sets, measure_sets
from herdbook.files import atomic_path, sha256_json, write_json

if TYPE_CHECKING:
    from herdbook.infer.engine import Engine
    from herdbook.tokenizer import Tokenizer


@dataclass
class Material:
    """What all models are measured on: drawn once, so that their figures compare."""

    sample: bpb.Sample | None = None
    quizzes: list[choice.Quiz] = field(default_factory=list)
    sets: Sets = field(default_factory=Sets)
    skipped: dict[str, str] = field(default_factory=dict)


def evaluate(cfg: EvalConfig, models: dict[str, Path], out: Path, terminal: Terminal, *, corpus: Path | None = None) -> None:
    """Evaluate models and write the results to `out`.

    Args:
        models: model folders by the name the results should call them.
        corpus: the folder with the held-out documents; without one only the prompts are answered.

    Raises:
        UserError: a model folder or the corpus is broken, or nothing is left to measure.
    """
    if not models:
        raise UserError("there is no model to evaluate", where="eval", todo="give the path of a model folder")
    with pedigree.record(out, "eval", cfg.model_dump(mode="json")) as rec:
        for name, path in models.items():
            rec.add_input(path, name)
            if pedigree.exists(path):
                rec.inherit_licenses(path)
        if corpus is not None:
            rec.add_input(corpus, "corpus")
        material = gather(cfg, corpus, terminal)
        if material.sample is None and not material.quizzes and not material.sets.tasks and not cfg.prompts:
            reasons = "; ".join(f"{task}: {reason}" for task, reason in material.skipped.items())
            raise UserError(
                f"nothing is left to measure ({reasons or 'no tasks'})", where="eval", todo="name tasks under eval.tasks"
            )
        results: dict[str, Any] = {}
        rows: list[dict[str, Any]] = []
        generations: list[dict[str, Any]] = []
        for name, path in models.items():
            engine, tokenizer, context = load_model(path)
            chat = tokenizer.chat_template is not None
            subject = Subject(name, engine, tokenizer, context, chat, writer=engine, identity=_identity(path))
            logs = out / "answers" / name
            results[name], found = measure(cfg, subject, material, terminal, chat_renderer(tokenizer), logs)
            results[name]["config"] |= {"model_path": str(path), "context": context}
            rows += found
            generations += generate(cfg, subject, engine, tokenizer, terminal)
        write_json(out / "results.json", {"models": results, "skipped": material.skipped})
        write_json(out / "generations.json", generations)
        write_rows(out / "samples.jsonl", rows)
        rec.counts |= {"models": len(models), "samples": len(rows), "generations": len(generations)}
        show(results, terminal)


def gather(cfg: EvalConfig, corpus: Path | None, terminal: Terminal) -> Material:
    """Draw the documents and questions of the configured tasks."""
    material = Material()
    material.sets = load_sets(cfg, [task for task in cfg.tasks if task not in HELD_OUT])
    material.skipped |= material.sets.skipped
    for task in (task for task in cfg.tasks if task in HELD_OUT):
        if corpus is None and material.sets.tasks:
            continue  # who asks for published sets need not have a corpus
        if corpus is None:
            material.skipped[task] = "no corpus with held-out documents was given"
        elif task == bpb.TASK:
            sample = bpb.heldout_sample(corpus, documents=cfg.documents, document_bytes=cfg.document_bytes, seed=cfg.seed)
            if sample.documents:
                material.sample = sample
            else:
                material.skipped[task] = "the corpus holds no document back (corpus.heldout)"
        else:
            source = cfg.docstring_source if task == "docstring_choice" else cfg.prose_source
            quiz = choice.build_quiz(task, corpus, source, limit=cfg.limit or choice.QUESTIONS, seed=cfg.seed)
            if quiz.questions:
                material.quizzes.append(quiz)
            else:
                material.skipped[task] = f"the held-out documents of the source {source!r} yield no questions"
    for task, reason in material.skipped.items():
        terminal.say(f"  {task} is skipped: {reason}")
    return material


def load_model(path: Path) -> tuple[Engine, Tokenizer, int]:
    """A model as an inference engine, its tokenizer, and the most tokens it reads at once."""
    from herdbook.infer.engine import Engine
    from herdbook.interop.doors import load_decoder, require_tokenizer

    model, tokenizer = load_decoder(path), require_tokenizer(path)
    return Engine(model, tokenizer), tokenizer, model.cfg.context


def _identity(path: Path) -> str:
    """What tells a model's weights from others in the same place: its pedigree's hash, else sizes and times of its files."""
    if pedigree.exists(path):
        return sha256_json(pedigree.read(path))
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    return sha256_json([[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files])


def chat_renderer(tokenizer: Tokenizer) -> Callable[[str], str]:
    """Puts a question into the model's chat format, up to where its answer begins."""
    return lambda question: tokenizer.render_chat([{"role": "user", "content": question}])


def measure(
    cfg: EvalConfig, subject: Subject, material: Material, terminal: Terminal, render: Callable[[str], str], logs: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All tasks on one model.

    Returns:
        the results in lm-eval's layout, and one row a document or question.
    """
    found: dict[str, Any] = {
        key: {} for key in ("results", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
    }
    found["config"] = {
        "model": subject.name,
        "prompts": "chat" if subject.chat else "base",
        "limit": cfg.limit,
        "random_seed": cfg.seed,
    }
    rows: list[dict[str, Any]] = []
    if material.sample is not None:
        figures, log = bpb.bits_per_byte(subject, material.sample, terminal, overlap=cfg.overlap, seed=cfg.seed)
        _note_bits(found, figures, material.sample, cfg)
        rows += log
    for quiz in material.quizzes:
        log = choice.multiple_choice(subject, quiz, terminal, render)
        _note_choice(found, log, quiz, subject)
        rows += log
    rows += measure_sets(cfg, material.sets, subject, found, logs, terminal)
    return found, rows


def _note_bits(found: dict[str, Any], figures: dict[str, Any], sample: bpb.Sample, cfg: EvalConfig) -> None:
    """Bits per byte as a group with one task a source."""
    names = {source: f"{bpb.TASK}_{source}" for source in figures["sources"]}
    found["group_subtasks"][bpb.TASK] = list(names.values())
    settings = {"output_type": "loglikelihood_rolling", "document_bytes": cfg.document_bytes, "overlap": cfg.overlap}
    everything = sum(sample.source_documents.values())
    _note_bits_of(found, bpb.TASK, "bits per byte", figures["overall"], everything, settings)
    for source, task in names.items():
        _note_bits_of(found, task, f" - {source}", figures["sources"][source], sample.source_documents[source], settings)


def _note_bits_of(
    found: dict[str, Any], task: str, alias: str, figures: dict[str, Any], available: int, settings: dict[str, Any]
) -> None:
    found["results"][task] = {"alias": alias, "bits_per_byte,none": figures["bits_per_byte"],
                              "bits_per_byte_stderr,none": figures.get("stderr", "N/A")}  # fmt: skip
    metadata = {"version": bpb.VERSION, "bytes": figures["bytes"], "tokens": figures["tokens"]}
    _note_task(found, task, bpb.VERSION, {"bits_per_byte": False}, (available, figures["documents"]), settings, metadata)


def _note_choice(found: dict[str, Any], rows: list[dict[str, Any]], quiz: choice.Quiz, subject: Subject) -> None:
    """A quiz; with questions of both kinds also as a group of those whose name says it and those whose name does not."""
    parts = {"named": [row for row in rows if row["named"]], "unnamed": [row for row in rows if not row["named"]]}
    tasks = {quiz.task: rows}
    if all(parts.values()):
        tasks |= {f"{quiz.task}_{part}": some for part, some in parts.items()}
        found["group_subtasks"][quiz.task] = [f"{quiz.task}_{part}" for part in parts]
    for task, some in tasks.items():
        scores = choice.summary(some)
        alias = quiz.task.replace("_", " ") if task == quiz.task else f" - {task.removeprefix(quiz.task)[1:]}"
        figures: dict[str, Any] = {"alias": alias}
        for metric in ("acc", "acc_norm"):
            figures[f"{metric},none"] = scores[metric]
            figures[f"{metric}_stderr,none"] = scores.get(f"{metric}_stderr", "N/A")
        found["results"][task] = figures
        metadata = {"version": choice.VERSION, "chance": 1 / choice.CHOICES, "prompts": "chat" if subject.chat else "base",
                    "source": quiz.source, "left_out": quiz.left_out}  # fmt: skip
        better, settings = {"acc": True, "acc_norm": True}, {"output_type": "multiple_choice"}
        _note_task(found, task, choice.VERSION, better, (quiz.available, len(some)), settings, metadata)


def _note_task(
    found: dict[str, Any], task: str, version: int, better: dict[str, bool], counted: tuple[int, int],
    settings: dict[str, Any], metadata: dict[str, Any],
) -> None:  # fmt: skip
    found["configs"][task] = {"task": task, "num_fewshot": 0, **settings, "metadata": metadata}
    found["versions"][task] = version
    found["n-shot"][task] = 0
    found["higher_is_better"][task] = better
    found["n-samples"][task] = {"original": counted[0], "effective": counted[1]}


def generate(
    cfg: EvalConfig, subject: Subject, engine: Engine, tokenizer: Tokenizer, terminal: Terminal
) -> list[dict[str, Any]]:
    """The model's answers to the prompts that are meant for it, one row a prompt."""
    from herdbook.infer.config import Sampling

    wanted: tuple[str, ...] = ("chat", "both") if subject.chat else ("completion", "both")
    prompts = [prompt for prompt in cfg.prompts if prompt.mode in wanted]
    if not prompts:
        return []
    kind, render = ("chat", chat_renderer(tokenizer)) if subject.chat else ("completion", lambda text: text)
    start = [] if subject.chat else subject.separator
    settings = [_sampling(prompt, cfg.seed + number) for number, prompt in enumerate(prompts)]
    with terminal.progress(f"{subject.name}: {len(prompts)} sample generations") as progress:
        completions = engine.generate(
            [[*start, *tokenizer.encode(render(prompt.text))] for prompt in prompts],
            [Sampling(**row, truncate_prompt=True) for row in settings],
        )
        progress.advance(len(prompts))
    return [
        {"model": subject.name, "kind": kind, "prompt": prompt.text, "text": completion.text,
         "finish_reason": completion.finish_reason, "sampling": row}
        for prompt, completion, row in zip(prompts, completions, settings, strict=True)
    ]  # fmt: skip


def _sampling(prompt: PromptConfig, seed: int) -> dict[str, Any]:
    return {**prompt.model_dump(include={"max_tokens", "temperature", "top_k", "top_p", "min_p"}), "seed": seed}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON lines, whole or not at all."""
    with atomic_path(path) as aside, aside.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def show(results: dict[str, Any], terminal: Terminal) -> None:
    """The scores as a table for the person at the terminal."""
    lines = []
    for name, found in results.items():
        for task, scores in found["results"].items():
            for metric in found["higher_is_better"][task]:
                error = scores[f"{metric}_stderr,none"]
                spread = f"{error:.3f}" if isinstance(error, float) else ""
                chance = found["configs"][task]["metadata"].get("chance", "")
                chance = f"{chance:.3g}" if isinstance(chance, float) else chance
                samples = found["n-samples"][task]["effective"]
                lines.append(
                    (name, scores["alias"].rstrip(), metric, f"{scores[f'{metric},none']:.3f}", spread, chance, samples)
                )
    terminal.table(("model", "task", "metric", "score", "± error", "chance", "samples"), lines)
