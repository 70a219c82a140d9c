from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdbook.documents import DocumentWriter, read_documents
from herdbook.errors import UserError
from herdbook.tokens.sample import Sampled, Survey, check_sources, quotas

SIZES = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 10**9), min_size=1)


@given(SIZES, st.integers(1, 10**10))
def test_quotas_fill_the_budget_and_never_repeat(sizes: dict[str, int], budget: int) -> None:
    got = quotas(sizes, None, budget)
    assert all(0 <= got[name] <= sizes[name] for name in got)
    expected = min(budget, sum(sizes.values()))
    assert expected - len(sizes) <= sum(got.values()) <= expected


@given(SIZES, st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 100), min_size=1), st.integers(1, 10**10))
def test_weighted_quotas(sizes: dict[str, int], weights: dict[str, float], budget: int) -> None:
    got = quotas(sizes, weights, budget)
    assert set(got) == {name for name in sizes if sizes[name] and name in weights}
    full = {name for name in got if got[name] == sizes[name]}
    rates = [got[name] / weights[name] for name in got if name not in full and got[name] > 10_000]
    assert not rates or max(rates) < 1.001 * min(rates)  # those that are not used up keep their proportion


def test_shares_of_a_sample() -> None:
    assert quotas({"a": 900, "b": 100}, None, 100) == {"a": 90, "b": 10}
    assert quotas({"a": 900, "b": 900}, {"a": 3, "b": 1}, 100) == {"a": 75, "b": 25}
    assert quotas({"a": 10, "b": 900}, {"a": 1, "b": 1}, 100) == {"a": 10, "b": 90}


@pytest.mark.parametrize("budget", [10, 1000, 40_000, 10**9])
def test_a_sample_fills_its_budget_and_is_the_same_for_a_seed(corpus: Path, budget: int) -> None:
    def draw(seed: int) -> list[Sampled]:
        survey = Survey(corpus, "train", seed)
        return list(survey.draw(quotas(survey.sizes, None, budget)))

    first = draw(1)
    assert first == draw(1)
    assert first != draw(2) or budget == 10**9
    sizes = Survey(corpus, "train", 0).sizes
    quota = quotas(sizes, None, budget)
    taken = Counter(dict.fromkeys(quota, 0))
    for document in first:
        taken[document.source] += len(document.text.encode())
    assert all(quota[name] - 3 <= taken[name] <= quota[name] for name in quota)  # a character cut in half is left out


def test_a_sample_does_not_hang_on_the_files(corpus: Path, tmp_path: Path) -> None:
    with DocumentWriter(tmp_path, "documents", rows_per_file=7) as writer:
        for row in read_documents(corpus):
            writer.write(row)
    drawn = []
    for folder in (corpus, tmp_path):
        survey = Survey(folder, "train", 3)
        drawn.append(list(survey.draw(quotas(survey.sizes, {"tales": 1.0}, 3000))))
    assert drawn[0] == drawn[1]


def test_a_source_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"'wikipedia' is not in the corpus[\s\S]*code, wiki"):
        check_sources({"wikipedia": 1.0}, {"wiki": 10, "code": 5}, key="tokenizer.sources")
    with pytest.raises(UserError, match="holds no text"):
        check_sources({"empty": 1.0}, {"wiki": 10, "empty": 0}, key="tokenizer.sources")
