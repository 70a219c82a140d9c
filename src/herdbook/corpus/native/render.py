"""From boxes to text: paragraphs apart, lists and tables line by line, code as it is."""

from __future__ import annotations

from herdbook.corpus.native.tree import VERBATIM, Box, Leaf

_TIGHT = frozenset(("ul", "ol", "dl", "menu", *VERBATIM))
_FLAT = frozenset(("p", "div", "center"))  # boxes that may stand in a cell of a table of data


class _End:
    """Where a list ends, on the way through the boxes."""


_END = _End()


def render(roots: list[Box], trimmed: bool = True) -> str:
    """The text of some boxes, without boxes that were cut, nor leaves that were trimmed."""
    parts: list[str] = []
    lists: list[list[int]] = []  # for each list we are in: whether it counts, and how far
    marker, tight = "", False
    todo: list[Box | Leaf | _End] = [*reversed(roots)]
    while todo:
        item = todo.pop()
        if type(item) is Leaf:
            if not (item.cut and trimmed):
                parts += ("\n" if tight and lists else "\n\n", marker, item.text)
                marker, tight = "", bool(lists)
        elif type(item) is Box:
            if item.cut:
                continue
            tag = item.tag
            if tag in _TIGHT:
                lists.append([tag == "ol" or (tag == "ul") - 1, 0])
                tight = tight and len(lists) > 1
                todo.append(_END)
            elif tag == "li":
                marker = next_marker(lists)
            elif tag == "table":
                rows = data_rows(item)
                if rows:
                    parts += ("\n\n", "\n".join(rows))
                    tight = False
                    continue
            todo += reversed(item.items)
        else:
            lists.pop()
            marker = ""
    return "".join(parts).strip("\n")


def next_marker(lists: list[list[int]]) -> str:
    """What stands before a list's next item."""
    if not lists or lists[-1][0] < 0:
        return "- " if not lists else ""
    lists[-1][1] += 1
    return f"{lists[-1][1]}. " if lists[-1][0] else "- "


def data_rows(table: Box) -> list[str]:
    """The rows of a table of data; none if it is for the layout, as tables of tables, of paragraphs or of one column are."""
    rows: list[str] = []
    widest = size = cells = 0
    for row in table.items:
        if type(row) is not Box or row.tag != "tr":
            if type(row) is Box and row.tag == "caption" and not row.cut:
                continue
            return []
        if row.cut:
            continue
        texts = []
        for cell in row.items:
            text = cell_text(cell)
            if text is None:
                return []
            texts.append(text)
            size += len(text)
        cells += len(texts)
        widest = max(widest, len(texts))
        if any(texts):
            rows.append(" | ".join(texts))
    return rows if len(rows) > 1 and widest > 1 and size < 100 * cells else []


def cell_text(cell: Box | Leaf) -> str | None:
    """A cell's text on one line; None if there is more in it than text."""
    if type(cell) is Leaf:
        return "" if cell.cut else cell.text.replace("\n", " ")
    assert type(cell) is Box
    parts = []
    for item in cell.items:
        leaves = [item] if type(item) is Leaf else item.items if item.tag in _FLAT else [item]  # type: ignore[union-attr]
        for leaf in leaves:
            if type(leaf) is not Leaf:
                return None
            if not leaf.cut:
                parts.append(leaf.text)
    return " ".join(parts).replace("\n", " ")
