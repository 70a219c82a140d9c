from __future__ import annotations

import pytest

from herdbook.corpus.language import identify, model_path


@pytest.mark.parametrize(
    ("text", "language"),
    [("The committee met on Tuesday to talk about the new bridge over the river.", "en"),
     ("Le comité s'est réuni mardi pour parler du nouveau pont sur la rivière.", "fr"),
     ("El comité se reunió el martes para hablar del nuevo puente sobre el río.", "es"),
     ("委员会星期二开会讨论了河上的新桥。", "zh")],
)  # fmt: skip
def test_languages(text: str, language: str) -> None:
    found, score = identify(text)
    assert found == language and 0.65 < score <= 1


def test_odd_texts() -> None:
    assert identify("") == identify(" \n\t ") == ("und", 0.0)
    assert 0 <= identify("\n\n1234 \x00 +++")[1] <= 1
    assert identify("word\nword\n" * 5000)[1] >= 0


def test_the_model_is_found_by_path() -> None:
    assert model_path().name == "lid.176.ftz"
