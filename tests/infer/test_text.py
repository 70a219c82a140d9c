"""Stop strings across any cut of the text."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from herdbook.infer.config import Sampling
from herdbook.infer.text import StopStrings, Writer

from .conftest import byte_tokenizer

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


def test_writers_that_branch_go_apart() -> None:
    tokenizer = byte_tokenizer()
    euro = tokenizer.encode("€")
    writer = Writer(Sampling(stop=("ab",)), tokenizer, 10)
    for token in (*tokenizer.encode("xa"), *euro[:2]):
        assert writer.take(token)
    twin = writer.copy()
    assert writer.take(euro[2])
    assert twin.take(tokenizer.encode("b")[0])
    assert (writer.text, writer.room, writer.reason) == ("xa€", 5, None)
    assert twin.text.startswith("xa")
    assert "€" not in twin.text


def test_writers_end_by_room_end_token_and_stop() -> None:
    tokenizer = byte_tokenizer()
    letters = tokenizer.encode("abab")
    full = Writer(Sampling(), tokenizer, 2)
    assert [full.take(token) for token in letters[:2]] == [True, True]
    assert (full.reason, full.text, full.room) == ("length", "ab", 0)
    ended = Writer(Sampling(stop_ids=(letters[1],)), tokenizer, 9)
    assert [ended.take(token) for token in letters[:2]] == [True, False]
    assert (ended.reason, ended.ids) == ("stop", letters[:1])
    assert Writer(Sampling(), tokenizer, 9).take(tokenizer.eos_id or 0) is False
    assert Writer(Sampling(ignore_end=True), tokenizer, 9).take(tokenizer.eos_id or 0) is True
    assert Writer(Sampling(), None, 0).reason == "length"
