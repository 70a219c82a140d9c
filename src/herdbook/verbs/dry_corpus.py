"""`herdbook curate --dry-run`, for a person: the sources, the steps with their settings, and what is kept of what is there."""

from __future__ import annotations

from typing import Any

from herdbook.console import Terminal
from herdbook.units import human_bytes

_LISTED = 4  # items of a list that are shown


def show(facts: dict[str, Any], terminal: Terminal) -> None:
    """Say what `preview` found."""
    terminal.step("What curating would do", f"in {facts['run']}; nothing was done")
    terminal.say(f"{facts['state']}: {facts['why']}")
    changed = [(name, _value(then), _value(now)) for name, (then, now) in facts["changed"].items()]
    if changed:
        terminal.table(["setting", "then", "now"], changed)
    terminal.say()
    rows = [
        (row["name"], row["from"] if isinstance(row["from"], str) else ", ".join(row["from"]), row["license"] or "unknown",
         f"{row['files']:,}", human_bytes(row["bytes"]), f"{row['jobs']:,}", _notes(row))
        for row in facts["sources"]
    ]  # fmt: skip
    terminal.table(["source", "from", "licence", "files", "bytes", "jobs", "notes"], rows)
    terminal.say()
    steps = [(stage["title"], stage["step"], _settings(stage["settings"])) for stage in facts["stages"]]
    split = ("held-out split", "", f"heldout={facts['heldout']:g}, seed={facts['seed']}")
    terminal.table(["step", "name", "settings"], [*steps, split])
    terminal.say()
    if facts["lists"]:
        terminal.say(f"lists, models and evaluation sets: {', '.join(facts['lists'])}")
    left = facts["jobs"] - facts["jobs_done"]
    terminal.say(
        f"{left:,} of {facts['jobs']:,} jobs to do ({human_bytes(facts['bytes'])} in {facts['files']:,} files), by "
        f"{facts['workers']} processes ({facts['executor']}); {human_bytes(facts['disk_free_bytes'])} of disk are free"
    )


def _notes(row: dict[str, Any]) -> str:
    notes = [*row["notes"][:_LISTED], *([f"{len(row['notes']) - _LISTED} more"] if len(row["notes"]) > _LISTED else [])]
    notes += [f"{row['limit']:,} documents at most"] if row["limit"] else []
    return "; ".join(notes + ([] if row["filtered"] else ["spared the filters"]))


def _settings(settings: dict[str, Any]) -> str:
    """Keys without their section: the step beside them says it."""
    return ", ".join(f"{name.rsplit('.', 1)[-1]}={_value(value)}" for name, value in settings.items())


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(below)}" for key, below in value.items()) + "}"
    if isinstance(value, list):
        more = [f"… {len(value)} in all"] if len(value) > _LISTED else []
        return "[" + ", ".join([*map(_value, value[:_LISTED]), *more]) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
