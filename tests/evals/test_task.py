from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from herdbook.config import ConfigError
from herdbook.errors import UserError
from herdbook.evals.expressions import expression, template
from herdbook.evals.items import load_items
from herdbook.evals.prompts import Protocol, questions
from herdbook.evals.suite import load_suite, suite_names
from herdbook.evals.task import load_task, task_names
from herdbook.facts.evaluation_sets import evaluation_sets

OWN = {
    "title": "Colours", "files": {"test": ["colours.jsonl"]}, "kind": "choice",
    "layouts": [{"needs": ["thing"], "item": {"thing": "thing", "choices": "options", "gold": "options.index(right)"}}],
    "prompt": "The colour of {{ thing }} is", "metrics": ["acc"],
}  # fmt: skip
ROWS = [
    {"thing": "grass", "options": ["red", "green"], "right": "green"},
    {"thing": "blood", "options": ["red", "green"], "right": "red"},
    {"thing": "coal", "options": ["white", "black", "blue"], "right": "black"},
]


def own(folder: Path, **changes: object) -> str:
    (folder / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    (folder / "mine.yaml").write_text(yaml.safe_dump({**OWN, **changes}), encoding="utf-8")
    return str(folder / "mine.yaml")


@pytest.mark.parametrize("name", task_names())
def test_every_built_in_task_is_sound(name: str) -> None:
    task = load_task(name)
    assert task.name == name
    assert task.set in evaluation_sets()


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_is_sound(name: str) -> None:
    suite = load_suite(name)
    tasks = [entry.load() for entry in suite.entries]
    assert len({task.name for task in tasks}) == len(tasks)


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    task = load_task(own(tmp_path))
    items = load_items(task, None, with_spare=False)
    asked = {one.item.fields["thing"]: one for one in questions(task, items, Protocol())}
    assert asked["grass"].requests == (("The colour of grass is", " red"), ("The colour of grass is", " green"))
    assert asked["coal"].gold == 1
    assert set(items.files) == {str(tmp_path / "colours.jsonl")}


def test_examples_from_the_scored_split_leave_the_item_out(tmp_path: Path) -> None:
    task = load_task(own(tmp_path, shots={"count": 2}))
    for question in questions(task, load_items(task, None, with_spare=True), Protocol()):
        assert len(question.examples) == 2
        assert question.item.id not in question.examples
        assert question.requests[0][0].count("\n\n") == 2
    with pytest.raises(UserError, match="3 examples are wanted, and there are 2"):
        greedy = task.model_copy(update={"shots": task.shots.model_copy(update={"count": 3})})
        list(questions(greedy, load_items(greedy, None, with_spare=True), Protocol()))


def test_first_examples_are_the_same_for_all(tmp_path: Path) -> None:
    task = load_task(own(tmp_path, shots={"count": 1, "draw": "first"}))
    asked = list(questions(task, load_items(task, None, with_spare=True), Protocol(shuffle=False)))
    assert [one.examples for one in asked] == [("colours:2",), ("colours:1",), ("colours:1",)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ["f1"]}, "f1 is no metric of kind choice"),
        ({"prompt": "{{ thing"}, "not Jinja"),
        ({"gold": "1 +"}, "not Jinja"),
        ({"set": "mmlu"}, "either a set or files"),
        ({"titel": "x"}, "titel"),
    ],
)
def test_a_broken_file_says_what_is_wrong(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises((ConfigError, UserError), match=message):
        load_task(own(tmp_path, **changes))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"what": 1}, "this row has the fields what, and \\(thing\\) are known"),
        ({"thing": "x", "options": ["a"], "right": "b"}, "cannot be computed"),
        ({"thing": "x", "options": [], "right": "b"}, "cannot be computed"),
    ],
)
def test_a_row_that_does_not_fit_is_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    name = own(tmp_path)
    (tmp_path / "colours.jsonl").write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        load_items(load_task(name), None, with_spare=False)
    assert "colours.jsonl:2" in str(caught.value)


def test_names_that_are_not_known() -> None:
    with pytest.raises(UserError, match="did you mean hellaswag"):
        load_task("helaswag")
    with pytest.raises(UserError, match="did you mean leaderboard-v1"):
        load_suite("leaderbord-v1")


def test_templates_reach_nothing_of_python() -> None:
    with pytest.raises(UserError):
        expression("().__class__.__bases__")({})
    with pytest.raises(UserError):
        template("{{ x.__class__ }}")({"x": 1})
    with pytest.raises(UserError):
        template("{{ missing }}")({"x": 1})
    assert expression("text | find('#### (-?[0-9.,]+)')")({"text": "so\n#### 1,2"}) == "1,2"
    assert expression("text | sub('a+', 'b')")({"text": "caat"}) == "cbt"
