"""SIGINT and SIGTERM end a run after the step at hand; a second Ctrl-C ends it at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from herdbook.launched import launched

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Within the block, `received` is the number of the signal that asked to stop, or None.

    The first signal also puts the former handlers back, so that a second one works as it always does. Not so under torchrun:
    Slurm may signal it and its processes, and it passes the signal on, so one request arrives twice. Outside the main thread,
    where Python allows no handlers, nothing is caught.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if not launched():
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}
