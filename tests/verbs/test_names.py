from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from herdbook.corpus.config import Source
from herdbook.recipe import Recipe
from herdbook.verbs.names import ascii_name, names_for


@given(st.lists(st.text(min_size=1, max_size=30), max_size=5, unique=True))
def test_every_path_gets_a_name_that_recipes_accept(paths: list[str]) -> None:
    named = names_for(paths)
    assert sorted(named.values()) == sorted(paths)
    for name in named:
        Source(name=name, path="x")
        Recipe(name=name)


def test_names_stay_readable() -> None:
    assert ascii_name("crawl/pägé [1].html") == "page-1"
    assert ascii_name("*.nope") == "source"
    assert list(names_for(["a/x.warc.gz", "b/x.warc.gz"])) == ["x", "x-2"]
