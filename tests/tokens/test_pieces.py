from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.tokens.pieces import BREAK, LONGEST_WORD, Cutter, alphabet_of, count_words, learnable, normalized


def cut(text: str, alphabet: str | None = None) -> list[str]:
    cutter = Cutter(alphabet_of(Counter(text), 1.0) if alphabet is None else alphabet)
    return [part for part, _ in cutter.steps.pre_tokenize_str(cutter.clean(text))]


def test_where_no_piece_reaches_across() -> None:
    assert cut(" the (x) don't   end") == [" the", " (", "x", ")", " don", "'", "t", "  ", " end"]
    assert cut("x12 = 3.5") == ["x", "1", "2", " =", " ", "3", ".", "5"]
    assert cut("a\n\n  b\tc\x00d\u2028e") == ["a", " ", " b", "c", "d", "e"]
    assert cut("naïveи рус漢字かなカナー한글") == ["naïve", "и", " рус", "漢字かなカナー", "한글"]
    assert cut("e\u0301t हिन्दी می\u200cخواهم 👩‍🌾!") == ["e\u0301t", " हिन्दी", " می\u200cخواهم", " 👩‍🌾!"]
    assert cut("abcabc", alphabet="ab ") == ["ab", "ab"]
    longest = LONGEST_WORD - 1
    assert [len(part) for part in cut("A" * 200 + "   ")] == [longest] * (200 // longest) + [200 % longest, 3]


def test_the_alphabet_makes_up_its_share() -> None:
    counts = {"a": 90, "b": 9, "é": 1, "\n": 50, "▁": 50}
    assert alphabet_of(counts, 1.0) == ["a", "b", "é", " "]
    assert alphabet_of(counts, 0.99) == ["a", "b", " "]
    assert alphabet_of(counts, 0.9) == ["a", " "]
    assert alphabet_of({}, 1.0) == [" "]
    assert not any(map(learnable, "\n\t\x00\u2028▁"))


@settings(deadline=None)
@given(st.lists(st.text("ab é1羊.\n\t ", max_size=40), max_size=8), st.booleans())
def test_every_character_with_a_piece_is_counted(texts: list[str], prefix: bool) -> None:
    characters = Counter("".join(" " + text if prefix else text for text in texts))
    words = count_words(texts, prefix=prefix)
    assert all(BREAK not in word for word in words)
    counts = Cutter(["a", "b", "é", " ", "1"]).count(words)
    assert not any("▁" in word[1:] and word.strip("▁") for word in counts)
    found: Counter[str] = Counter()
    for word, count in counts.items():
        for char in word:
            found[char] += count
    assert found == Counter({char.replace(" ", "▁"): characters[char] for char in "abé 1" if characters[char]})


def test_too_many_words_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herdbook.tokens.pieces.MOST_WORDS", 3)
    assert count_words(["a b a", "c d a", "e"], prefix=False) == {" a": 2, "e": 1}


def test_normal_form() -> None:
    assert list(normalized(["ﬁ①"], "nfkc")) == ["fi1"]
    assert list(normalized(["ﬁ①"], "identity")) == ["ﬁ①"]
