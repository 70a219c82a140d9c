from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdbook.errors import UserError
from herdbook.facts.licenses import UNKNOWN, find_expression, find_license, known_licenses, strictest

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


def test_silence_gives_no_right() -> None:
    assert not strictest([]).commercial
    assert not find_license("LicenseRef-our-terms").commercial


def test_an_unknown_name_says_what_was_meant() -> None:
    with pytest.raises(UserError, match=r"did you mean CC-BY-4\.0"):
        find_license("CC-BY-4")
    with pytest.raises(UserError, match="SPDX"):
        find_license("house rules")
