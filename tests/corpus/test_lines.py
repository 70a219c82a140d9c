from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from herdbook.corpus.config_web import LinesConfig
from herdbook.corpus.filters import Removal
from herdbook.corpus.lines import Corrected, _measure, correct_lines

CASES = yaml.safe_load(Path(__file__).with_name("cases").joinpath("lines.yaml").read_text(encoding="utf-8"))


def correct(text: str, language: str | None = "en", **fields: Any) -> Corrected:
    return correct_lines(text, LinesConfig(enabled=True, **fields), language)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["text"][:30])
def test_cases(case: dict[str, Any]) -> None:
    found = correct(case["text"], max_flagged=None)
    assert found.text == case.get("left", case["text"])
    assert [list(cut) for cut in found.cuts] == case.get("cuts", [])
    assert found.removal is None


def test_documents_with_many_flagged_words_go() -> None:
    prose = "\n".join(["ten words of plain prose are in this one line"] * 19)  # 190 words
    assert correct(prose + "\nSHORT LINE OF SHOUTING WITH SOME TEN WORDS IN IT").removal is None  # a twentieth exactly
    found = correct(prose + "\nSHORT LINE OF SHOUTING WITH SOME TEN WORDS IN IT\n12")
    assert found.removal == Removal("flagged_lines", pytest.approx(11 / 201), 0.05)
    assert correct("HELLO THERE").removal == Removal("flagged_lines", 1.0, 0.05)


def test_prose_comes_back_as_it_is(samples: ModuleType) -> None:
    text = samples.prose(1, 200) + "\n\n\n  indented, and so on \n"
    found = correct(text)
    assert found.text is text and found.cuts == []
    assert correct_lines("X\nY", LinesConfig()) == ("X\nY", None, [])


def test_rules_can_be_turned_off() -> None:
    text = "SHOUTING HERE\n12 34\n3 likes\nword\nSign-in now\nand prose"
    off = {"max_upper": None, "digits": False, "counters": False, "min_words": None, "prefixes": []}
    assert correct(text, **off).text is text
    assert correct("«« go\nand prose", prefixes=["««"], max_flagged=None).text == "go\nand prose"
    with pytest.raises(ValueError, match="empty"):
        LinesConfig(prefixes=[" "])


def test_languages_without_spaces_keep_their_lines() -> None:
    chinese = "委员会星期二开会讨论了河上的新桥。\n河水上涨了。"
    assert correct(chinese, "zh").text is chinese
    assert correct(chinese + "\n2024", "zh").removal == Removal("flagged_lines", pytest.approx(4 / 27), 0.05)
    assert correct(chinese, "en").removal is not None


LINES = st.sampled_from(
    ["SIGN-IN", "Sign-in x y", "12", "3 likes", "word", "two words", "items in cart", "a b read more...", "", " "]
)


@given(st.lists(LINES | st.text(max_size=30), max_size=12).map("\n".join))
def test_what_is_left_was_there(text: str) -> None:
    found = correct(text)
    assert (found.text is text) == (not found.cuts)
    assert len(found.text) <= len(text)
    lines = [line.strip() for line in text.split("\n")]
    for rule, cut in found.cuts:
        assert cut in lines if rule not in ("prefix", "suffix", "phrase") else any(cut in line for line in lines)
    if all(rule not in ("prefix", "suffix", "phrase") for rule, _ in found.cuts):
        assert correct(found.text).cuts == []  # once is enough


def test_phrases_are_found_whatever_the_letters_and_spaces() -> None:
    for text in ("Sign\u00a0in to go on", "SIGN\u2009IN to go on", "signin to go on", "SIGN-IN to go on"):
        assert correct(text, max_flagged=None).text == "to go on"
    assert correct("\u212aelvin scale is here", prefixes=["kelvin"], max_flagged=None).text == "scale is here"
    assert correct("Écran suivant is here", prefixes=["écran-suivant"], max_flagged=None).text == "is here"
    assert correct("Signing or designing it is", max_flagged=None).cuts == []


@given(st.text(alphabet=st.sampled_from("aBÇé1９ \t\n\u2003\x1c𝒜𝟙"), max_size=80))
def test_lines_are_measured_as_by_the_methods_of_strings(text: str) -> None:
    lines = text.split("\n")
    found = _measure(text)
    assert found.solid.tolist() == [len("".join(line.split())) for line in lines]
    assert found.words.tolist() == [len(line.split()) for line in lines]
    assert found.upper.tolist() == [sum(map(str.isupper, line)) for line in lines]
    assert found.digits.tolist() == [sum(map(str.isdigit, line)) for line in lines]


def test_a_line_of_many_words_is_counted_to_the_last() -> None:
    for count in (70_000, (1 << 20) - 2, 1 << 20):  # the last two on both sides of where the counts take more bits
        text = "A " * (count - 1) + "1\nx"
        found = _measure(text)
        assert found.words.tolist() == [count, 1] and found.upper.tolist() == [count - 1, 0] and found.digits.tolist() == [1, 0]
