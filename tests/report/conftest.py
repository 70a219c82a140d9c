"""A hand-made run folder in the formats of the stations. Its numbers are made up; they only have to hang together."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from herdbook import pedigree
from herdbook.files import write_json, write_text

HOSTILE = '<script>alert("x")</script><img src=http://evil.example/a.png onerror=alert(1)> & | `code` **bold**'
SOURCES = {
    "pydoc": ("Python's documentation, rendered to HTML by pydoc", "PSF-2.0", 212, 118, 4, 8_100_000, 2_900_000),
    "docstrings": ("Docstrings of installed packages", "BSD-3-Clause", 41_802, 30_115, 611, 15_200_000, 11_800_000),
    "wikipedia": ("Lead sections of vital articles", "CC-BY-SA-4.0", 9_870, 9_611, 190, 4_900_000, 4_750_000),
}
STEPS = [
    ("extract", "main content", 0.998, {"no text": 90}),
    ("language", "language", 0.97, {"below_min_score": 1403}),
    ("quality", "quality rules", 0.90, {"too_few_words": 2811, "no_stop_words": 640}),
    ("repetition", "repetition rules", 0.885, {"duplicate_lines": 702}),
    ("exact", "exact duplicates", 0.83, {"exact_duplicate": 2903}),
    ("minhash", "near-duplicates", 0.768, {"near_duplicate": 3190}),
]


def _funnel() -> dict[str, Any]:
    read = sum(row[2] for row in SOURCES.values())
    kept = sum(row[3] for row in SOURCES.values())
    steps: list[dict[str, Any]] = []
    before, bytes_before = read, 28_200_000
    for name, title, share, reasons in STEPS:
        after = kept if name == "minhash" else round(read * share)
        examples = [
            {"id": f"pydoc/{name}", "url": "https://docs.example/x?a=1&b=2", "reason": next(iter(reasons)), "value": 0.4127,
             "threshold": 0.65, "excerpt": f"An example of what {name} removed. {HOSTILE}"},
            {"id": "docstrings/torch.add", "url": "pydoc://torch.add", "reason": next(iter(reasons)), "value": 12,
             "threshold": 50, "excerpt": "See :func:`torch.add`."},
        ]  # fmt: skip
        steps.append({"step": name, "title": title, "documents_in": before, "documents_out": after, "bytes_in": bytes_before,
                      "bytes_out": int(28_200_000 * share * 0.8), "cpu_s": 3.2 * share, "reasons": reasons,
                      "examples": examples})  # fmt: skip
        before, bytes_before = after, int(28_200_000 * share * 0.8)
    keys = ("description", "license", "documents_in", "documents_out", "heldout_documents", "bytes_in", "bytes_out")
    return {
        "documents_in": read, "documents_out": kept, "bytes_in": 28_200_000, "bytes_out": 19_450_000,
        "sources": {name: dict(zip(keys, row, strict=True)) | {"heldout_bytes": 99} for name, row in SOURCES.items()},
        "steps": steps,
        "languages": {"en": {"documents": 45_012, "bytes": 23_411_000}, "fr": {"documents": 3_320, "bytes": 1_780_000},
                      "es": {"documents": 3_290, "bytes": 1_702_000}, "de": {"documents": 41, "bytes": 12_000}},
    }  # fmt: skip


def _metrics(steps: int, start: float, end: float, tokens_per_step: int) -> str:
    lines = []
    for step in range(1, steps + 1):
        loss = end + (start - end) * math.exp(-6 * step / steps) + 0.12 * math.sin(step * 12.9898) * math.exp(-step / steps)
        row: dict[str, Any] = {"step": step, "tokens": step * tokens_per_step, "loss": round(loss, 4), "grad_norm": 0.8,
                               "lr": 1e-3 * (1 - 0.9 * step / steps), "tokens_per_s": 21_500 + 300 * math.sin(step),
                               "mfu": 0.47, "elapsed_s": step * 0.4}  # fmt: skip
        if step % (steps // 8) == 0:
            row |= {"val_loss": round(loss + 0.06, 4), "val_bits_per_byte": round((loss + 0.06) / math.log(2) / 3.1, 4)}
        lines.append(json.dumps(row))
    return "\n".join(lines) + "\n"


def _scores(bits: float, choice: float, prompts: str) -> dict[str, Any]:
    tasks: dict[str, Any] = {
        "bits_per_byte": {"alias": "bits per byte", "bits_per_byte,none": bits, "bits_per_byte_stderr,none": 0.021}
    }
    for source, shift in (("docstrings", -0.11), ("pydoc", -0.25), ("wikipedia", 0.42)):
        tasks[f"bits_per_byte_{source}"] = {
            "alias": f" - {source}",
            "bits_per_byte,none": bits + shift,
            "bits_per_byte_stderr,none": 0.033,
        }
    for task, shift in (("docstring_choice", 0.0), ("docstring_choice_named", 0.05), ("docstring_choice_unnamed", -0.13),
                        ("continuation_choice", -0.06)):  # fmt: skip
        tasks[task] = {"alias": task, "acc,none": choice + shift - 0.03, "acc_stderr,none": 0.034,
                       "acc_norm,none": choice + shift, "acc_norm_stderr,none": 0.035}  # fmt: skip
    parts = ["docstring_choice_named", "docstring_choice_unnamed"]
    return {
        "results": tasks,
        "config": {"prompts": prompts, "limit": 200},
        "group_subtasks": {"docstring_choice": parts},
        "configs": {task: {"metadata": {"chance": 0.25}} for task in tasks if "choice" in task},
        "n-samples": {task: {"original": 400, "effective": 200 if "choice" in task else 48} for task in tasks},
        "versions": dict.fromkeys(tasks, 1),
    }


def _plan(parameters: int, tokens: int, steps: int) -> dict[str, Any]:
    return {"parameters": parameters, "parameters_non_embedding": parameters // 2, "tokens": tokens, "steps": steps,
            "tokens_per_step": tokens // steps, "flops_per_token": 6 * parameters, "flops": 6.0 * parameters * tokens,
            "chinchilla_multiple": tokens / (20 * parameters), "epochs": {"docstrings": 0.82, "pydoc": 0.91, "wikipedia": 1.4},
            "estimated_s": 190.0, "memory_bytes": 310_000_000}  # fmt: skip


def _station(run: Path, name: str, inputs: list[str], counts: dict[str, Any], config: dict[str, Any] | None = None) -> None:
    folder = run / name
    with pedigree.record(folder, name, config or {}) as rec:
        for station in inputs:
            rec.add_input(run / station, station)
        rec.counts |= counts
        if name == "corpus":
            rec.add_thing("docstrings of sympy 1.14.0", "source", "ab" * 32, license_id="BSD-3-Clause")
            rec.add_input(run / "pages.warc.gz", "source", license_id="PSF-2.0")
            for _, license_id, *_ in SOURCES.values():
                rec.add_license(license_id)
        elif inputs:
            rec.inherit_licenses(run / inputs[0])
    manifest = pedigree.read(folder)
    walls = {"corpus": 71.3, "tokenizer": 6.2, "tokens": 8.9, "pretrain": 201.4, "sft": 39.0, "eval": 31.5}
    write_json(folder / pedigree.MANIFEST, manifest | {"wall_s": walls[name]})


def make_run(run: Path) -> Path:
    """Write the run folder."""
    run.mkdir(parents=True)
    write_text(run / "recipe.yaml", yaml.safe_dump({"name": "fake", "out": "runs", "description": "A made-up run, for tests."}))
    (run / "pages.warc.gz").write_bytes(b"pages")
    write_json(run / "corpus" / "funnel.json", _funnel())
    builtin = [
        {"name": "pydoc", "builtin": "pydoc"},
        {"name": "docstrings", "builtin": "docstrings"},
        {"name": "wikipedia", "builtin": "prose"},
    ]
    _station(run, "corpus", [], {"documents_in": 51_884, "documents_out": 39_844}, {"sources": builtin})
    groups = {name: {"bytes": 90_000, "tokens": tokens, "bytes_per_token": 90_000 / tokens}
              for name, tokens in (("pydoc", 20_600), ("docstrings", 25_900), ("wikipedia", 27_800))}  # fmt: skip
    languages = {
        "en": {"bytes": 230_000, "tokens": 61_000, "bytes_per_token": 3.77},
        "fr": {"bytes": 22_000, "tokens": 7_900, "bytes_per_token": 2.78},
    }
    write_json(run / "tokenizer" / "report.json", {"vocab_size": 8192, "bytes_per_token": 3.63, "by_source": groups,
               "by_language": languages, "vocabulary_used": 0.941,
               "special_tokens": {}, "trained_on_bytes": 19_000_000})  # fmt: skip
    _station(run, "tokenizer", ["corpus"], {"vocab_size": 8192})
    tokens = {
        name: {"tokens": row[6] // 4, "documents": row[3], "bytes": row[6], "license": row[1], "weight": None, "shards": []}
        for name, row in SOURCES.items()
    }
    write_json(run / "tokens" / "index.json", {"version": 1, "dtype": "uint16", "vocab_size": 8192, "sources": tokens})
    _station(run, "tokens", ["corpus", "tokenizer"], {"tokens": 4_862_500, "documents": 39_039})
    for name, before, steps, size, losses in (
        ("pretrain", "tokens", 480, 8192, (9.0, 2.62)),
        ("sft", "pretrain", 96, 4096, (3.4, 2.31)),
    ):
        write_json(run / name / "plan.json", _plan(4_915_200, steps * size, steps))
        write_text(run / name / "metrics.jsonl", _metrics(steps, *losses, size))
        write_json(run / name / "config.json", {"model_type": "llama"})
        inputs = [before, "tokenizer"] if name == "pretrain" else [before, "corpus"]
        _station(run, name, inputs, {"parameters": 4_915_200, "tokens": steps * size, "steps": steps,
                 "flops": 6.0 * 4_915_200 * steps * size,
                 "final_loss": losses[1], "train_s": 180.2, "peak_flops_per_s": 1.21e11, "mfu": 0.473})  # fmt: skip
    write_json(
        run / "eval" / "results.json",
        {"models": {"pretrain": _scores(1.312, 0.415, "base"), "sft": _scores(1.366, 0.475, "chat")}, "skipped": {}},
    )
    sampling = {"max_tokens": 80, "temperature": 0.8, "top_k": 0, "top_p": 0.95, "min_p": 0.0, "seed": 0}
    write_json(run / "eval" / "generations.json", [
        {"model": "pretrain", "kind": "completion", "prompt": "The history of the city", "finish_reason": "stop",
         "text": " of the second century is the largest of the country.\n\nIt was founded in 1892.", "sampling": sampling},
        {"model": "sft", "kind": "chat", "prompt": "What does `json.dumps` do?", "finish_reason": "stop",
         "text": "Return a string containing the JSON representation of the given object.", "sampling": sampling},
        {"model": "sft", "kind": "chat", "prompt": "What is the Moon?", "finish_reason": "length",
         "text": f"Return the number of {HOSTILE}", "sampling": sampling},
    ])  # fmt: skip
    _station(run, "eval", ["pretrain", "sft", "corpus"], {"models": 2, "samples": 688})
    return run


@pytest.fixture
def make() -> Callable[[Path], Path]:
    """The maker of run folders."""
    return make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A whole run."""
    return make_run(tmp_path / "runs" / "fake")


@pytest.fixture
def hostile() -> str:
    """Text that would do harm where it is not escaped."""
    return HOSTILE
