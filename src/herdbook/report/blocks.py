"""The report as plain data: sections of paragraphs, tables, figures and quotes, rendered by `html` and by `markdown` alike.

Because both files come from the same blocks, they cannot disagree about a number. Text is kept as it is here; each renderer
escapes it for its own format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from herdbook.report.svg import Chart


@dataclass(frozen=True)
class Code:
    """A name, path or command within a line."""

    text: str


@dataclass(frozen=True)
class Strong:
    """Words that carry the line."""

    text: str


@dataclass(frozen=True)
class Link:
    """An address; only http and https ones are followed, others are shown as text."""

    text: str
    url: str


@dataclass(frozen=True)
class Swatch:
    """A colour that leads a table's row back to the picture above it."""

    colour: str
    text: str


@dataclass(frozen=True)
class Meter:
    """A bar in a table's cell, from 0 to 1; the number itself stands in a cell beside it."""

    share: float
    colour: str = "c1"


@dataclass(frozen=True)
class Break:
    """A new line within a cell."""


Inline = str | Code | Strong | Link | Swatch | Meter | Break
Words = Inline | tuple[Inline, ...]


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; a note is set smaller."""

    words: Words
    note: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[Words]


@dataclass(frozen=True)
class Table:
    """Rows of facts. `align` has one letter a column: l(eft), r(ight), k(ept on one line, left) or m(eter)."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Words]]
    align: str
    caption: str | None = None

    def __post_init__(self) -> None:
        assert len(self.align) == len(self.columns), "one letter a column"
        assert all(len(row) == len(self.columns) for row in self.rows), "one cell a column"


@dataclass(frozen=True)
class Figure:
    """A picture with what it says in a sentence; the numbers stand in a table of their own."""

    chart: Chart
    caption: str


@dataclass(frozen=True)
class Fold:
    """Blocks that are opened by a click."""

    summary: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Excerpt:
    """A piece of a document: what is said about it, and the text itself."""

    head: Words
    text: str


@dataclass(frozen=True)
class Exchange:
    """What a model was given and what it wrote."""

    model: str
    chat: bool
    prompt: str
    answer: str
    note: str


@dataclass(frozen=True)
class Tree:
    """A line with lines below it."""

    words: Words
    children: Sequence[Tree] = ()


@dataclass(frozen=True)
class Command:
    """Lines to type, in a shell or another language."""

    text: str
    language: str = "sh"


Block = Paragraph | Bullets | Table | Figure | Fold | Excerpt | Exchange | Tree | Command


@dataclass(frozen=True)
class Section:
    """A part of the report with its heading."""

    id: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Tile:
    """A headline number."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    lead: str
    tiles: Sequence[Tile]
    sections: Sequence[Section] = field(default_factory=list)
    footer: str = ""
