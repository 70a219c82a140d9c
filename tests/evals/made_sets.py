"""Made-up items in the columns that the hub has for the leaderboard's sets, the same on every machine."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

_NAMES = "river stone lamp cloud paper engine garden mirror copper violin harbor winter candle basket feather tunnel"
WORDS = _NAMES.split()
Row = dict[str, Any]


def _words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def _arc(split: str, count: int) -> list[Row]:
    rng, rows = random.Random("arc" + split), []
    for index in range(count):
        size = rng.choice((3, 4, 5))
        labels = list("12345" if rng.random() < 0.3 else "ABCDE")[:size]
        question = _words(rng, 6).capitalize() + "?"
        texts = [_words(rng, rng.randint(1, 4)) for _ in labels]
        rows.append(
            {"id": f"{split}_{index}", "question": question, "choices": {"text": texts, "label": labels},
             "answerKey": rng.choice(labels)}
        )  # fmt: skip
    return rows


def _hellaswag(split: str, count: int) -> list[Row]:
    rng, rows = random.Random("hella" + split), []
    for index in range(count):
        how = rng.random() < 0.5
        label = _words(rng, 2).title()
        if how:
            start = "[header] How to " + _words(rng, 3) + " [title] " + _words(rng, 3) + " [step] " + _words(rng, 4)
        else:
            start = "A " + _words(rng, 6) + "."
        rest = "" if how else _words(rng, 2)
        endings = [
            (" [substeps] " if how else "") + _words(rng, 5) + " [step] " + _words(rng, 2) + ".  " + _words(rng, 1)
            for _ in range(4)
        ]
        rows.append(
            {"ind": index, "activity_label": label, "ctx_a": start, "ctx_b": rest, "endings": endings,
             "label": str(rng.randrange(4))}
        )  # fmt: skip
    return rows


def _winogrande(split: str, count: int) -> list[Row]:
    rng, rows = random.Random("wino" + split), []
    for _ in range(count):
        one, two = rng.sample(WORDS, 2)
        sentence = f"The {one} and the {two} met {_words(rng, 3)} because _ was {_words(rng, 2)} ."
        rows.append({"sentence": sentence, "option1": one, "option2": two, "answer": rng.choice("12")})
    return rows


def _gsm8k(split: str, count: int) -> list[Row]:
    rng, rows = random.Random("gsm" + split), []
    for _ in range(count):
        x, y = rng.randint(2, 2000), rng.randint(2, 90)
        question = f"There are {x} {_words(rng, 1)}s and {y} more. How many?"
        rows.append({"question": question, "answer": f"{x} + {y} = <<{x}+{y}={x + y}>>{x + y}\n#### {x + y:,}"})
    return rows


def _mmlu(subject: str, split: str, count: int) -> list[Row]:
    rng = random.Random("mmlu" + subject + split)
    return [
        {"question": " " + _words(rng, 7) + "? ", "subject": subject, "choices": [_words(rng, 2) for _ in range(4)],
         "answer": rng.randrange(4)}
        for _ in range(count)
    ]  # fmt: skip


def _truthfulqa(count: int) -> list[Row]:
    rng, rows = random.Random("truth"), []
    for _ in range(count):
        true, false = rng.randint(1, 3), rng.randint(1, 4)
        texts = [_words(rng, 3) for _ in range(true + false)]
        rows.append(
            {"question": _words(rng, 5) + "?",
             "mc1_targets": {"choices": [texts[0], *texts[true:]], "labels": [1] + [0] * false},
             "mc2_targets": {"choices": texts, "labels": [1] * true + [0] * false}}
        )  # fmt: skip
    return rows


SUBJECTS = ("abstract_algebra", "world_religions")


def sets() -> dict[str, dict[str, list[Row]]]:
    """Rows by split, by the folder that the hub's layout has for the set."""
    return {
        "ai2_arc/ARC-Challenge": {
            "train": _arc("train", 40), "validation": _arc("validation", 9), "test": _arc("test", 15),
        },
        "hellaswag": {"train": _hellaswag("train", 25), "validation": _hellaswag("validation", 12)},
        "winogrande/winogrande_xl": {"train": _winogrande("train", 20), "validation": _winogrande("validation", 12)},
        "gsm8k/main": {"train": _gsm8k("train", 20), "test": _gsm8k("test", 12)},
        "truthful_qa/multiple_choice": {"validation": _truthfulqa(10)},
        **{
            f"mmlu/{subject}": {
                "dev": _mmlu(subject, "dev", 5), "validation": _mmlu(subject, "validation", 7),
                "test": _mmlu(subject, "test", 8),
            }
            for subject in SUBJECTS
        },
    }  # fmt: skip


def write_sets(folder: Path) -> Path:
    """All sets as jsonl below a folder."""
    for name, splits in sets().items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder
