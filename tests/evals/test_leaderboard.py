"""The first leaderboard's prompts, character for character.

The hashes are of what lm-eval's own classes at commit b281b0921 made of the sets in `made_sets`: `fewshot_context` and
`construct_requests` for each document after `random.Random(42).shuffle`, with the leaderboard's shots; written as JSON lists of
[context, continuation]. Of TruthfulQA only the targets of mc2 are kept, and a text to write has "" as its continuation.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from herdbook.evals.items import load_items
from herdbook.evals.measure import _values
from herdbook.evals.metrics import Answer
from herdbook.evals.prompts import Question, questions
from herdbook.evals.suite import load_suite
from herdbook.evals.written import answer

from .made_sets import write_sets

THEIRS = {
    "arc_challenge": "c3daca9dc4f7f77e01b726a076e92b772a0928d2d0a1e69e04dda71aa5fcca33",
    "hellaswag": "2d6c5d9423ac56839dd7b609e0dc58273bdd4c109994b22e56f402f8e0827362",
    "winogrande": "1397acf378578044a4cf777f65e7b4b8fdabb1c1a6d2d302c2ea5bd4a8f1f2d4",
    "gsm8k": "995eb87eb2c9a1aeca9d5480a003f49b182f28557b4af692df78955d995e5e03",
    "mmlu_abstract_algebra": "c18a0dd199599f8fe3b351c014097ff5c9daa761eee096d1597362b4c4fb0909",
    "mmlu_world_religions": "31d40fe6ce084832930810f8a57eb5fc857f6cd3b8f1c9e82d24e8a89ba9a55d",
    "truthfulqa_mc2": "8acde8a640c3fc6e36806c90a4ef04430c77736fc122e67a41e2e6f913476bd2",
}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Question]]:
    """The questions of all tasks, by task and subject."""
    folder, suite = write_sets(tmp_path_factory.mktemp("sets")), load_suite("leaderboard-v1")
    found: dict[str, list[Question]] = {}
    for entry in suite.entries:
        task = entry.load()
        items = load_items(task, folder, with_spare=task.shots.count > 0)
        for question in questions(task, items, suite.settings()):
            found.setdefault("_".join(filter(None, (task.name, question.item.part))), []).append(question)
    return found


@pytest.mark.parametrize("name", THEIRS)
def test_the_prompts_are_theirs(name: str, asked: dict[str, list[Question]]) -> None:
    mine = json.dumps([question.requests for question in asked[name]], ensure_ascii=False)
    assert hashlib.sha256(mine.encode()).hexdigest() == THEIRS[name]


def test_a_limit_takes_the_first_after_the_shuffle(tmp_path: Path, asked: dict[str, list[Question]]) -> None:
    folder, suite = write_sets(tmp_path), load_suite("leaderboard-v1")
    task = suite.entries[0].load()
    some = list(questions(task, load_items(task, folder, with_spare=True), suite.settings(), 4))
    assert [one.requests for one in some] == [one.requests for one in asked["arc_challenge"][:4]]


def test_the_stop_at_a_colon_loses_answers() -> None:
    """The commit's quirk: `until` begins with a colon, so that "The answer is: #### 5" is cut before its number."""
    task = load_suite("leaderboard-v1").entries[5].load()
    assert task.until == [":", "Question:", "Question"]
    assert answer(task, " 2 + 3 = 5\n#### 1,005") == "1005"
    assert answer(task, " The answer is") is None


def test_norms_and_mass(asked: dict[str, list[Question]]) -> None:
    suite = {entry.task: entry.load() for entry in load_suite("leaderboard-v1").entries}
    question = asked["arc_challenge"][0]
    said = [(-float(len(text)) * (1 if place == question.gold else 2), 1, False) for place, text in enumerate(question.choices)]
    assert _values(suite["arc_challenge"], question, said)["acc_norm"] == 1.0
    true = asked["truthfulqa_mc2"][0]
    assert isinstance(true.gold, tuple)
    even = _values(suite["truthfulqa_mc2"], true, [(-800.0, 3, False)] * len(true.choices))["mc2"]
    assert even == pytest.approx(sum(true.gold) / len(true.gold))  # where probabilities alone would be 0 / 0
    assert Answer(-1.0, 2, True).tokens == 2
