"""Forms: compiled once, beside the engine, and what cannot be compiled is told at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import llguidance
import openai
import pytest

from herdbook.serve.config import Limits

from .conftest import Live, live, make_served

STREAM: dict[str, Any] = {"prompt": "x", "max_tokens": 150, "extra_body": {"ignore_eos": True}, "seed": 1, "stream": True}


class Matchers:
    """The library's class; a form with the word `slow` waits until it is let go, as a long compilation would."""

    def __init__(self) -> None:
        self._library = llguidance.LLMatcher
        self.compiled: list[tuple[str, str]] = []
        self.go = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def __call__(self, vocabulary: Any, grammar: str, **more: Any) -> Any:
        self.compiled.append((threading.current_thread().name, grammar))
        if "slow" in grammar:
            assert self.go.wait(20)
        return self._library(vocabulary, grammar, **more)


@pytest.fixture
def matchers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Matchers]:
    """Counts what is compiled."""
    found = Matchers()
    monkeypatch.setattr(llguidance, "LLMatcher", found)
    yield found
    found.go.set()


def ask(house: Live, regex: str, **more: Any) -> httpx.Response:
    body = {"prompt": "x", "regex": regex, "max_tokens": 20, "seed": 1, **more}
    return httpx.post(house.url + "/v1/completions", json=body, timeout=20)


def test_a_form_is_compiled_once_and_not_by_the_engine(matchers: Matchers) -> None:
    with live(make_served("base")) as house:
        for _ in range(3):
            found = ask(house, "(one|two)[0-9]", n=2)
            assert all(choice["text"][:3] in {"one", "two"} for choice in found.json()["choices"])
        ask(house, "(one|two)[0-9]", prompt=["x", "y"])
    assert [name.rstrip("0123456789") for name, _ in matchers.compiled] == ["herdbook-forms_"]


def test_others_go_on_while_a_form_is_compiled(matchers: Matchers) -> None:
    with live(make_served("base", slow=0.005)) as house:
        stream = iter(house.client().completions.create(model="base", **STREAM))
        next(stream)
        late: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: late.append(ask(house, "slowly")))
        asking.start()
        while not matchers.compiled:
            time.sleep(0.005)
        assert list(stream)[-1].choices[0].finish_reason == "length"
        assert house.client().completions.create(model="base", prompt="x", max_tokens=3).choices
        assert not late, "it is still being compiled"
        matchers.go.set()
        asking.join()
        assert late[0].json()["choices"][0]["text"] == "slowly"


def test_what_takes_too_long_is_refused_and_so_is_who_waits_for_it(matchers: Matchers) -> None:
    with live(make_served("base"), limits=Limits(form_seconds=0.3)) as house:
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(ask(house, "slow+")))
        asking.start()
        while not matchers.compiled:
            time.sleep(0.005)
        behind = ask(house, "quick")
        asking.join()
        assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (400, "form_too_complex")
        assert (behind.status_code, behind.json()["error"]["code"]) == (503, "forms_queue_full")
        assert "retry-after" in behind.headers
        matchers.go.set()
        assert ask(house, "quick").json()["choices"][0]["text"] == "quick"
        assert house.quiet()


@pytest.mark.parametrize(
    ("wrong", "param"),
    [({"regex": "(("}, "regex"), ({"grammar": "start: nowhere"}, "grammar"),
     ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}}, "response_format"),
     ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"multipleOf": 999_983}}}}, "response_format")],
)  # fmt: skip
def test_what_cannot_be_compiled_never_reaches_the_engine(wrong: dict[str, Any], param: str) -> None:
    with live(make_served("base")) as house:
        with pytest.raises(openai.BadRequestError) as caught:
            house.client().completions.create(model="base", prompt="x", extra_body=wrong)
        assert caught.value.param == param
        stats = house.server.driver.stats()["base"]
        assert (stats.steps, stats.waiting, stats.prompt_tokens) == (0, 0, 0)
