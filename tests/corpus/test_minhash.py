from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from herdbook.corpus.config import MINHASH, MinHashConfig
from herdbook.corpus.dedup import band_keys
from herdbook.corpus.minhash import (
    _functions,
    detection_probability,
    estimate_error,
    estimate_jaccard,
    normalize,
    shingles,
    signature,
)


def brute_force(words: list[str], cfg: MinHashConfig, seed: int) -> list[int]:
    """The definition, in Python's integers."""
    multipliers = cfg.multipliers or cfg.num_perm
    shared = cfg.num_perm // multipliers
    functions = _functions(cfg.num_perm, multipliers, seed)
    grams = [int(x) for x in shingles(words, cfg.ngram)]
    found = []
    for place in range(cfg.num_perm):
        g, j = place % multipliers, place // multipliers
        a, c, start = int(functions.a[g, 0]), int(functions.c[g, 0]), -(-j * 2**32 // shared)
        found.append(min(((((a * x + c) % 2**64) >> 32) - start) % 2**32 for x in grams))
    return found


def pair(jaccard: float, size: int, seed: int) -> tuple[list[str], list[str], float]:
    """Two lists of words with (1-gram) sets of `size` words, and their exact similarity."""
    pick = random.Random(seed)
    common = round(2 * size * jaccard / (1 + jaccard))
    words = [f"w{pick.getrandbits(60):x}" for _ in range(2 * size - common)]
    return words[:size], words[size - common :], common / len(words)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40),
    st.sampled_from([(4, 3, None), (4, 3, 3), (4, 3, 4), (5, 4, 4), (1, 1, 1), (30, 2, 2), (7, 8, 8)]),
    st.integers(0, 3),
    st.integers(1, 6),
)
def test_signatures_are_the_minima_by_brute_force(
    words: list[str], shape: tuple[int, int, int | None], seed: int, ngram: int
) -> None:
    bands, rows, multipliers = shape
    cfg = MinHashConfig(bands=bands, rows=rows, multipliers=multipliers, ngram=ngram)
    found = signature(words, cfg, seed)
    assert found is not None and found.tolist() == brute_force(words, cfg, seed)


def test_a_long_text_by_brute_force() -> None:
    pick = random.Random(1)
    words = [f"w{pick.randrange(900)}" for _ in range(1500)]
    for cfg in (MINHASH["fineweb"], MinHashConfig(bands=20, rows=20, multipliers=20)):
        found = signature(words, cfg)
        assert found is not None and found.tolist() == brute_force(words, cfg, 0)


def test_the_same_on_every_machine() -> None:
    found = signature(normalize("To raise a herd, one keeps a book!"), MINHASH["refinedweb"], seed=7)
    assert found is not None and found.dtype == np.uint32 and found.shape == (9000,)
    assert found[[0, 1, 4500, 8999]].tolist() == [223988304, 589736501, 551904018, 2792245650]


@given(st.text(max_size=60) | st.text(alphabet="aB9_ .,’“é—\u2028İßΣ\ud800", max_size=60))
def test_normalized_words_are_the_words_in_lower_case(text: str) -> None:
    assert normalize(text) == re.findall(r"\w+", text.lower())


@pytest.mark.parametrize("preset", ["refinedweb", "fineweb"])
@pytest.mark.parametrize(("jaccard", "size"), [(0.2, 900), (0.5, 60), (0.8, 900)])
def test_the_error_of_the_estimate_is_as_documented(preset: str, jaccard: float, size: int) -> None:
    cfg = MINHASH[preset].model_copy(update={"ngram": 1})  # type: ignore[index]
    errors = []
    for seed in range(40):
        left, right, true = pair(jaccard, size, seed)
        ours, theirs = signature(left, cfg, seed), signature(right, cfg, seed)
        assert ours is not None and theirs is not None
        errors.append(estimate_jaccard(ours, theirs) - true)
    limit = estimate_error(jaccard, cfg, ngrams=len(set(left) | set(right)))
    independent = (jaccard * (1 - jaccard) / cfg.num_perm) ** 0.5
    measured = float(np.sqrt(np.mean(np.square(errors))))
    assert measured < 1.35 * limit  # of 40 samples a standard deviation is known to 11 %
    assert measured > 0.4 * independent
    assert abs(np.mean(errors)) < 4 * limit / len(errors) ** 0.5
    if size == 900:
        assert measured < 1.35 * independent


@pytest.mark.parametrize("jaccard", [0.5, 0.65, 0.72, 0.8, 0.9])
def test_pairs_are_found_with_the_probability_of_the_s_curve(jaccard: float) -> None:
    cfg = MinHashConfig(bands=14, rows=8, multipliers=16, ngram=1)
    trials, found, true = 150, 0, 0.0
    for seed in range(trials):
        left, right, true = pair(jaccard, 300, seed)
        ours, theirs = (band_keys(signature(words, cfg, seed), cfg) for words in (left, right))
        found += bool((ours == theirs).any())
    expected = detection_probability(true, cfg)
    assert abs(found / trials - expected) < 4 * (expected * (1 - expected) / trials) ** 0.5 + 0.01


def test_the_published_presets() -> None:
    refinedweb, fineweb = MINHASH["refinedweb"], MINHASH["fineweb"]
    assert (refinedweb.num_perm, refinedweb.bands, refinedweb.rows) == (9000, 450, 20)
    assert refinedweb.midpoint == pytest.approx(0.737, abs=5e-4)
    assert detection_probability(0.8, refinedweb) == pytest.approx(0.995, abs=1e-3)
    # With the two numbers the other way round, as in the main text, only near-identical texts would be found.
    assert MinHashConfig(bands=20, rows=450).midpoint == pytest.approx(0.993, abs=5e-4)
    assert (fineweb.num_perm, fineweb.ngram) == (112, 5)
    assert detection_probability(0.8, fineweb) == pytest.approx(0.924, abs=1e-3)


@pytest.mark.parametrize("multipliers", [7, 50, 9001])
def test_rows_of_a_band_are_independent_or_refused(multipliers: int) -> None:
    with pytest.raises(ValidationError, match="multipliers"):
        MinHashConfig(bands=14, rows=8, multipliers=multipliers)


def test_a_text_without_words_has_no_signature() -> None:
    assert signature(normalize("+ — !"), MINHASH["fineweb"]) is None
