from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdbook.corpus.config import ExtractConfig
from herdbook.corpus.extract import clean, extract, nesting
from herdbook.corpus.records import Unreadable

CFG = ExtractConfig()


def test_main_content_without_menu_and_footer(samples: ModuleType) -> None:
    text = extract(samples.page("The river runs to the sea. The mountain stands."), CFG)
    assert "river runs" in text and "mountain stands" in text
    assert "Item 3" not in text and "Imprint" not in text
    assert "Item 3" in extract(samples.page("The river."), ExtractConfig(main_content=False))


@pytest.mark.parametrize("html", ["", "<html><body></body></html>", "<script>var a = 1</script>"])
def test_pages_without_text(html: str) -> None:
    with pytest.raises(Unreadable, match="no_main_content"):
        extract(html, CFG)


def test_nesting_that_would_take_minutes_is_refused_at_once() -> None:
    with pytest.raises(Unreadable) as caught:
        extract("<div>" * 100_000 + "text", CFG)
    assert (caught.value.reason, caught.value.value) == ("nested_too_deep", 100_000)
    wide = "<p>some words</p><br>" * 5000
    assert "some words" in extract(f"<html><body><main>{wide}</main></body></html>", CFG)
    assert nesting("<div><ul><li>a<li>b</ul></div><span/>") == 2


@given(st.text(st.characters(), max_size=200))
def test_clean_text_can_be_written_and_stays_clean(text: str) -> None:
    cleaned = clean(text)
    cleaned.encode("utf-8")
    assert "\n\n\n" not in cleaned and "\r" not in cleaned and "\x00" not in cleaned
    assert clean(cleaned) == cleaned


def test_cleaning() -> None:
    assert clean("a \r\n\r\n\r\n\r\nb\u200b\x00\x07c\ud800 ") == "a\n\nbc?"
    assert clean("é\u2029x") == "é\n\nx"
