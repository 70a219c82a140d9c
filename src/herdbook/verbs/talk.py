"""`herdbook generate` and `herdbook chat`: a model's text on stdout, piece by piece."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from herdbook import pedigree
from herdbook.console import Terminal, emit
from herdbook.errors import UserError

if TYPE_CHECKING:
    from herdbook.api import LanguageModel

HELP = "commands: /reset begins anew, /system TEXT sets the system message, /help, /quit (or Ctrl-D)"


def find_model(path: str) -> str:
    """The model folder meant by `path`: itself, or of a run the fine-tuned model if there is one, else the base model."""
    for name in ("sft", "pretrain"):
        if pedigree.exists(Path(path) / name) and (Path(path) / name / "config.json").is_file():
            return str(Path(path) / name)
    return path


def generate(path: str, prompt: str, settings: dict[str, Any], n: int, *, allow_pickle: bool, as_json: bool) -> None:
    """Continue a prompt `n` times; the first seed is drawn when none is given, the next ones count up from it."""
    from herdbook.api import load

    lm = load(find_model(path), dtype="auto", packed=True, allow_pickle=allow_pickle)
    first = settings.pop("seed")
    first = secrets.randbelow(2**31) if first is None else first
    if as_json:
        texts = [lm.generate(prompt, seed=first + index, **settings) for index in range(n)]
        emit({"model": lm.source, "prompt": prompt, "seed": first, "completions": texts})
        return
    for index in range(n):
        pieces = lm.stream(prompt, seed=first + index, **settings)  # refuses at once, before anything is shown
        _flow([prompt])
        _flow(pieces)
        _flow(["\n" if index == n - 1 else "\n\n---\n\n"])


def chat(path: str, system: str | None, settings: dict[str, Any], terminal: Terminal, *, allow_pickle: bool = False) -> None:
    """A conversation, line by line; piped input is answered line by line too."""
    from herdbook.api import load

    lm = load(find_model(path), dtype="auto", packed=True, allow_pickle=allow_pickle)
    if lm.tokenizer is None or lm.tokenizer.chat_template is None:
        raise UserError("this model has no chat template: it continues text, it was not taught to answer", where=lm.source,
                        todo=f"`herdbook generate {path} \"…\"`, or fine-tune it with `herdbook sft`")  # fmt: skip
    terminal.say(f"{lm.source}: {lm.parameters:,} parameters; {lm.license.in_words() if lm.license else 'no licence'}")
    if sys.stdin.isatty():
        terminal.say(HELP, style="dim")
    opening = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    seed = settings.pop("seed")
    while (line := _ask()) is not None:
        if line.startswith("/"):
            if line in ("/quit", "/exit"):
                return
            if line.startswith("/system "):
                opening = [{"role": "system", "content": line.removeprefix("/system ").strip()}]
            if line.startswith(("/reset", "/system ")):
                messages = list(opening)
                terminal.say("a new conversation", style="dim")
            else:
                terminal.say(HELP, style="dim")
            continue
        if line.strip():
            messages.append({"role": "user", "content": line})
            reply = _reply(lm, messages, settings, seed, terminal)
            if reply is None:
                messages.pop()
            else:
                messages.append({"role": "assistant", "content": reply})


def _ask() -> str | None:
    """The next line of the user's, or None at the end."""
    if sys.stdin.isatty():
        try:
            return input("you> ")
        except (EOFError, KeyboardInterrupt):
            sys.stderr.write("\n")
            return None
    line = sys.stdin.buffer.readline()
    return line.decode("utf-8", errors="replace").rstrip("\n") if line else None


def _reply(
    lm: LanguageModel, messages: list[dict[str, str]], settings: dict[str, Any], seed: int | None, terminal: Terminal
) -> str | None:
    """Stream the reply; Ctrl-C ends it early and keeps what there is. Old turns are dropped when the context is full.

    None when the last message alone is longer than the context.
    """
    assert lm.tokenizer is not None
    reserve = min(settings["max_tokens"], lm.config.context // 4)
    while len(messages) > 1 and len(lm.tokenizer.encode_chat(messages)) + reserve > lm.config.context:
        drop = 1 if messages[0]["role"] == "system" else 0
        if len(messages) <= drop + 1:
            break
        del messages[drop : drop + 2]
        terminal.say("(the oldest turn no longer fits the context and is left out)", style="dim")
    room = lm.config.context - len(lm.tokenizer.encode_chat(messages))
    if room < 1:
        terminal.warn(f"that is longer than the model's context of {lm.config.context} tokens: say it shorter")
        return None
    drawn = seed if seed is not None else secrets.randbelow(2**31)
    parts: list[str] = []
    try:
        for piece in lm.stream_chat(messages, seed=drawn, **{**settings, "max_tokens": min(room, settings["max_tokens"])}):
            parts.append(piece)
            _flow([piece])
    except KeyboardInterrupt:
        terminal.say(" (stopped)", style="dim")
    _flow(["\n"])
    return "".join(parts)


def _flow(pieces: Iterable[str]) -> None:
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
