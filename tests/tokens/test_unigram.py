"""Training of Unigram vocabularies, held against sums over every way to cut a word."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.tokens.unigram import _chunks, _digamma, _table, train_unigram

WORDS = st.dictionaries(st.text("abc", min_size=1, max_size=7), st.integers(1, 20), min_size=1, max_size=12)


def ways(word: str, pieces: dict[str, float]) -> Iterator[list[str]]:
    """Every way to cut a word into pieces."""
    if not word:
        yield []
    for end in range(1, len(word) + 1):
        if word[:end] in pieces:
            yield from ([word[:end], *rest] for rest in ways(word[end:], pieces))


@settings(deadline=None)
@given(WORDS, st.dictionaries(st.text("abc", min_size=2, max_size=4), st.floats(-6, -1), max_size=10))
def test_expectations_and_likeliest_cuts(words: dict[str, int], longer: dict[str, float]) -> None:
    pieces = {"a": -2.0, "b": -2.5, "c": -3.0, **longer}
    scores_P = np.array([*pieces.values(), -np.inf])
    expected: Counter[str] = Counter()
    found_P, best = np.zeros(len(pieces)), {}
    chunks = _chunks(list(words), np.array(list(words.values()), np.float64))
    for chunk in chunks:
        chunk.find(_table(list(pieces)))
        found_P += chunk.expect(scores_P)
        score_W, rows, ids = chunk.likeliest(scores_P)
        texts = [bytes(codes.tobytes()).decode("utf-32-le") for codes in np.ascontiguousarray(chunk.codes_LW.T)]
        for row, text in enumerate(texts):
            cut = [list(pieces)[index] for index in ids[rows == row].tolist()][::-1]
            assert "".join(cut) == text
            assert sum(pieces[piece] for piece in cut) == pytest.approx(score_W[row])
            best[text] = score_W[row]
    for word, count in words.items():
        scored = [(sum(pieces[piece] for piece in way), way) for way in ways(word, pieces)]
        total = sum(math.exp(score) for score, _ in scored)
        assert best[word] == pytest.approx(max(score for score, _ in scored))
        for score, way in scored:
            for piece in way:
                expected[piece] += count * math.exp(score) / total  # type: ignore[assignment]
    assert found_P == pytest.approx([expected[piece] for piece in pieces])


@settings(deadline=None, max_examples=60)
@given(WORDS, st.integers(3, 30))
def test_the_alphabet_stays_and_the_size_is_kept(words: dict[str, int], size: int) -> None:
    pieces = train_unigram(words, size, ["a", "b", "c"])
    texts = [text for text, _ in pieces]
    assert {"a", "b", "c"} <= set(texts)
    assert len(texts) == len(set(texts)) <= size
    assert all(math.isfinite(score) and score <= 1e-6 for _, score in pieces)
    together = " ".join(words)
    assert all(text in together for text in texts if len(text) > 1)


def test_words_that_occur_often_become_pieces() -> None:
    words = {"▁shepherd": 500, "▁sheep": 900, "▁she": 800, "herd": 300, "▁pherd": 1, "▁asleep": 2}
    alphabet = sorted({char for word in words for char in word})
    pieces = dict(train_unigram(words, len(alphabet) + 4, alphabet))
    assert {"▁shepherd", "▁sheep", "▁she", "herd"} <= pieces.keys()
    assert pieces["▁sheep"] > pieces["▁shepherd"]


def test_no_words() -> None:
    assert [text for text, _ in train_unigram({}, 5, ["a", "▁"])] == ["a", "▁"]


def test_threads_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("herdbook.tokens.unigram.CELLS", 500)  # so that there are many parts to share
    rng = np.random.default_rng(0)
    words = {"".join(rng.choice(list("abcdefgh"), rng.integers(1, 12))): int(rng.integers(1, 50)) for _ in range(2000)}
    found = [train_unigram(words, 200, list("abcdefgh"), threads=threads) for threads in (1, 2, 5)]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 200


def test_digamma() -> None:
    gamma = 0.5772156649015329
    values = np.array([1.0, 0.5, 2.0, 10.0, 1e6])
    harmonic = sum(1 / n for n in range(1, 10))
    wanted = [-gamma, -gamma - 2 * math.log(2), 1 - gamma, harmonic - gamma, math.log(1e6) - 0.5e-6]
    assert _digamma(values) == pytest.approx(wanted, abs=1e-8)
