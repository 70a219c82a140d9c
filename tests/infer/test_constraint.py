"""Texts of a given form, whatever the model would say."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from typing import Any

import llguidance
import pytest

from herdbook.errors import UserError
from herdbook.infer.constraint import guide
from herdbook.infer.engine import Engine, EngineConfig, Sampling

from .conftest import byte_tokenizer, make_decoder

TOKENIZER = byte_tokenizer()
MODEL = make_decoder("gqa", context=200)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "how", [{"temperature": 0}, {"seed": 5}, {"temperature": 2.0, "top_p": 0.9, "n": 3}, {"beams": 2, "n": 2}]
)
@pytest.mark.parametrize("speculate", ["none", "lookup"])
def test_json_is_of_its_schema(how: dict[str, Any], speculate: str) -> None:
    engine = Engine(MODEL, TOKENIZER, EngineConfig.model_validate({"speculate": speculate}))
    done = engine.generate(["x"], Sampling(json_schema=PERSON, max_tokens=120, **how))[0]
    for one in (done, *done.others):
        value = json.loads(one.text)
        assert one.finish_reason == "stop"
        assert set(value) == {"name", "age"}
        assert len(value["name"]) <= 5
        assert 0 <= value["age"] <= 99


def test_expressions_and_grammars() -> None:
    texts = [
        one.text
        for one in Engine(MODEL, TOKENIZER).generate(
            ["x"] * 20, [Sampling(regex="(yes|no)[0-9]{2}", seed=seed, max_tokens=20) for seed in range(20)]
        )
    ]
    assert all(re.fullmatch("(yes|no)[0-9]{2}", text) for text in texts)
    assert len(set(texts)) > 5
    done = Engine(MODEL, TOKENIZER).generate(["x"], Sampling(grammar='start: "a" ("b" | "c") "d"', max_tokens=20))[0]
    assert done.text in {"abd", "acd"}


def test_text_that_may_go_on_ends_by_an_end_token() -> None:
    for seed in range(5):
        sampling = Sampling(regex="a+", seed=seed, max_tokens=50, logit_bias={TOKENIZER.eos_id or 0: 2.0})
        done = Engine(MODEL, TOKENIZER).generate(["x"], sampling)[0]
        assert re.fullmatch("a+", done.text)


@pytest.mark.parametrize("wrong", [{"regex": "(("}, {"grammar": "start: nowhere"}, {"json_schema": {"type": "nothing"}}])
def test_a_wrong_form_is_said_at_once(wrong: dict[str, Any]) -> None:
    engine = Engine(MODEL, TOKENIZER)
    with pytest.raises(UserError, match=f"^{next(iter(wrong))}: "):
        engine.generate(["x"], Sampling(**wrong))
    assert engine.scheduler.idle


def test_a_form_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    library = llguidance.LLMatcher
    monkeypatch.setattr(llguidance, "LLMatcher", CountedMatchers(library, counted))
    engine = Engine(MODEL, TOKENIZER)
    sampling = Sampling(regex="(compiled|once)!", max_tokens=20)
    requests = [engine.request("x", sampling) for _ in range(5)]
    assert len(counted) == 1
    for request in requests:
        engine.scheduler.submit(request)
    texts = []
    while not engine.scheduler.idle:
        texts += [event.completion.text for event in engine.scheduler.step() if event.completion is not None]
    assert (len(counted), len(texts)) == (1, 5)
    assert set(texts) <= {"compiled!", "once!"}


class CountedMatchers:
    """The library's class, with the forms that were compiled."""

    def __init__(self, library: Any, counted: list[str]) -> None:
        self._library, self._counted = library, counted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def __call__(self, vocabulary: Any, grammar: str, **more: Any) -> Any:
        self._counted.append(grammar)
        return self._library(vocabulary, grammar, **more)


@pytest.mark.parametrize("number", ["999983", "0.999983", "1e9", "1.000003e-5", "1e300"])
def test_what_would_take_long_to_compile_is_refused(number: str) -> None:
    began = time.process_time()
    for wanted in (
        {"json_schema": {"type": "array", "items": {"type": "number", "multipleOf": float(number)}}},
        {"grammar": f'start: %json {{ "type": "number", "multipleOf" : {number} }}'},
    ):
        with pytest.raises(UserError, match="multipleOf"):
            guide(Sampling.model_validate(wanted), TOKENIZER)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("number", [7, 0.01, 2.50, 1000, 99999])
def test_multiples_that_are_compiled(number: float) -> None:
    schema = {"type": "array", "items": {"type": "number", "multipleOf": number}, "minItems": 1}
    assert guide(Sampling(json_schema=schema), TOKENIZER) is not None


def test_a_form_that_becomes_too_complex_ends_its_text_alone() -> None:
    engine = Engine(MODEL, TOKENIZER)
    form = guide(Sampling(regex="[a-z]{1,50}"), TOKENIZER)
    assert form is not None
    with pytest.raises(UserError, match="too complex"):
        form.take(TOKENIZER.encode("1")[0])  # the library treats what cannot be like what it cannot tell
    request = engine.request("x", Sampling(regex="[a-z]{5,50}", max_tokens=20))
    spoilt = engine.scheduler.submit(dataclasses.replace(request, form=form))
    sound = engine.scheduler.submit(request)
    events = []
    while not engine.scheduler.idle:
        events += engine.scheduler.step()
    assert [event.request for event in events if isinstance(event.error, UserError)] == [spoilt]
    assert [event.request for event in events if event.completion is not None] == [sound]
    assert engine.scheduler.pool.held == 0


def test_a_request_without_its_form_is_a_mistake() -> None:
    engine = Engine(MODEL, TOKENIZER)
    with pytest.raises(ValueError, match="form"):
        engine.scheduler.submit(dataclasses.replace(engine.request("x", Sampling(regex="b")), form=None))


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no tokenizer"):
        Engine(MODEL).generate([[1]], Sampling(regex="a"))
    with pytest.raises(UserError, match="ends a text"):
        Engine(MODEL, byte_tokenizer(eos_token=None)).generate(["x"], Sampling(regex="a"))
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UserError, match=r"pip install 'herdbook\[constraint\]'"):
        Engine(MODEL, TOKENIZER).generate(["x"], Sampling(regex="a"))
