"""The text side of a sequence: ids to whole characters, stop strings in a stream of text wherever token borders fall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from herdbook.infer.config import Sampling
from herdbook.tokenizer import TextStream, Tokenizer

FinishReason = Literal["stop", "length", "cancelled", "timeout"]


class StopStrings:
    """Passes text on, except for a stop string and what follows it; text that may be the start of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that may be shown now, and whether a stop string was met (then nothing more may be pushed)."""
        held = self._held + text
        found = [place for place in (held.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self._held = ""
            return held[: min(found)], True
        keep = max((self._overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def copy(self) -> StopStrings:
        """For a text that branches."""
        twin = StopStrings(self._stops)
        twin._held = self._held
        return twin

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of `text` that begins `stop`."""
        longest = min(len(text), len(stop) - 1)
        return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


class Writer:
    """Takes tokens one by one and knows when the text is over.

    Args:
        room: most tokens to take.
        before: ids that the text follows, as `TextStream` wants them.

    Attributes:
        ids: the tokens, without one that ended the text.
        text: what may be shown so far.
        reason: why it is over; None while it goes on.
    """

    def __init__(self, sampling: Sampling, tokenizer: Tokenizer | None, room: int, before: Sequence[int] = ()) -> None:
        ends = tokenizer.end_ids if tokenizer is not None and not sampling.ignore_end else frozenset()
        self._ends = ends | frozenset(sampling.stop_ids)
        self._stream = None if tokenizer is None else TextStream(tokenizer, before)
        self._stops = StopStrings(sampling.stop)
        self._room = room
        self.ids: list[int] = []
        self.text = ""
        self.reason: FinishReason | None = "length" if room == 0 else None

    @property
    def room(self) -> int:
        """Tokens it still takes."""
        return self._room - len(self.ids)

    def take(self, token: int) -> bool:
        """The next token; False when it only ends the text. `reason` says afterwards whether it was the last."""
        if token in self._ends:
            self.finish("stop")
            return False
        self.ids.append(token)
        if self._stream is not None and self._release(self._stream.push(token)):
            self.reason = "stop"
        elif len(self.ids) == self._room:
            self.finish("length")
        return True

    def finish(self, reason: FinishReason) -> None:
        """End the text, and show what was held back."""
        self.reason = reason
        if self._stream is not None:
            if self._release(self._stream.flush()):
                self.reason = "stop"
            else:
                self.text += self._stops.flush()

    def copy(self) -> Writer:
        """For a text that branches."""
        twin = object.__new__(Writer)
        twin._ends, twin._room, twin.text, twin.reason = self._ends, self._room, self.text, self.reason
        twin._stream = None if self._stream is None else self._stream.copy()
        twin._stops, twin.ids = self._stops.copy(), list(self.ids)
        return twin

    def _release(self, text: str) -> bool:
        out, stopped = self._stops.push(text)
        self.text += out
        return stopped
