"""Writes a run's report: `report.html`, one self-contained file, and `report.md` with the same facts."""

from __future__ import annotations

from pathlib import Path

from herdbook.console import Terminal
from herdbook.files import write_text
from herdbook.report.html import html
from herdbook.report.markdown import markdown
from herdbook.report.page import build_page
from herdbook.report.read import read_run


def write_report(run: Path, terminal: Terminal) -> Path:
    """Write the report of a run from the files its stations left; what did not run is left out or said to be missing.

    Args:
        run: the run's folder.

    Returns:
        The path of `report.html`.

    Raises:
        UserError: the folder is no run, or a file in it is broken.
    """
    facts = read_run(run)
    page = build_page(facts)
    write_text(run / "report.md", markdown(page))
    write_text(run / "report.html", html(page))
    missing = [station for station in ("corpus", "pretrain", "eval") if station not in facts.pedigrees]
    if missing:
        terminal.say(f"the report leaves out what has not run: {', '.join(missing)}", style="dim")
    return run / "report.html"
