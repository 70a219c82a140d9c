from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdbook.errors import UserError
from herdbook.facts.licenses import UNKNOWN, License, find_expression, find_license, known_licenses, strictest

licenses = st.lists(st.sampled_from(known_licenses()), min_size=1, max_size=4)


@given(licenses)
def test_the_strictest_grants_only_what_all_grant(rows: list) -> None:
    one = strictest(rows)
    assert one.commercial == all(row.commercial for row in rows)
    assert one.derivatives == all(row.derivatives for row in rows)
    assert one.notice == any(row.notice for row in rows)
    assert one.share_alike == any(row.share_alike for row in rows)
    assert strictest(reversed(rows)) == one
    assert find_expression(one.id) == one


@pytest.mark.parametrize(
    ("name", "found"),
    [("mit", "MIT"), ("BSD", "BSD-3-Clause"), ("Apache 2", "Apache-2.0"), ("cc by-sa 4.0", "CC-BY-SA-4.0"), (None, UNKNOWN)],
)
def test_usual_names(name: str | None, found: str) -> None:
    assert find_license(name).id == found


@pytest.mark.parametrize(
    ("tag", "found"),
    [
        ("llama2", "LicenseRef-llama-2"),
        ("bigscience-bloom-rail-1.0", "LicenseRef-BigScience-BLOOM-RAIL-1.0"),
        ("apache-2.0", "Apache-2.0"),
        ("openrail", "LicenseRef-OpenRAIL"),
        ("tii-falcon-llm", "LicenseRef-TII-Falcon-1.0"),
        ("cc-by-nc-sa-4.0", "CC-BY-NC-SA-4.0"),
        ("gpl-3.0", "GPL-3.0-or-later"),
        ("other", UNKNOWN),
    ],
)
def test_tags_of_the_hub(tag: str, found: str) -> None:
    assert find_license(tag).id == found


def test_conditions_flow_down() -> None:
    bloom, opt = find_license("bigscience-bloom-rail-1.0"), find_license("LicenseRef-OPT-175B")
    assert bloom.commercial
    assert "passed on" in bloom.in_words()
    assert not opt.commercial
    both = strictest([bloom, opt, find_license("MIT")])
    assert bloom.conditions in both.in_words()
    assert opt.conditions in both.in_words()
    assert find_license("MIT").in_words() == "MIT: commercial use allowed; name the authors"


def test_combined_licences_count_as_their_parts() -> None:
    llama = find_license("LicenseRef-llama-1")
    both = find_expression("MIT AND LicenseRef-llama-1")
    assert strictest([both, llama]) == both


def test_a_licence_stored_by_an_older_version_still_reads() -> None:
    stored = {key: value for key, value in find_license("llama2").as_dict().items() if key != "conditions"}
    assert License(**stored).conditions == ""


def test_silence_gives_no_right() -> None:
    assert not strictest([]).commercial
    assert not find_license("LicenseRef-our-terms").commercial


def test_an_unknown_name_says_what_was_meant() -> None:
    with pytest.raises(UserError, match=r"did you mean CC-BY-4\.0"):
        find_license("CC-BY-4")
    with pytest.raises(UserError, match="SPDX"):
        find_license("house rules")
