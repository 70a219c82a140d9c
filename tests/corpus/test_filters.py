from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdbook.corpus.config import QualityConfig, RepetitionConfig
from herdbook.corpus.filters import Removal, judge_quality, judge_repetition
from herdbook.corpus.words import WordArrays


def quality(text: str, language: str | None = "en", **fields: Any) -> Removal | None:
    return judge_quality(text, text.split(), language, QualityConfig(**fields))


def repetition(text: str, language: str | None = "en", **fields: Any) -> Removal | None:
    return judge_repetition(text, text.split(), language, RepetitionConfig(**fields))


def words(count: int, word: str = "word{}") -> str:
    return " ".join(word.format(n) for n in range(count))


def test_good_prose_passes(samples: ModuleType) -> None:
    text = samples.prose(1, 200)
    assert quality(text) is None and repetition(text) is None


def test_word_counts_at_the_threshold() -> None:
    good = "the of " + words(47)
    assert quality(good) == Removal("few_words", 49, 50)
    assert quality(good + " more") is None
    assert quality(good + " more", min_words=None, max_words=49) == Removal("many_words", 50, 49)


def test_word_lengths_at_the_threshold() -> None:
    assert quality("the and " + "abc " * 48) is None  # 3 on average
    assert quality("to of " + "abc " * 48) == Removal("short_words", pytest.approx(148 / 50), 3.0)
    assert quality("the and " + "abcdefghijk " * 60) == Removal("long_words", pytest.approx(666 / 62), 10.0)


def test_symbols_bullets_and_ellipses() -> None:
    base = "the of " + words(48)
    assert quality(base + "#" * 5) is None
    assert quality(base + "#" * 6) == Removal("number_signs", 0.12, 0.1)
    assert quality(base + "… " * 6 + "x " * 4).reason == "ellipses"  # type: ignore[union-attr]
    lines = [f"- the {words(6)} of" for _ in range(9)] + [f"plain {words(6)}"]
    assert quality("\n".join(lines)) is None  # nine tenths exactly
    assert quality("\n".join([*lines, "* the last of"])) == Removal("bullet_lines", pytest.approx(10 / 11), 0.9)
    dotted = [f"the {words(30)} of..." for _ in range(3)] + [f"and {words(30)} to" for _ in range(7)]
    assert quality("\n".join(dotted)) is None
    assert quality("\n".join([*dotted, f"the {words(30)} of …"])) == Removal("ellipsis_lines", pytest.approx(4 / 11), 0.3)


def test_letters_do_not_count_lone_punctuation() -> None:
    text = "the of " + words(38) + " 12" * 10
    assert quality(text) is None  # four fifths exactly
    assert quality(text + " 34") == Removal("few_letters", pytest.approx(40 / 51), 0.8)
    assert quality(text + " —" * 5) is None


def test_stop_words_are_those_of_the_language() -> None:
    french = "Le chat est dans la maison avec des amis " * 8
    assert quality(french, "fr") is None
    assert quality(french, "en") == Removal("few_stop_words", 0, 2)
    assert quality(french, "de") is None  # no list, no judgement
    assert quality("El perro, la casa y los libros que están en el jardín " * 8, "es") is None
    assert quality("The, " + words(60), "en") == Removal("few_stop_words", 1, 2)


def test_words_say_nothing_where_they_are_not_spaced() -> None:
    chinese = "委员会星期二开会讨论了河上的新桥。" * 3
    assert quality(chinese, "zh") is None
    assert quality(chinese, "en").reason == "few_words"  # type: ignore[union-attr]


def test_duplicate_lines_count_from_the_second_on() -> None:
    lines = [words(8, f"l{n}x{{}}") for n in range(7)]
    assert repetition("\n".join([*lines, *lines[:3]]), duplicate_line_chars=None, duplicate_ngrams={}) is None  # 3 of 10
    found = repetition("\n".join([*lines, *lines[:4]]), duplicate_line_chars=None, duplicate_ngrams={})
    assert found == Removal("duplicate_lines", pytest.approx(4 / 11), 0.3)
    assert repetition("\n".join([*lines, *lines[:2]]), duplicate_ngrams={}).reason == "duplicate_line_chars"  # type: ignore[union-attr]
    parts = [words(20, f"p{n}x{{}}") for n in range(4)]
    assert repetition("\n\n".join([*parts, parts[0]]), duplicate_lines=0.5, duplicate_line_chars=0.5,
                      duplicate_paragraph_chars=0.1).reason == "duplicate_paragraph_chars"  # type: ignore[union-attr]  # fmt: skip


def test_top_ngram_by_hand() -> None:
    text = "aa bb " * 3 + words(12, "c{:02d}x")  # 3 × 4 of 12 + 48 characters
    assert repetition(text, top_ngrams={2: 0.2}, duplicate_ngrams={}) is None
    assert repetition(text, top_ngrams={2: 0.19}, duplicate_ngrams={}) == Removal("top_2_gram", 0.2, 0.19)
    assert repetition(words(4), top_ngrams={2: 0.0}, duplicate_ngrams={}) is None  # one occurrence is none too many


def test_duplicate_ngrams_count_each_word_once() -> None:
    once = words(10, "w{:02d}x")  # 40 characters
    text = f"{once} {words(5, 'z{:02d}x')} {once}"  # the second ten words are covered by overlapping 5-grams
    found = repetition(text, top_ngrams={}, duplicate_ngrams={5: 0.15})
    assert found == Removal("duplicate_5_grams", pytest.approx(40 / 100), 0.15)
    assert repetition(text, top_ngrams={}, duplicate_ngrams={11: 0.0}) is None


@given(st.lists(st.sampled_from(["a", "b", "c", "dd", "eee"]), min_size=2, max_size=60), st.integers(2, 6))
def test_ngram_shares_agree_with_counting_by_hand(tokens: list[str], size: int) -> None:
    grams = [tuple(tokens[at : at + size]) for at in range(len(tokens) - size + 1)]
    covered: set[int] = set()
    seen: set[tuple[str, ...]] = set()
    for at, gram in enumerate(grams):
        if gram in seen:
            covered.update(range(at, at + size))
        seen.add(gram)
    share = sum(len(tokens[at]) for at in covered) / sum(map(len, tokens))
    found = judge_repetition("x", tokens, "en", RepetitionConfig(top_ngrams={}, duplicate_ngrams={size: 0.0}))
    assert (found.value if found else 0.0) == pytest.approx(share)
    repeated = [gram for gram in seen if grams.count(gram) > 1]
    most = max((grams.count(gram) for gram in repeated), default=0)
    top = max((most * sum(map(len, gram)) for gram in repeated if grams.count(gram) == most), default=0)
    found = judge_repetition("x", tokens, "en", RepetitionConfig(top_ngrams={size: 0.0}, duplicate_ngrams={}))
    assert (found.value if found else 0.0) == pytest.approx(top / sum(map(len, tokens)))


@given(st.text(max_size=300), st.sampled_from(["en", "fr", "zh", None, "und"]), st.sampled_from([None, "datatrove", "dclm"]))
def test_any_text_can_be_judged(text: str, language: str | None, compat: Any) -> None:
    tokens = text.split()
    low: dict[str, Any] = {"min_words": None, "min_mean_word_length": None}
    arrays = WordArrays(tokens)
    for cfg in (QualityConfig(compat=compat), QualityConfig(compat=compat, **low)):
        assert judge_quality(text, tokens, language, cfg) == judge_quality(text, tokens, language, cfg, arrays)
    cfg2 = RepetitionConfig(compat=compat)
    assert judge_repetition(text, tokens, language, cfg2) == judge_repetition(text, tokens, language, cfg2, arrays)


def test_rules_can_be_turned_off() -> None:
    assert quality("x", enabled=False) is None and repetition("x\nx\nx\nx", enabled=False) is None
    off = {"min_words": None, "min_mean_word_length": None, "min_stop_words": None}
    assert quality("x y", **off) is None
