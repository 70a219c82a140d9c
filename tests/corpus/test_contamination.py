from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from herdbook.corpus.config_dedup import ContaminationConfig
from herdbook.corpus.contamination import EvaluationIndex, Hit, Item, decontaminate, words_of
from herdbook.corpus.filters import Removal

GPT3, LLAMA2 = ContaminationConfig(), ContaminationConfig(method="llama2")


def words(count: int, seed: int) -> list[str]:
    pick = random.Random(seed)
    return [f"w{pick.getrandbits(40):x}" for _ in range(count)]


def index(*texts: list[str], cfg: ContaminationConfig = GPT3, task: str = "quiz") -> EvaluationIndex:
    return EvaluationIndex([Item(task, str(number), [" ".join(text)]) for number, text in enumerate(texts)], cfg)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=12), min_size=1, max_size=4),
    st.lists(st.sampled_from("abc"), max_size=25),
    st.integers(2, 4),
)
def test_gpt3_hits_are_the_ngrams_by_brute_force(texts: list[list[str]], document: list[str], n: int) -> None:
    cfg = ContaminationConfig(min_ngram=n, max_ngram=n)
    ours = index(*texts, cfg=cfg)
    hits = ours.find_hits(document)
    found = {(hit.item, hit.start + step) for hit in hits for step in range(hit.length - n + 1)}
    expected = {
        (str(number), place)
        for number, text in enumerate(texts)
        for place in range(len(document) - n + 1)
        if any(text[other : other + n] == document[place : place + n] for other in range(len(text) - n + 1))
    }
    assert found == expected
    for hit in hits:
        text = texts[int(hit.item)]
        assert document[hit.start : hit.start + hit.length] == text[hit.item_start : hit.item_start + hit.length]
    assert ours.report()["quiz"]["hit"] == sorted({item for item, _ in expected})


def test_n_follows_the_lengths_of_a_set() -> None:
    items = [Item("short", str(n), [" ".join(words(5, n))]) for n in range(10)]
    items += [Item("middle", str(n), [" ".join(words(10, n + 100))]) for n in range(10)]
    items += [Item("long", str(n), [" ".join(words(60, n + 200))]) for n in range(10)]
    ours = EvaluationIndex(items, GPT3)
    assert ours.sizes == {"short": 8, "middle": 10, "long": 13}
    assert ours.report()["short"]["too_short"] == 10
    assert ours.find_hits(words(5, 3)) == []
    assert ours.find_hits(words(10, 105)) == [Hit("middle", "5", 0, 10, 0)]
    assert ours.find_hits(["x", *words(60, 203)[20:33]]) == [Hit("long", "3", 1, 13, 20)]
    assert ours.find_hits(words(60, 203)[20:32]) == []


def test_case_and_punctuation_do_not_hide_a_copy() -> None:
    ours = index(words(20, 0))
    copy = "“" + ", ".join(words(20, 0)).upper() + "!”"
    assert ours.find_hits(words_of("Yes: " + copy)) == [Hit("quiz", "0", 1, 20, 0)]


def test_ngrams_do_not_cross_the_texts_of_an_item() -> None:
    all_ = words(20, 0)
    ours = EvaluationIndex([Item("t", "a", [" ".join(all_[:10]), "", " ".join(all_[10:])])], ContaminationConfig(max_ngram=8))
    assert ours.find_hits(all_[3:17]) == []
    assert ours.find_hits(all_[1:17]) == [Hit("t", "a", 0, 9, 1)]
    assert ours.find_hits(all_[12:]) == [Hit("t", "a", 0, 8, 12)]


def test_llama2_matches_may_differ_in_four_tokens() -> None:
    item = words(60, 1)
    ours = index(item, cfg=LLAMA2)
    changed = list(item)
    for place in (12, 20, 21, 30):
        changed[place] = "x"
    assert ours.find_hits(changed) == [Hit("quiz", "0", 0, 60, 0), Hit("quiz", "0", 31, 29, 31)]
    ours = index(item, cfg=LLAMA2)
    changed[40] = "y"  # the fifth ends the match before it; from 41 on another one begins
    assert ours.find_hits(changed)[0] == Hit("quiz", "0", 0, 40, 0)
    assert index(item, cfg=LLAMA2).find_hits(item[:10]) == []  # more than ten
    assert index(item, cfg=LLAMA2).find_hits([*item[:10], "x", *item[11:13]]) == [Hit("quiz", "0", 0, 13, 0)]
    assert index(item, cfg=LLAMA2).find_hits([*item[:11], "x", "y"]) == [Hit("quiz", "0", 0, 11, 0)]  # no trailing difference
    assert index(item, cfg=LLAMA2).find_hits([*item[:9], "x", *item[10:15]]) == []  # none in the first ten


def test_the_report_counts_items_by_their_share() -> None:
    items = [words(50, seed) for seed in range(4)]
    ours, other = index(*items, cfg=LLAMA2), index(*items, cfg=LLAMA2)
    ours.find_hits(items[0])
    other.find_hits([*items[1][:20], "x", "y", *words(9, 99), *items[3][30:38]])
    ours.merge(other)
    report = ours.report()["quiz"]
    assert report["hit"] == ["0", "1"] and report["items"] == 4
    assert (report["clean"], report["not_clean"], report["not_dirty"], report["dirty"]) == (2, 2, 3, 1)


def test_common_phrases_are_ignored() -> None:
    ours, other = index(words(30, 0), words(30, 1)), index(words(30, 0), words(30, 1))
    for _ in range(6):
        ours.count([*words(30, 0)[:15], "x", *words(30, 0)[:15]])
        other.count(words(30, 0)[:14])
    ours.count(words(30, 1))
    ours.merge(other)
    ours.ignore_common()
    hits = ours.find_hits([*words(30, 0), *words(30, 1)])
    assert hits == [Hit("quiz", "0", 2, 28, 2), Hit("quiz", "1", 30, 30, 0)]


def test_a_hit_is_cut_with_its_surroundings() -> None:
    item = words(20, 0)
    before, after = "b" * 500 + " ", " " + "a" * 300
    text = before + " ".join(item) + after
    hits = index(item).find_hits(words_of(text))
    assert decontaminate(text, hits, GPT3) == ([before[:-200]], None)  # 101 characters are left of what came after
    assert decontaminate(text, hits, ContaminationConfig(min_piece=50)).pieces == [before[:-200], after[200:]]
    assert decontaminate(text, [], GPT3) == ([text], None)
    assert decontaminate(text, hits, ContaminationConfig(action="drop")) == ([], Removal("contaminated", 20 / 22, 0.0))
    assert decontaminate(text, hits, ContaminationConfig(action="drop", min_share=0.95)).pieces == [text]
    assert decontaminate(" ".join(item), index(item).find_hits(item), GPT3) == ([], Removal("contaminated", 0, 10))


def test_a_document_in_many_pieces_goes() -> None:
    item = " ".join(words(13, 0))
    for copies, removal in ((9, None), (10, Removal("contaminated", 11, 10))):
        text = f" {item} ".join(["c" * 700] * (copies + 1))
        verdict = decontaminate(text, index(words(13, 0)).find_hits(words_of(text)), GPT3)
        assert verdict.removal == removal
        assert len(verdict.pieces) == (0 if removal else 10)


def test_nothing_to_compare_with() -> None:
    for cfg in (GPT3, LLAMA2):
        ours = EvaluationIndex([], cfg)
        ours.count(words(30, 0))
        assert ours.find_hits(words(30, 0)) == [] and ours.report() == {}


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValidationError, match="min_ngram"):
        ContaminationConfig(min_ngram=14)
    with pytest.raises(ValidationError, match="clean_share"):
        ContaminationConfig(clean_share=0.9)
