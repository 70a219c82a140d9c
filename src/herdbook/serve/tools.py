"""Calls of tools in a model's text, where its chat template teaches them.

The format is Hermes' (NousResearch, also Qwen's): `<tool_call>{"name": …, "arguments": {…}}</tool_call>`. What is no such
JSON, or is cut off, stays text.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from typing import Any

BEGIN, END = "<tool_call>", "</tool_call>"


def takes_tools(template: str | None) -> bool:
    """Whether a chat template shows tools to the model."""
    return template is not None and "tools" in template


def tells_calls(template: str | None) -> bool:
    """Whether a chat template teaches the format of calls that is known here."""
    return takes_tools(template) and BEGIN in str(template)


@dataclass
class ToolReader:
    """Splits a stream of text into what is shown and what calls a tool, wherever pieces are cut.

    Attributes:
        calls: how many were found.
    """

    calls: int = 0
    _held: str = field(default="", repr=False)

    def push(self, text: str, *, last: bool = False) -> tuple[str, list[dict[str, Any]]]:
        """Text that may be shown now, and calls that are complete; with `last` nothing is held back."""
        self._held += text
        shown, found = "", []
        while BEGIN in self._held:
            before, _, rest = self._held.partition(BEGIN)
            inside, end, after = rest.partition(END)
            if not end:
                break
            call = self._call(inside)
            if call is None:
                shown += before + BEGIN + inside + END
            else:
                shown += before
                found.append(call)
            self._held = after
        if last:
            keep = 0
        elif BEGIN in self._held:
            keep = len(self._held) - self._held.index(BEGIN)
        else:
            keep = next((size for size in range(len(BEGIN) - 1, 0, -1) if self._held.endswith(BEGIN[:size])), 0)
        cut = len(self._held) - keep
        shown, self._held = shown + self._held[:cut], self._held[cut:]
        return shown, found

    def _call(self, text: str) -> dict[str, Any] | None:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return None
        arguments = value.get("arguments", value.get("parameters", {}))
        self.calls += 1
        written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return {
            "index": self.calls - 1, "id": f"call_{secrets.token_hex(12)}", "type": "function",
            "function": {"name": value["name"], "arguments": written},
        }  # fmt: skip
