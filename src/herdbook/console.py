"""What a person reads goes to stderr, what a program reads goes to stdout.

`Terminal` is handed down to the stations, so that none of them prints by itself: `say` for a line, `warn` for something that
deserves a look, `progress` for long work, `table` for facts. On a terminal progress is one live line; in a log it is a plain
line now and then. `--quiet` silences everything but warnings; NO_COLOR is respected (by rich).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from herdbook.units import human_seconds


class Progress:
    """A running count that shows itself: call `advance` with what was done, or `show` with a whole line."""

    def __init__(self, terminal: Terminal, title: str, total: int | None, *, every_s: float) -> None:
        self._terminal, self._title, self._total, self._every_s = terminal, title, total, every_s
        self._done, self._started, self._shown = 0, time.monotonic(), 0.0
        self._status = None
        if terminal.live:
            self._status = terminal.console.status(escape(title))
            self._status.start()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Note that `count` more are done."""
        self._done += count
        of = f"/{self._total:,}" if self._total else ""
        left = ""
        elapsed = time.monotonic() - self._started
        if self._total and self._done and elapsed > 2:
            left = f"  {human_seconds(elapsed / self._done * max(0, self._total - self._done))} left"
        self.show(f"{self._title}: {self._done:,}{of}{left}" + (f"  {note}" if note else ""))

    def show(self, line: str) -> None:
        """Show `line` in place of the last one (live) or, at most every few seconds, as a line of a log."""
        now = time.monotonic()
        if self._status is not None:
            if now - self._shown >= 0.1:
                self._status.update(escape(line))
                self._shown = now
        elif not self._terminal.quiet and now - max(self._shown, self._started) >= self._every_s:
            self._terminal.console.print(escape(line), soft_wrap=True)
            self._shown = now

    def close(self) -> None:
        """Take the live line away."""
        if self._status is not None:
            self._status.stop()


class Terminal:
    """The person's side of a run.

    Args:
        quiet: only warnings and errors.
        as_json: facts are emitted as JSON on stdout, so tables are not drawn.
    """

    def __init__(self, *, quiet: bool = False, as_json: bool = False, console: Console | None = None) -> None:
        # A log has no width of its own; 80 columns, rich's guess, would fold most tables.
        width = None if sys.stderr.isatty() else 120
        self.console = console or Console(stderr=True, highlight=False, width=width)
        self.quiet, self.as_json = quiet, as_json

    @property
    def live(self) -> bool:
        """Whether progress is redrawn in place."""
        return self.console.is_terminal and not self.quiet

    def say(self, text: str = "", *, style: str | None = None) -> None:
        """A line for the person; printed as it is (no markup)."""
        if not self.quiet:
            self.console.print(text, style=style, markup=False, soft_wrap=True)

    def step(self, title: str, note: str = "") -> None:
        """The heading of a part of the work."""
        if not self.quiet:
            self.console.print(
                f"[bold]{escape(title)}[/bold]" + (f"  [dim]{escape(note)}[/dim]" if note else ""), soft_wrap=True
            )

    def warn(self, text: str) -> None:
        """Something that deserves a look; shown even when quiet."""
        self.console.print(f"[yellow]warning:[/yellow] {escape(text)}", soft_wrap=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None) -> None:
        """Rows of facts; columns whose cells are all numbers stand to the right."""
        if self.quiet or self.as_json:
            return
        table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
        for index, column in enumerate(columns):
            numeric = bool(rows) and all(str(row[index])[:1] in "0123456789-−+.≈" or not str(row[index]) for row in rows)
            table.add_column(escape(column), justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(escape(str(cell)) for cell in row))
        self.console.print(table)

    @contextmanager
    def progress(self, title: str, total: int | None = None, *, every_s: float = 15.0) -> Iterator[Progress]:
        """Progress of long work; the live line goes away when the block ends."""
        progress = Progress(self, title, total, every_s=every_s)
        try:
            yield progress
        finally:
            progress.close()


def emit(value: Any) -> None:
    """Facts for a program: one JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()
