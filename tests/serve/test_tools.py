"""Calls of tools in text, wherever the pieces of a stream are cut."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from herdbook.serve.tools import ToolReader, takes_tools, tells_calls

PARTS = ["Hello ", "<tool", "<tool_call>", "</tool_call>", '{"name": "f", "arguments": {"x": 1}}', "\n", "<", "{", "é"]


def read(pieces: list[str]) -> tuple[str, list[dict[str, Any]]]:
    reader, text, calls = ToolReader(), "", []
    for piece in pieces:
        shown, found = reader.push(piece)
        text, calls = text + shown, calls + found
    shown, found = reader.push("", last=True)
    return text + shown, [call["function"] for call in calls + found]


def test_a_call_between_texts() -> None:
    text, calls = read(['before <tool_call>{"name": "f", "arguments": {"x": [1]}}</tool_call> after'])
    assert text == "before  after"
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [("f", {"x": [1]})]


def test_what_is_no_call_stays_text() -> None:
    for text in ("<tool_call>{</tool_call>", "<tool_call>[1]</tool_call>", '<tool_call>{"name": "f"}', "<tool_", "a < b"):
        assert read([text]) == (text, [])


@given(st.lists(st.sampled_from(PARTS), max_size=12), st.data())
def test_pieces_do_not_matter(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(pieces) == read([text])


def test_templates() -> None:
    assert not takes_tools(None)
    assert not takes_tools("{{ messages }}")
    assert takes_tools("{{ tools }}")
    assert not tells_calls("{{ tools }}")
    assert tells_calls("{{ tools }} <tool_call>")
