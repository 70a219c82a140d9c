"""The endpoints, by OpenAI's own client and by hand."""

from __future__ import annotations

import json
from typing import Any

import httpx2 as httpx
import openai
import pytest

from herdbook.infer.sampling import Sampling

from .conftest import Live, events, make_served

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}
HELLO: list[Any] = [{"role": "user", "content": "hello"}]


def post(house: Live, path: str, body: Any) -> httpx.Response:
    return httpx.post(house.url + path, content=json.dumps(body), headers={"content-type": "application/json"}, timeout=30)


def test_completion_is_the_engines(house: Live) -> None:
    done = house.client().completions.create(model="base", prompt="Once upon", **GREEDY)
    own = make_served("base", template=None).engine.generate(["Once upon"], Sampling(temperature=0, max_tokens=12))[0]
    assert done.choices[0].text == own.text
    assert done.choices[0].finish_reason == own.finish_reason
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (9, len(own.ids))


def test_prompts_as_texts_and_ids(house: Live) -> None:
    client = house.client()
    ids = [list(post(house, "/tokenize", {"model": "base", "prompt": text}).json()["tokens"]) for text in ("ab", "xyz")]
    texts = client.completions.create(model="base", prompt=["ab", "xyz"], **GREEDY)
    same = client.completions.create(model="base", prompt=ids, **GREEDY)
    assert [choice.text for choice in texts.choices] == [choice.text for choice in same.choices]
    assert [choice.index for choice in texts.choices] == [0, 1]
    alone = client.completions.create(model="base", prompt=ids[1], **GREEDY)
    assert alone.choices[0].text == texts.choices[1].text


@pytest.mark.parametrize("model", ["base", "chat"])
def test_stream_equals_the_whole(house: Live, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "prompt": ["one", "two"], "n": 2, "seed": 7, "max_tokens": 20, "logprobs": 2}
    whole = house.client().completions.create(**asked)
    texts = {choice.index: "" for choice in whole.choices}
    logprobs: dict[int, list[float]] = {index: [] for index in texts}
    offsets: dict[int, list[int]] = {index: [] for index in texts}
    ends, usage = {}, None
    for chunk in house.client().completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            ends[choice.index] = choice.finish_reason
            if choice.logprobs is not None:
                logprobs[choice.index] += choice.logprobs.token_logprobs or []
                offsets[choice.index] += choice.logprobs.text_offset or []
    assert usage == whole.usage
    for choice in whole.choices:
        assert choice.logprobs is not None
        assert texts[choice.index] == choice.text
        assert ends[choice.index] == choice.finish_reason
        assert logprobs[choice.index] == choice.logprobs.token_logprobs
        assert offsets[choice.index] == choice.logprobs.text_offset


def test_chat_stream_equals_the_whole(house: Live) -> None:
    asked: dict[str, Any] = {
        "model": "chat",
        "messages": HELLO,
        "seed": 3,
        "max_tokens": 20,
        "logprobs": True,
        "top_logprobs": 3,
    }
    whole = house.client().chat.completions.create(**asked).choices[0]
    text, tokens, roles = "", [], []
    for chunk in house.client().chat.completions.create(**asked, stream=True):
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        roles += [choice.delta.role] if choice.delta.role else []
        tokens += choice.logprobs.content if choice.logprobs and choice.logprobs.content else []
    assert text == whole.message.content
    assert roles == ["assistant"]
    assert whole.logprobs is not None
    assert tokens == whole.logprobs.content
    assert all(len(token.top_logprobs) == 3 for token in tokens)
    assert all(token.top_logprobs[0].logprob >= token.logprob - 1e-6 for token in tokens)


def test_bytes_of_tokens_are_those_of_the_text(house: Live) -> None:
    choice = (
        house.client().chat.completions.create(model="chat", messages=HELLO, seed=5, max_tokens=30, logprobs=True).choices[0]
    )
    assert choice.logprobs is not None
    raw = b"".join(bytes(token.bytes or []) for token in choice.logprobs.content or [])
    for special in ("<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"):
        raw = raw.replace(special.encode(), b"")
    assert raw.decode("utf-8", errors="replace") == choice.message.content


def test_echo_gives_the_prompts_logprobs(house: Live) -> None:
    client = house.client()
    full = client.completions.create(model="base", prompt="abcd", max_tokens=0, echo=True, logprobs=1).choices[0]
    assert full.text == "abcd"
    assert full.logprobs is not None
    assert full.logprobs.tokens == list("abcd")
    assert full.logprobs.text_offset == [0, 1, 2, 3]
    values = full.logprobs.token_logprobs or []
    assert values[0] is None
    engine = make_served("base", template=None).engine
    ids = engine.tokenizer.encode("abcd") if engine.tokenizer else []
    assert sum(values[1:]) == pytest.approx(engine.loglikelihoods([(ids[:1], ids[1:])])[0][0], abs=1e-3)
    more = client.completions.create(model="base", prompt="abcd", echo=True, **GREEDY).choices[0]
    plain = client.completions.create(model="base", prompt="abcd", **GREEDY).choices[0]
    assert more.text == "abcd" + plain.text


def test_prompt_logprobs(house: Live) -> None:
    rows = post(house, "/v1/completions", {"prompt": "abc", "max_tokens": 1, "prompt_logprobs": 2}).json()
    found = rows["choices"][0]["prompt_logprobs"]
    assert found[0] is None
    assert [len(row) in (2, 3) for row in found[1:]] == [True, True]
    assert all(entry["logprob"] <= 0 for row in found[1:] for entry in row.values())


def test_seeds(house: Live) -> None:
    def texts(**more: Any) -> list[str]:
        asked: dict[str, Any] = {"model": "base", "prompt": "x", "max_tokens": 16, **more}
        return [choice.text for choice in house.client().completions.create(**asked).choices]

    assert texts(seed=11, n=3) == texts(seed=11, n=3)
    assert len(set(texts(seed=11, n=3))) == 3
    assert texts(seed=-5) == texts(seed=-5)
    assert len({*texts(), *texts(), *texts()}) == 3, "without a seed every text is another one"
    assert len(set(texts(seed=1, prompt=["x", "x"]))) == 2, "a prompt given twice has two texts"


def test_best_of_and_bias_and_stop(house: Live) -> None:
    client = house.client()
    best = client.completions.create(model="base", prompt="x", seed=1, best_of=6, n=2, max_tokens=8)
    assert len(best.choices) == 2
    ids = post(house, "/tokenize", {"prompt": "Q"}).json()["tokens"]
    biased = client.completions.create(model="base", prompt="x", logit_bias={str(ids[0]): 100}, max_tokens=5, temperature=0)
    assert biased.choices[0].text == "QQQQQ"
    stopped = client.completions.create(
        model="base", prompt="x", logit_bias={str(ids[0]): 100}, max_tokens=9, temperature=0, stop=["QQQ"]
    )
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == ("", "stop")


def test_response_format(house: Live) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    done = house.client().chat.completions.create(
        model="chat", messages=HELLO, seed=1, max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
    ).choices[0]  # fmt: skip
    if done.finish_reason == "stop":
        assert set(json.loads(done.message.content or "")) == {"ok"}
    assert (done.message.content or "").lstrip().startswith("{")
    plain = house.client().chat.completions.create(
        model="chat", messages=HELLO, seed=1, max_tokens=5, response_format={"type": "json_object"}
    )
    assert (plain.choices[0].message.content or "{").lstrip().startswith("{")


def test_tools_reach_the_template(house: Live) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    with_tools = post(house, "/tokenize", {"model": "chat", "messages": HELLO, "tools": [tool]}).json()
    without = post(house, "/tokenize", {"model": "chat", "messages": HELLO}).json()
    text = post(house, "/detokenize", {"model": "chat", "tokens": with_tools["tokens"]}).json()["prompt"]
    assert "weather" in text
    assert with_tools["count"] > without["count"]
    done = house.client().chat.completions.create(model="chat", messages=HELLO, tools=[tool], max_tokens=4)  # type: ignore[list-item]
    assert done.choices[0].message.tool_calls is None


def test_models_and_licences(house: Live) -> None:
    listed = house.client().models.list().data
    assert [model.id for model in listed] == ["base", "chat"]
    facts = httpx.get(house.url + "/v1/models/chat").json()
    assert facts["license"]["id"] == "CC-BY-SA-4.0"
    assert "share under the same licence" in facts["terms"]
    assert (facts["chat"], listed[0].model_extra["chat"]) == (True, False)  # type: ignore[index]
    assert facts["max_model_len"] == 256


def test_tokenize_round_trip(house: Live) -> None:
    text = "Grüße, 世界 🐄"
    found = post(house, "/tokenize", {"prompt": text}).json()
    assert found["count"] == len(found["tokens"]) == len(text.encode())
    assert post(house, "/detokenize", {"tokens": found["tokens"]}).json() == {"prompt": text}
    assert "bytes:\\xf0" in found["token_strs"]


WRONG: list[tuple[str, dict[str, Any], int, str | None]] = [
    ("completions", {"model": "absent", "prompt": "x"}, 404, "model"),
    ("completions", {"prompt": "x", "suffix": "y"}, 400, "suffix"),
    ("completions", {"prompt": "x", "temperature": -1}, 400, "temperature"),
    ("completions", {"prompt": "x", "temperature": "hot"}, 400, "temperature"),
    ("completions", {"prompt": "x", "top_p": 2}, 400, "top_p"),
    ("completions", {"prompt": "x", "frobnicate": 1}, 400, "frobnicate"),
    ("completions", {"prompt": "x", "max_tokens": -1}, 400, "max_tokens"),
    ("completions", {"prompt": "x", "n": 0}, 400, "n"),
    ("completions", {"prompt": "x", "n": 1000}, 400, "n"),
    ("completions", {"prompt": "x", "logprobs": 50}, 400, "top_logprobs"),
    ("completions", {"prompt": "x", "logit_bias": {"99999": 1}}, 400, "logit_bias"),
    ("completions", {"prompt": "x", "stop": [""]}, 400, "stop"),
    ("completions", {"prompt": 5}, 400, "prompt"),
    ("completions", {"prompt": []}, 400, "prompt"),
    ("completions", {"prompt": [1, -1]}, 400, "prompt"),
    ("completions", {"prompt": [[1], "x", {}]}, 400, "prompt"),
    ("completions", {"prompt": "x" * 1000}, 400, "prompt"),
    ("completions", {"prompt": "\ud800"}, 400, "prompt"),
    ("completions", {"prompt": "x", "n": 2, "best_of": 3, "stream": True}, 400, "best_of"),
    ("completions", {"prompt": "x", "regex": "("}, 400, "regex"),
    ("chat/completions", {"model": "chat", "messages": []}, 400, "messages"),
    ("chat/completions", {"model": "chat", "messages": [{"content": "x"}]}, 400, "messages[0].role"),
    ("chat/completions", {"model": "chat", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400,
     "messages[0].content[0]"),
    ("chat/completions", {"model": "base", "messages": HELLO}, 400, "messages"),
    ("chat/completions", {"model": "base", "messages": HELLO, "tools": [{"type": "function", "function": {"name": "f"}}]}, 400,
     "tools"),
    ("chat/completions", {"model": "chat", "messages": HELLO, "top_logprobs": 2}, 400, "top_logprobs"),
    ("chat/completions", {"model": "chat", "messages": HELLO, "response_format": {"type": "json_schema"}}, 400,
     "response_format.json_schema"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "param"), WRONG, ids=lambda value: str(value)[:50])
def test_mistakes_are_told_by_name(house: Live, path: str, body: dict[str, Any], status: int, param: str | None) -> None:
    found = post(house, f"/v1/{path}", body)
    assert (found.status_code, found.json()["error"]["param"]) == (status, param), found.text
    assert set(found.json()["error"]) == {"message", "type", "param", "code"}


def test_openais_client_knows_the_errors(house: Live) -> None:
    with pytest.raises(openai.NotFoundError, match="absent"):
        house.client().completions.create(model="absent", prompt="x")
    with pytest.raises(openai.BadRequestError) as caught:
        house.client().completions.create(model="base", prompt="x" * 400)
    assert caught.value.code == "context_length_exceeded"


def test_bodies_that_are_none(house: Live) -> None:
    url = house.url + "/v1/completions"
    json_head = {"content-type": "application/json"}
    statuses = {
        b"{": 400, b"[]": 400, b'{"prompt": NaN}': 400, b"\xff": 400, b"": 400, b'{"a":' * 5000: 400,
        b'{"prompt": ' + b"[" * 100 + b"]" * 100 + b"}": 400, b'{"seed": ' + b"9" * 5000 + b"}": 400, b" " * 4_000_001: 413,
    }  # fmt: skip
    for body, status in statuses.items():
        assert httpx.post(url, content=body, headers=json_head).status_code == status, body[:40]
    assert httpx.post(url, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert httpx.get(url).status_code == 405
    assert httpx.get(house.url + "/absent").json()["error"]["type"] == "not_found_error"


def test_metrics_count(house: Live) -> None:
    events(post(house, "/v1/completions", {"prompt": "count", "stream": True, "max_tokens": 5, "ignore_eos": True}).text)
    text = httpx.get(house.url + "/metrics").text
    for name in ("time_to_first_token_seconds_count", "time_between_tokens_seconds_bucket", "texts_running", "kv_use_ratio",
                 "prefix_cache_hit_tokens_total", "generated_tokens_total", "prompt_tokens_total"):  # fmt: skip
        assert f"herdbook_{name}{{" in text, name
    assert 'herdbook_responses_total{path="/v1/completions",status="200"}' in text


def test_schema_names_the_parameters(house: Live) -> None:
    schema = httpx.get(house.url + "/openapi.json").json()
    body = schema["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"prompt", "best_of", "echo", "logit_bias"} <= set(body["properties"])
