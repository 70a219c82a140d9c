"""The report as Markdown (CommonMark with tables): the same blocks as the page, with tables where the page has pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence

from herdbook.report.blocks import (
    Block,
    Break,
    Bullets,
    Code,
    Command,
    Excerpt,
    Exchange,
    Figure,
    Fold,
    Inline,
    Link,
    Meter,
    Page,
    Paragraph,
    Strong,
    Swatch,
    Table,
    Tree,
    Words,
)

_UNSAFE = re.compile(r"[<>\s]")
_MEANINGFUL = re.compile(r"([\\`*_\[\]<>|#~])")


def markdown(page: Page) -> str:
    """The whole report."""
    lines = [f"# {_text(page.title)}", "", _text(page.lead), ""]
    for tile in page.tiles:
        note = f" ({_text(tile.note)})" if tile.note else ""
        lines.append(f"- **{_text(tile.label)}**: {_text(tile.value)}{note}")
    for section in page.sections:
        lines += ["", f"## {_text(section.title)}"]
        for block in section.blocks:
            lines += ["", *_block(block)]
    return "\n".join([*lines, "", "---", "", _text(page.footer), ""])


def _text(text: str) -> str:
    """Text with everything escaped that Markdown or HTML would read as more than text; line breaks become spaces."""
    return _MEANINGFUL.sub(r"\\\1", " ".join(text.split(" ")).replace("\n", " ").replace("\r", " ")).replace("&", "&amp;")


def _code(text: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{fence}{pad}{text}{pad}{fence}".replace("\n", " ")


def _inline(item: Inline) -> str:
    match item:
        case Code(text):
            return _code(text)
        case Strong(text):
            return f"**{_text(text.strip())}**{' ' if text.endswith(' ') else ''}"
        case Link(text, url):
            followed = url.startswith(("http://", "https://"))
            return f"[{_text(text)}](<{_UNSAFE.sub('', url)}>)" if followed else _code(text)
        case Meter():
            return ""
        case Break():
            return " "
        case Swatch(_, text):
            return _text(text)
    return _text(item)


def _words(words: Words) -> str:
    return "".join(map(_inline, words)) if isinstance(words, tuple) else _inline(words)


def _block(block: Block) -> Sequence[str]:
    match block:
        case Paragraph(words):
            return [_words(words)]
        case Bullets(items):
            return [f"- {_words(item)}" for item in items]
        case Table():
            return _table(block)
        case Figure(_, caption):
            return [f"*{_text(caption)}*"]
        case Fold(summary, blocks):
            return [f"**{_text(summary)}**", *(line for inner in blocks for line in ("", *_block(inner)))]
        case Excerpt(head, text):
            return [f"- {_words(head)}", "", *(f"  {line}" for line in _fenced(text))]
        case Exchange():
            asked, answered = ("asked", "answered") if block.chat else ("given", "continued")
            first, second = f"**{_text(block.model)}** was {asked}:", f"and {answered} ({_text(block.note)}):"
            return [first, "", *_fenced(block.prompt), "", second, "", *_fenced(block.answer)]
        case Tree():
            return _tree(block, 0)
        case Command(text, language):
            return _fenced(text, language)


def _table(table: Table) -> list[str]:
    """The table without the columns that only hold bars."""
    kept = [index for index, side in enumerate(table.align) if side != "m"]
    head = f"| {' | '.join(_text(table.columns[index]) or ' ' for index in kept)} |"
    rule = "|" + "|".join(" ---: " if table.align[index] == "r" else " --- " for index in kept) + "|"
    rows = [f"| {' | '.join(_words(row[index]) for index in kept)} |" for row in table.rows]
    return [*([f"**{_text(table.caption)}**", ""] if table.caption else []), head, rule, *rows]


def _tree(tree: Tree, depth: int) -> list[str]:
    return [f"{'  ' * depth}- {_words(tree.words)}", *(line for child in tree.children for line in _tree(child, depth + 1))]


def _fenced(text: str, language: str = "text") -> list[str]:
    """A code block whose fence is longer than any within it."""
    longest = max((len(run) for run in re.findall("`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return [f"{fence}{language}", *text.splitlines(), fence]
