"""Main-content extraction of our own: `extract_native(html, main_content)`, an engine for `herdbook.corpus.extract`.

    html ── lexbor ──► DOM ── tree.read ──► boxes, summed up ── choose ──► what is cut, where the rest is ── render ──► text

The DOM is walked once; what decides after that are some hundred boxes. The rules are general ones: what elements mean (`nav`,
`aside`, `figcaption`), what class names say, the share of links, the length of paragraphs, and what stands around them. They
come from reading how Readability, Boilerpipe (Kohlschütter et al. 2010), jusText (Pomikálek 2011) and trafilatura (Barbaresi
2021) describe what they do, and from looking at pages; `benchmarks/extraction.py` measures it beside them. There is no clock
and no chance in it, and time is linear in the page but for the parser's in the nesting, which is bounded.
"""

from __future__ import annotations

from herdbook.corpus.native import words
from herdbook.corpus.native.choose import ENOUGH, choose
from herdbook.corpus.native.render import render
from herdbook.corpus.native.tree import read
from herdbook.corpus.records import Unreadable

MAX_NESTING = 10_000  # the parser's time grows with its square: 0.1 seconds here


def extract_native(html: str, main_content: bool = True) -> str:
    """The text of a page: its main content, or all of it that can be seen. Raises Unreadable for absurdly nested pages."""
    from herdbook.corpus.extract import may_nest_deeper, nesting  # there, engines are imported from here

    # So many tags have to be there to begin with, and to count characters of one kind is a third of the work on most pages.
    if html.count("<") > MAX_NESTING and may_nest_deeper(html, MAX_NESTING) and (depth := nesting(html)) > MAX_NESTING:
        raise Unreadable("nested_too_deep", depth, MAX_NESTING)
    boxes = read(html, prune=main_content)
    if main_content and boxes[0].prose < ENOUGH:
        boxes = read(html)  # names may have misled us
    text = render(choose(boxes)) if main_content else ""
    if not text:  # a page of nothing but labels, or everything is wanted
        for box in boxes:
            box.cut = box.hint == words.HIDDEN
        text = render(boxes[:1], trimmed=False)
    for box in boxes:  # boxes refer to each other: let them go now rather than when the collector of cycles comes by
        box.parent = None
    return text
