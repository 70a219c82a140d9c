from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdbook.errors import UserError
from herdbook.facts.mixtures import Printed, _printed, check_mixture, find_mixture, list_mixtures
from herdbook.facts.models import list_models
from herdbook.units import parse_bytes, parse_count, parse_share


def test_every_table_says_where_it_is_from() -> None:
    catalogue = {model.name for model in list_models()}
    for mixture in list_mixtures():
        assert mixture.source and mixture.seen in ("paper", "copy", "memory")
        assert mixture.models and set(mixture.models) <= catalogue
        assert set(mixture.weights) == set(mixture.sources)
        assert mixture.partial or sum(mixture.weights.values()) == pytest.approx(1, abs=0.011)


def test_the_mistake_in_the_table_of_mpt_7b() -> None:
    findings = check_mixture(find_mixture("mpt-7b"))
    epochs = [finding for finding in findings if "epochs" in finding.what]
    assert [finding.source for finding in epochs] == ["mc4"]
    assert "a leading 2 seems to be lost (2417.99B)" in epochs[0].what
    assert {finding.source for finding in findings} == {"mc4", "s2orc"}, "and the two MPT tables differ on S2ORC's size"


def test_what_else_is_found() -> None:
    found = {mixture.name: {finding.source for finding in check_mixture(mixture)} for mixture in list_mixtures()}
    mistaken = {name: sources for name, sources in found.items() if sources}
    assert mistaken == {"gpt3": {"webtext2"}, "mpt-7b": {"mc4", "s2orc"}, "mpt-30b": {"mc4", "s2orc"}}
    [webtext] = check_mixture(find_mixture("gpt3"))
    assert "2.9 epochs of 19B are 55.1B tokens, and its share of the training is 66B" in webtext.what
    assert "seems to be lost" not in webtext.what


def test_mistakes_put_into_a_good_table_are_found() -> None:
    good = find_mixture("mpt-30b")
    books = good.sources["books"]
    for change, says in (
        ({"weight": _printed("13.00%", parse_share)}, "the shares add up to 110.0%"),
        ({"weight": _printed("13.00%", parse_share)}, "13.00% of 1T tokens is not the 30B"),
        ({"trained": _printed("90B", parse_count)}, "the sources add up to 1.06T tokens"),
        ({"epochs": _printed("11.5", float)}, "2.55B to 2.66B tokens, or 1.13 to 1.17 epochs, would fit"),
        ({"disk": _printed("700GB", parse_bytes)}, "bytes a token"),
    ):
        changed = replace(good, sources={**good.sources, "books": replace(books, **change)})
        assert any(says in finding.what for finding in check_mixture(changed)), says


@given(st.integers(1, 10**6), st.integers(0, 4))
def test_a_number_may_be_off_by_half_its_last_digit(number: int, places: int) -> None:
    text = f"{number / 10**places:.{places}f}"
    printed = _printed(text, float)
    assert printed is not None
    assert printed.high - printed.low == pytest.approx(10.0**-places)
    assert printed.low < float(text) < printed.high


def test_printed_units() -> None:
    assert _printed("67.0%", parse_share) == Printed("67.0%", 0.67, pytest.approx(0.6695), pytest.approx(0.6705))
    assert _printed("417.99B", parse_count) == Printed("417.99B", 417.99e9, 417.985e9, 417.995e9)
    assert _printed(None, float) is None


def test_the_share_of_code() -> None:
    assert find_mixture("llama").share_of("code") == pytest.approx(0.045)
    assert find_mixture("mpt-30b").share_of("code") == pytest.approx(0.10)
    assert find_mixture("bloom").share_of("code") == pytest.approx(0.13)
    assert find_mixture("gpt3").share_of("code") == 0


def test_an_unknown_name() -> None:
    with pytest.raises(UserError, match=r"did you mean llama\?"):
        find_mixture("lama")
