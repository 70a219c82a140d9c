"""Stop strings across any cut of the text."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.infer.text import StopStrings

letters = st.text("ab", max_size=30)


@settings(deadline=None)
@given(letters, st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.lists(st.integers(1, 5), max_size=30))
def test_stops_at_the_first_match_however_the_text_is_cut(text: str, stops: list[str], sizes: list[int]) -> None:
    finder, shown, rest, stopped = StopStrings(stops), "", text, False
    for size in [*sizes, len(text)]:
        piece, rest = rest[:size], rest[size:]
        out, stopped = finder.push(piece)
        shown += out
        if stopped:
            break
        assert not any(stop in shown for stop in stops)
    shown += finder.flush()
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert stopped == bool(ends)
    if not stopped:
        assert shown == text
    else:
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)
        assert any(text[len(shown) :].startswith(stop) for stop in stops)


def test_nothing_is_held_back_that_cannot_become_a_stop() -> None:
    finder = StopStrings(["\nUser:"])
    assert finder.push("hello\n") == ("hello", False)
    assert finder.push("Us") == ("", False)
    assert finder.push("ually") == ("\nUsually", False)
