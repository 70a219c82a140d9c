"""Every ```python block of README and docs/ runs, and every `herdbook` command they name exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from herdbook.cli import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [code for name, code in BLOCK.findall(page.read_text(encoding="utf-8")) if name == language]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"__name__": "__docs__"}
    for number, code in enumerate(blocks(page, "python"), 1):
        exec(compile(code, f"{page.name}, block {number}", "exec"), scope)


def commands(page: Path) -> list[str]:
    """The command lines in console and sh blocks, without prompts and comments; lines that end in a backslash are joined."""
    lines = "\n".join(blocks(page, "console") + blocks(page, "sh")).replace("\\\n", " ").splitlines()
    stripped = [line.removeprefix("$ ").strip() for line in lines]
    return [line for line in stripped if line.startswith("herdbook ")]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_commands_exist_with_the_options_named(page: Path) -> None:
    group = get_command(app)
    for line in commands(page):
        words = shlex.split(line, comments=True)[1:]
        command, rest = group, words
        while rest and hasattr(command, "commands") and not rest[0].startswith("-"):
            assert rest[0] in command.commands, f"{page.name}: `{line}`: there is no verb {rest[0]}"
            command, rest = command.commands[rest[0]], rest[1:]
        options = [(*parameter.opts, *parameter.secondary_opts) for parameter in command.params]
        known = {option for names in options for option in names} | {"--help", "-h"}
        used = {word.split("=")[0] for word in rest if word.startswith("-") and word != "-"}
        assert used <= known, f"{page.name}: `{line}`: no option {sorted(used - known)}"


def links(page: Path) -> list[str]:
    return [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    broken = [link for link in links(page) if link and "://" not in link and not (page.parent / link).exists()]
    assert not broken
