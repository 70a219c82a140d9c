"""The report as one HTML file that needs nothing else: no script, font or picture from elsewhere, and a policy that says so.

Everything that is text is escaped here, by `html.escape`, at the one place where it becomes markup. Addresses are followed
only when they are http or https. Charts come twice, for wide and for narrow screens; CSS shows one.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources

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
    Section,
    Strong,
    Swatch,
    Table,
    Tile,
    Tree,
    Words,
)

WIDE, NARROW = 800, 350
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def html(page: Page) -> str:
    """The whole report."""
    style = resources.files("herdbook.report").joinpath("style.css").read_text(encoding="utf-8")
    contents = "".join(f'<a href="#{escape(section.id)}">{escape(section.title)}</a>' for section in page.sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="referrer" content="no-referrer">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(page.title)} · herdbook</title>\n<style>\n{style}</style>\n</head>\n<body>\n<header>\n"
        f'<p class="brand">herdbook</p>\n<h1>{escape(page.title)}</h1>\n<p class="lead">{escape(page.lead)}</p>\n'
        f'<dl class="tiles">{"".join(map(_tile, page.tiles))}</dl>\n<nav aria-label="Contents">{contents}</nav>\n</header>\n'
        f"<main>\n{''.join(map(_section, page.sections))}</main>\n"
        f"<footer><p>{escape(page.footer)}</p></footer>\n</body>\n</html>\n"
    )


def _tile(tile: Tile) -> str:
    note = f'<dd class="note">{escape(tile.note)}</dd>' if tile.note else ""
    return f"<div><dt>{escape(tile.label)}</dt><dd>{escape(tile.value)}</dd>{note}</div>"


def _section(section: Section) -> str:
    body = "".join(map(_block, section.blocks))
    return f'<section id="{escape(section.id)}">\n<h2>{escape(section.title)}</h2>\n{body}</section>\n'


def _inline(item: Inline) -> str:
    match item:
        case Code(text):
            return f"<code>{escape(text)}</code>"
        case Strong(text):
            return f"<strong>{escape(text)}</strong>"
        case Link(text, url):
            if url.startswith(("http://", "https://")):
                return f'<a href="{escape(url)}" rel="noreferrer noopener">{escape(text)}</a>'
            return f"<span>{escape(text)}</span>"
        case Meter(share, colour):
            return (
                f'<span class="meter"><span class="{escape(colour)}" style="width:{100 * min(1.0, share):.1f}%"></span></span>'
            )
        case Break():
            return "<br>"
        case Swatch(colour, text):
            return f'<span class="swatch {escape(colour)}"></span>{escape(text)}'
    return escape(item)


def _words(words: Words) -> str:
    return "".join(map(_inline, words)) if isinstance(words, tuple) else _inline(words)


def _block(block: Block) -> str:
    match block:
        case Paragraph(words, note):
            opening = '<p class="note">' if note else "<p>"
            return f"{opening}{_words(words)}</p>\n"
        case Bullets(items):
            return f"<ul>{''.join(f'<li>{_words(item)}</li>' for item in items)}</ul>\n"
        case Table():
            return _table(block)
        case Figure(chart, caption):
            return f"<figure>{chart.svg(WIDE)}{chart.svg(NARROW)}<figcaption>{escape(caption)}</figcaption></figure>\n"
        case Fold(summary, blocks):
            return f"<details><summary>{escape(summary)}</summary>\n{''.join(map(_block, blocks))}</details>\n"
        case Excerpt(head, text):
            return f'<div class="excerpt"><p>{_words(head)}</p><blockquote>{escape(text)}</blockquote></div>\n'
        case Exchange():
            return _exchange(block)
        case Tree():
            return f'<ul class="tree">{_tree(block)}</ul>\n'
        case Command(text, _):
            return f'<pre class="command"><code>{escape(text)}</code></pre>\n'


def _table(table: Table) -> str:
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    head = "".join(
        f'<th scope="col" class="{side}">{escape(name)}</th>' for name, side in zip(table.columns, table.align, strict=True)
    )
    head = f"<thead><tr>{head}</tr></thead>" if any(table.columns) else ""
    rows = "".join(f"<tr>{_row(row, table.align)}</tr>" for row in table.rows)
    return f'<div class="scroll"><table>{caption}{head}<tbody>{rows}</tbody></table></div>\n'


def _row(row: Sequence[Words], align: str) -> str:
    return "".join(f'<td class="{side}">{_words(cell)}</td>' for cell, side in zip(row, align, strict=True))


def _exchange(block: Exchange) -> str:
    head = f'<p class="who">{escape(block.model)} <span>{escape(block.note)}</span></p>'
    if block.chat:
        body = f'<p class="asked">{escape(block.prompt)}</p><p class="answered">{escape(block.answer)}</p>'
        return f'<div class="exchange chat">{head}{body}</div>\n'
    return f'<div class="exchange">{head}<p class="text"><b>{escape(block.prompt)}</b>{escape(block.answer)}</p></div>\n'


def _tree(tree: Tree) -> str:
    below = f"<ul>{''.join(map(_tree, tree.children))}</ul>" if tree.children else ""
    return f"<li>{_words(tree.words)}{below}</li>"
