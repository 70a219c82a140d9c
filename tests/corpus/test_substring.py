from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.corpus.buckets import Buckets, bucket_writer
from herdbook.corpus.config_dedup import SubstringConfig
from herdbook.corpus.filters import Removal
from herdbook.corpus.substring import Span, apply_spans, find_spans, spans_of, window_hashes, word_tokens, write_windows
from herdbook.corpus.words import Array

Documents = list[list[int]]
documents_of_few_tokens = st.lists(st.lists(st.integers(0, 2), max_size=30), max_size=8)


def arrays(documents: Documents) -> list[Array]:
    return [np.array(document, np.uint64) for document in documents]


def brute_force(documents: Documents, k: int) -> list[list[tuple[int, int, int]]]:
    """For each document its windows seen before, as (place, document, place) of the first occurrence."""
    first: dict[tuple[int, ...], tuple[int, int]] = {}
    found: list[list[tuple[int, int, int]]] = []
    for number, document in enumerate(documents):
        found.append([])
        for place in range(len(document) - k + 1):
            source = first.setdefault(tuple(document[place : place + k]), (number, place))
            if source != (number, place):
                found[-1].append((place, *source))
    return found


def windows_of(spans: list[Span], k: int) -> list[tuple[int, int, int]]:
    return [
        (span.start + step, span.other_document, span.other_start + step)
        for span in spans
        for step in range(span.end - span.start - k + 1)
    ]


@settings(deadline=None, max_examples=60)
@given(documents_of_few_tokens, st.integers(2, 6))
def test_spans_are_those_by_brute_force(documents: Documents, k: int) -> None:
    found = list(find_spans(arrays(documents), k))
    assert [windows_of(spans, k) for spans in found] == brute_force(documents, k)
    for number, spans in enumerate(found):
        for span in spans:
            length = span.end - span.start
            other = documents[span.other_document][span.other_start : span.other_start + length]
            assert documents[number][span.start : span.end] == other and length >= k
        for one, other in itertools.pairwise(spans):  # no two that could be one
            follows = (
                one.other_document == other.other_document and other.start - one.start == other.other_start - one.other_start
            )
            assert not (follows and other.start <= one.end - k + 1)


@settings(deadline=None, max_examples=15)
@given(documents_of_few_tokens, st.integers(1, 3), st.sampled_from([1 << 9, 1 << 20]))
def test_spans_do_not_depend_on_workers_or_memory(
    tmp_path_factory: pytest.TempPathFactory, documents: Documents, workers: int, memory: int
) -> None:
    folder = tmp_path_factory.mktemp("spans")
    lengths = []
    for worker in reversed(range(workers)):  # in whatever order they are done
        cut = [worker * len(documents) // workers, (worker + 1) * len(documents) // workers]
        with bucket_writer(folder / "windows", f"part-{worker}", memory=memory) as writer:
            before = sum(map(len, documents[: cut[0]]))
            lengths.append(write_windows(arrays(documents[slice(*cut)]), writer, 4, before))
    all_ = np.concatenate(lengths[::-1])
    found = list(spans_of(Buckets(folder / "windows"), all_, 4, folder / "found", 1 << 20))
    assert found == list(find_spans(arrays(documents), 4))


def test_the_same_set_as_a_suffix_array() -> None:
    divsufsort = pytest.importorskip("pydivsufsort")
    pick, k = np.random.default_rng(0), 50
    documents = [pick.integers(0, 3000, pick.integers(20, 900)).astype(np.uint64) for _ in range(150)]
    for target in range(10, 150, 3):
        source, length = pick.integers(0, 150), pick.integers(45, 200)
        copied = documents[source][:length]
        documents[target] = np.concatenate([documents[target][:70], copied, documents[target][70:]])
    # A suffix array of all documents, each closed by a token of its own.
    closed = np.concatenate([np.append(document, 3000 + number) for number, document in enumerate(documents)]).astype(np.uint16)
    order = divsufsort.divsufsort(closed)
    common = divsufsort.kasai(closed, order)  # of each suffix and the next in order
    expected: set[int] = set()
    group = [int(order[0])]
    for place, length in zip(order[1:].tolist(), common.tolist(), strict=False):
        if length < k:
            expected |= set(group) - {min(group)}
            group = []
        group.append(place)
    expected |= set(group) - {min(group)}
    begins = np.cumsum([0, *[len(document) + 1 for document in documents]])
    found = {
        int(begins[number]) + place
        for number, spans in enumerate(find_spans(documents, k))
        for place, _, _ in windows_of(spans, k)
    }
    assert found == expected and len(found) > 500


def test_windows_hash_the_same_wherever_they_stand() -> None:
    pick = np.random.default_rng(0)
    tokens = pick.integers(0, 2**64, 70_000, np.uint64)
    tokens[40_000:40_300] = tokens[100:400]
    key, check = window_hashes(tokens, 50)
    assert len(key) == len(check) == 70_000 - 49
    assert (key[40_000:40_251] == key[100:351]).all() and (check[40_000:40_251] == check[100:351]).all()
    assert len(np.unique(key)) == len(np.unique(check)) == len(key) - 251
    assert all(len(hashes) == 0 for hashes in window_hashes(tokens[:49], 50))


def test_a_million_small_ids_do_not_collide() -> None:
    counting = np.arange(200_000, dtype=np.uint64)
    for tokens in (counting, counting << np.uint64(40), counting * np.uint64(3) % np.uint64(65_537)):
        assert sum(map(len, find_spans([tokens[:60_000]], 2))) == 0


def test_more_than_the_memory_holds(tmp_path: Path) -> None:
    pick = np.random.default_rng(0)
    documents = [pick.integers(0, 50_000, 1000).astype(np.uint64) for _ in range(400)]
    documents[300][200:500] = documents[7][600:900]
    found = {number: spans for number, spans in enumerate(find_spans(documents, scratch=tmp_path, memory=1 << 20)) if spans}
    assert found == {300: [Span(200, 500, 7, 600)]}
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_a_text_that_repeats_itself_keeps_one_period() -> None:
    text = "one two three " * 60
    tokens, offsets = word_tokens(text)
    (spans,) = find_spans([tokens])
    assert spans[0] == Span(3, 55, 0, 0) and spans[-1].end == 180
    assert apply_spans(text, offsets, spans, SubstringConfig(min_characters=0)).text == "one two three "


@given(st.text(max_size=50) | st.text(alphabet="ab \n\t\x1c\x85\u3000\u2003😀\ud800", max_size=50))
def test_word_tokens_are_the_words_between_white_space(text: str) -> None:
    tokens, offsets = word_tokens(text)
    assert [text[begin:end] for begin, end in offsets] == text.split() and len(tokens) == len(offsets)


TEXT = "alpha beta gamma delta epsilon zeta\neta theta iota kappa lambda mu"


def applied(spans: list[tuple[int, int]], **settings: object) -> tuple[str, list[tuple[int, int]], Removal | None]:
    _, offsets = word_tokens(TEXT)
    cfg = SubstringConfig.model_validate({"min_characters": 5, **settings})
    return apply_spans(TEXT, offsets, [Span(*span, 9, 9) for span in spans], cfg)


def test_the_variants() -> None:
    assert applied([]) == (TEXT, [], None)
    text, cuts, removal = applied([(1, 3), (2, 5), (7, 8)])
    assert text == "alpha zeta\neta iota kappa lambda mu" and removal is None
    assert [TEXT[begin:end] for begin, end in cuts] == ["beta gamma delta epsilon ", "theta "]
    assert applied([(1, 5)], variant="mask", marker="…")[0] == "alpha … zeta\neta theta iota kappa lambda mu"
    assert applied([(4, 6)])[0] == "alpha beta gamma delta\neta theta iota kappa lambda mu"
    assert applied([(5, 7)])[0] == "alpha beta gamma delta epsilon theta iota kappa lambda mu"
    assert applied([(0, 6)])[0] == "eta theta iota kappa lambda mu"
    assert applied([(6, 12)])[0] == "alpha beta gamma delta epsilon zeta\n"
    assert applied([(0, 1)], variant="drop_any") == (TEXT, [], Removal("duplicate_passages", 1 / 12, 0.0))
    assert applied([(0, 2)], variant="drop_partial") == (TEXT, [], None)
    assert applied([(0, 3)], variant="drop_partial")[2] == Removal("duplicate_passages", 0.25, 0.2)
    assert applied([(0, 11)])[2] == Removal("few_characters", 2, 5)
    assert applied([(0, 12)])[:2] == ("", [(0, len(TEXT))])


def test_cuts_shrink_to_whole_words_and_lines() -> None:
    offsets = np.array([[0, 2], [2, 8], [8, 13], [13, 40], [40, len(TEXT)]])  # tokens that end inside of words
    cfg = {"min_characters": 0}
    spans = [Span(1, 4, 0, 0)]

    def cut(snap: str) -> str:
        return apply_spans(TEXT, offsets, spans, SubstringConfig.model_validate({**cfg, "snap": snap})).text

    assert cut("none") == TEXT[:2] + TEXT[40:].lstrip()
    assert cut("word") == "alpha theta iota kappa lambda mu"
    assert cut("line") == TEXT
    whole = apply_spans(TEXT, offsets, [Span(2, 5, 0, 0)], SubstringConfig(snap="line", min_characters=0))
    assert whole.text == "alpha beta gamma delta epsilon zeta\n"


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(1, 12)), max_size=5), st.text(alphabet="ab \n", max_size=60))
def test_what_is_cut_is_what_is_gone(raw: list[tuple[int, int]], text: str) -> None:
    _, offsets = word_tokens(text)
    spans = [Span(start, min(start + length, len(offsets)), 0, 0) for start, length in raw if start < len(offsets)]
    new, cuts, _ = apply_spans(text, offsets, spans, SubstringConfig(min_characters=0))
    gone = [place for begin, end in cuts for place in range(begin, end)]
    assert sorted(set(gone)) == gone
    assert new == "".join(character for place, character in enumerate(text) if place not in gone)
    seen = {token for span in spans for token in range(span.start, span.end)}
    assert new.split() == [word for token, word in enumerate(text.split()) if token not in seen]
