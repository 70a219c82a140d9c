"""Texts of a given form, whatever the model would say."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest

from herdbook.errors import UserError
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


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no tokenizer"):
        Engine(MODEL).generate([[1]], Sampling(regex="a"))
    with pytest.raises(UserError, match="ends a text"):
        Engine(MODEL, byte_tokenizer(eos_token=None)).generate(["x"], Sampling(regex="a"))
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UserError, match=r"pip install 'herdbook\[constraint\]'"):
        Engine(MODEL, TOKENIZER).generate(["x"], Sampling(regex="a"))
