from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from herdbook.align.config import PairsConfig
from herdbook.align.pairs import corpus_pairs, document_pairs, first_sentence, whole_paragraphs

DOC = {
    "id": "docstrings/os.path.join",
    "url": "pydoc://os.path.join",
    "text": "os.path.join(a, *p)\n\nConnect two or more\npathname components. Insert a slash.\n\nWhat is absolute starts anew.",
    "license": "PSF-2.0",
    "language": "en",
}


def answers(row: dict[str, Any], longest: int = 400) -> dict[str | None, tuple[str, str]]:
    return {
        pair.kind: (pair.messages[0]["content"], pair.messages[1]["content"])
        for pair in document_pairs(row, max_answer=longest)
    }


def test_a_docstring_gives_four_kinds_of_pairs() -> None:
    found = answers(DOC)
    assert set(found) == {"does", "which", "signature", "docstring"}
    assert found["does"][1] == "Connect two or more pathname components."
    assert found["which"][1] == "`os.path.join`"
    assert found["which"][0].endswith("Connect two or more pathname components.")
    assert found["signature"][1] == "`os.path.join(a, *p)`"
    assert found["docstring"][1] == DOC["text"].split("\n\n", 1)[1]
    assert answers(DOC, 70)["docstring"][1] == "Connect two or more\npathname components. Insert a slash."


def test_a_question_does_not_give_its_answer_away() -> None:
    row = {**DOC, "text": "os.path.join(a, *p)\n\nJoin two or more parts of a path."}
    assert "which" not in answers(row)


@pytest.mark.parametrize("text", ["", "no signature here\n\nSome text that follows.", "os.sep\n\nshort", "os.path.join(a)"])
def test_documents_of_another_form_give_nothing(text: str) -> None:
    assert answers({**DOC, "text": text}) == {}
    assert answers({**DOC, "url": "https://example.org/a"}) == {}
    assert answers({**DOC, "url": None}) == {}


def test_articles_are_asked_about_in_their_language(corpus: Path) -> None:
    pairs = [pair for pair in corpus_pairs(corpus, PairsConfig()) if pair.origin.startswith("wikipedia")]
    by_title = {pair.origin: [message["content"] for message in pair.messages] for pair in pairs}
    assert "Paris" in by_title["wikipedia/en/Paris"][0]
    assert by_title["wikipedia/en/Paris"][1] == "Paris is the capital of France."
    assert "Mont Blanc" in by_title["wikipedia/fr/Mont_Blanc"][0]
    assert by_title["wikipedia/fr/Mont_Blanc"][1].endswith("des Alpes.")
    assert "Río Ebro" in by_title["wikipedia/es/Río_Ebro"][0]
    assert {pair.license for pair in pairs} == {"CC-BY-SA-4.0"}


def test_pairs_are_the_same_each_time_without_repeats_and_capped(corpus: Path) -> None:
    pairs = corpus_pairs(corpus, PairsConfig())
    assert pairs == corpus_pairs(corpus, PairsConfig())
    questions = [pair.messages[0]["content"] for pair in pairs]
    assert len(set(questions)) == len(questions) > 200
    few = corpus_pairs(corpus, PairsConfig(max_pairs=20))
    assert len(few) == 20
    assert sum(pair.origin.startswith("wikipedia") for pair in few) == 3
    only = corpus_pairs(corpus, PairsConfig(sources=["wikipedia"]))
    assert {pair.origin.split("/")[0] for pair in only} == {"wikipedia"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Return the thing, e.g. a list. Then more.", "Return the thing, e.g. a list."),
        ("George W. Bush was a president. He ran.", "George W. Bush was a president."),
        ("Uses version 3.5 of it. More.", "Uses version 3.5 of it."),
        ("Mary (born in Rome. Really) was here. Yes.", "Mary (born in Rome. Really) was here."),
        ("No end to this", None),
        (">>> print(1).", None),
        ("Take numbers from 0 up to 9. More.", "Take numbers from 0 up to 9."),
        ("Take lists, tuples, etc.", "Take lists, tuples, etc."),
        ("Too short.", None),
        ("https://example.org/something is. A link.", None),
        ("", None),
    ],
)
def test_first_sentences(text: str, sentence: str | None) -> None:
    assert first_sentence(text) == sentence


def test_only_whole_paragraphs_are_kept() -> None:
    assert whole_paragraphs("one\n\ntwo\n\nthree", 8) == "one\n\ntwo"
    assert whole_paragraphs("one two three", 5) is None
