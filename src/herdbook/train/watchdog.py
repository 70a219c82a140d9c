"""A step that never ends: a deadlocked collective, a dead disk. The process says where it hangs, and ends.

Nothing can be saved from within a hung step, but the last checkpoint is there, and a launcher that restarts processes goes on
from it; a hung process would keep its machine for nothing.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from pathlib import Path
from types import TracebackType

HANG = "hang.txt"
EXIT_CODE = 75  # "temporary failure": try again, in the words of sysexits.h


class Watchdog:
    """Within the block, ends the process when `alive` has not been called for `after_s` seconds; None never does."""

    def __init__(self, out: Path, after_s: float | None) -> None:
        self.out, self.after_s = out, after_s
        self._last = time.monotonic()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def alive(self) -> None:
        """A step is done."""
        self._last = time.monotonic()

    def __enter__(self) -> Watchdog:
        if self.after_s is not None:
            self.alive()
            self._thread = threading.Thread(target=self._watch, args=(self.after_s,), name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()

    def _watch(self, after_s: float) -> None:
        while not self._done.wait(min(after_s / 4, 10.0)):
            if time.monotonic() - self._last > after_s:
                self._end(after_s)

    def _end(self, after_s: float) -> None:
        try:
            with (self.out / HANG).open("a", encoding="utf-8") as stream:
                stream.write(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')}: no step was done for {after_s:.0f} s; all threads:\n")
                stream.flush()
                faulthandler.dump_traceback(stream, all_threads=True)
        finally:
            message = f"error: training hangs: no step was done for {after_s:.0f} s; see {self.out / HANG}\n"
            os.write(2, f"{message}  → run the same command again to go on from the last checkpoint\n".encode())
            os._exit(EXIT_CODE)
