from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from herdbook.corpus.config_web import PiiConfig
from herdbook.corpus.pii import EXAMPLES, TAGS, Masked, mask_pii

CASES = yaml.safe_load(Path(__file__).with_name("cases").joinpath("pii.yaml").read_text(encoding="utf-8"))


def mask(text: str, **fields: Any) -> Masked:
    return mask_pii(text, PiiConfig(**{"enabled": True, "phones": True, **fields}))


@pytest.mark.parametrize("text, left, counts", CASES, ids=lambda value: str(value)[:30])
def test_cases(text: str, left: str | None, counts: dict[str, int]) -> None:
    assert mask(text) == (left or text, counts)


def test_tags_and_switches() -> None:
    text = "a@b.fr 81.2.69.142 2a00:1450:4007:80e::200e +33 1 44 55 66 77"
    assert mask(text, style="tags").text == "<EMAIL> <IP> <IP> <PHONE>"
    assert mask(text, emails=False, ips=False, phones=False) == (text, {})
    assert mask_pii(text, PiiConfig(enabled=True)).counts == {"email": 1, "ipv4": 1, "ipv6": 1}  # phones only if asked for
    assert mask_pii(text, PiiConfig()).text is text


def test_examples_are_never_masked() -> None:
    for kinds in (EXAMPLES, TAGS):
        for text in kinds.values():
            assert mask(text) == (text, {})


PIECES = st.sampled_from(["a@b.fr", "x.y@mail.org", "81.2.69.142", "8.8.4.204", "2a00:1450:4007:80e::200e", "+33 1 44 55 66 77",
                          "212-736-5000", "06 44 55 66 77", "text", " ", ".", ",", "-",
                          "+", ":", "(", "@", "1", "\n", "é"])  # fmt: skip


TEXTS = st.lists(PIECES, max_size=12).map("".join) | st.text("0123456789.:@+-() abcf", max_size=60)


@given(TEXTS, st.sampled_from(["examples", "tags"]))
def test_twice_is_once(text: str, style: str) -> None:
    once = mask(text, style=style)
    again = mask(once.text, style=style)
    assert again == (once.text, {})
    assert (once.text == text) == (not once.counts)


@given(st.text(st.characters(exclude_characters="@.:0123456789+", exclude_categories=["Nd", "Cs"]), max_size=200))
def test_text_without_marks_is_not_touched(text: str) -> None:
    assert mask(text) == (text, {})


@pytest.mark.parametrize("piece", ["a", "a.", "@", "a@", "1", "1.", "1:", "2a00:", "+1 ", "+", "(", "a@a.", "0 1"])
def test_no_text_takes_long(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    began = time.process_time()
    mask(text)
    assert time.process_time() - began < 2
