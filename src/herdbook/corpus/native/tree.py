"""From HTML to boxes: what a page looks like to an extractor, some hundred boxes with the text that is in them.

One pass over lexbor's DOM (by selectolax), without recursion. Inline elements vanish into the text of the box they are in;
blocks become `Box`es, and each unbroken run of text in one becomes a `Leaf`. Sums of characters, of characters in links and of
characters in what reads as prose are made on the way up, so that everything after this looks at boxes only.
"""

from __future__ import annotations

from functools import lru_cache

from selectolax.lexbor import LexborHTMLParser, LexborNode

from herdbook.corpus.native import words

# Never text for a reader.
NEVER = (
    "head", "script", "style", "template", "noscript", "svg", "iframe", "frame", "object", "embed", "applet", "canvas",
    "audio", "video", "map", "picture", "img", "input", "select", "textarea", "button", "option", "datalist", "progress",
    "meter", "dialog", "link", "meta", "annotation", "annotation-xml", "rt", "rp",
)  # fmt: skip
UNSEEN = ("script", "style", "noscript", "template")  # gone before anything is looked at, as it is long
_UNSEEN = ", ".join(UNSEEN)
DOUBTS = 64  # elements with text in them that may be looked through in vain: as each holds the next, there must be an end
WORDY = 80  # characters of one piece of text that make an element worth a walk
PROSE = 60  # bytes without links from which a run of text reads as prose: about ten words
TITLE = 25  # bytes of nothing but a link that may be the title of another article
LONG = 120  # bytes beyond which a heading is a paragraph
BREAK = "\x01"  # a line break within a run of text, until its white space has been collapsed

TEXT, SKIP, PLAIN, INLINE, LINK, BLOCK, NEWLINE, RULE = range(8)
_KIND = {"-text": TEXT, "-comment": SKIP, "a": LINK, "br": NEWLINE, "hr": RULE, **dict.fromkeys(NEVER, SKIP)}
_KIND |= dict.fromkeys(["span", "font", "label", "output", "ruby", "rb", "slot", "math"], INLINE)
_KIND |= dict.fromkeys([
    "b", "i", "em", "strong", "u", "s", "small", "big", "tt", "code", "kbd", "samp", "var", "sub", "sup", "abbr", "acronym",
    "cite", "q", "bdi", "bdo", "mark", "time", "ins", "del", "data", "dfn", "nobr", "wbr", "strike", "tbody", "thead", "tfoot",
    "colgroup", "html",
], PLAIN)  # fmt: skip
_KIND |= dict.fromkeys([
    "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "dir", "div", "dl", "dt",
    "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hgroup", "legend",
    "li", "main", "menu", "nav", "ol", "p", "pre", "search", "section", "summary", "table", "td", "th", "tr", "ul", "listing",
    "xmp", "plaintext",
], BLOCK)  # fmt: skip
HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
VERBATIM = frozenset(("pre", "listing", "xmp", "plaintext"))
_BY_TAG = {"nav": words.CHROME, "aside": words.CHROME, "footer": words.CHROME, "menu": words.CHROME, "header": words.CHROME,
           "main": words.ARTICLE, "article": words.ARTICLE, "figcaption": words.CAPTION}  # fmt: skip
_UNKNOWN = (INLINE, "", words.NOTHING)


class Leaf:
    """A run of text: a paragraph, a list item, a cell, a heading. `size` and `linked` count bytes of it and of its links."""

    __slots__ = ("cut", "linked", "size", "tag", "text")

    def __init__(self, tag: str, text: str, size: int, linked: int) -> None:
        self.tag, self.text, self.size, self.linked = tag, text, size, linked
        self.cut = False


class Box:
    """A block of the page. `prose` counts bytes of running text; `net` that without what was cut, see `choose`; `solid` is the
    most prose of any box within without a linked title, so that of an article and not that of announcements of many."""

    __slots__ = ("cut", "hint", "items", "linked", "net", "own", "parent", "prose", "size", "solid", "tag", "titles")

    def __init__(self, tag: str, hint: int, parent: Box | None) -> None:
        self.tag, self.hint, self.parent = tag, hint, parent
        self.items: list[Box | Leaf] = []
        self.size = self.linked = self.prose = self.own = self.net = self.titles = self.solid = 0
        self.cut = False


@lru_cache(maxsize=1)
def meanings() -> dict[int, tuple[int, str, int]]:
    """What lexbor's numbers of tags stand for: a kind, a name, and what the name says of a box.

    To look up a number is faster than to make a string of each node's name.
    """
    numbers: dict[str, int] = {}
    tree = LexborHTMLParser("text<!-- comment -->")
    for node in tree.root.traverse(include_text=True) if tree.root else ():
        numbers[node.tag or ""] = node.tag_id
    for name in _KIND:
        if name[0] != "-":
            numbers[name] = tree.create_node(name).tag_id
    # Names that lexbor does not know have an address for a number, another one each time.
    return {
        number: (_KIND.get(name, INLINE), name, _BY_TAG.get(name, words.NOTHING))
        for name, number in numbers.items()
        if number < 1024
    }


def remove_unseen(parser: LexborHTMLParser, noted: str) -> set[int]:
    """Take out the elements `UNSEEN`, and give back the addresses of those called `noted` and of all that they are in.

    One search by the parser for both: a question to it costs as much as a dozen nodes of the walk.
    """
    around: set[int] = set()
    known = meanings()
    for node in parser.css(f"{noted}, {_UNSEEN}" if noted else _UNSEEN):
        if known[node.tag_id][1] in UNSEEN:
            node.decompose(recursive=False)
            continue
        up: LexborNode | None = node
        while up is not None and up.mem_id not in around:
            around.add(up.mem_id)
            up = up.parent
    return around


def is_wordless(node: LexborNode) -> bool:
    """Whether there is no text as long as a paragraph in an element; asked of the parser, without a walk."""
    text = node.text(separator=BREAK, skip_empty=True)
    return len(text) < WORDY or max(map(len, text.split(BREAK))) < WORDY


def read(html: str, prune: bool = False) -> list[Box]:
    """The boxes of a page in document order; the first is its body.

    Four fifths of the nodes of a page of news are in menus and the like. `prune` leaves out elements that are named so and
    have no paragraph and no text to speak of, which is most of them.
    """
    root = Box("body", words.NOTHING, None)
    parser = LexborHTMLParser(html)
    worthy = remove_unseen(parser, "p, h1" if prune else "")
    start = parser.body
    if start is None:
        return [root]
    boxes = walk(start, root, worthy, DOUBTS if prune else 0)
    sum_up(boxes)
    return boxes


def walk(start: LexborNode, root: Box, worthy: set[int], doubts: int) -> list[Box]:
    """The boxes of an element, and `root` for itself before them; not those named as boilerplate that hold nothing `worthy`.

    One loop rather than a function for each kind of node: it runs some thousand times a page, and is most of the time it takes.
    """
    boxes = [root]
    box = root
    pieces: list[str] = []
    linked = links = verbatim = 0
    open_elements: list[tuple[LexborNode, int]] = []
    node = start.first_child
    meaning_of, said_by, is_hidden = meanings().get, words.said_by, words.is_hidden
    text_number = next(number for number, meaning in meanings().items() if meaning[0] == TEXT)  # half of all nodes
    while True:
        while node is None:
            if not open_elements:
                if pieces:
                    close_run(box, pieces, linked, verbatim)
                return boxes
            closed, kind = open_elements.pop()
            if kind == BLOCK:
                if pieces:
                    close_run(box, pieces, linked, verbatim)
                    pieces, linked = [], 0
                if box.tag in VERBATIM:
                    verbatim -= 1
                box = box.parent or root
            elif kind == LINK:
                links -= 1
            node = closed.next
        number = node.tag_id
        if number == text_number:
            text = node.text_content or ""
            if pieces or verbatim or not text.isspace():
                pieces.append(text)
                if links:
                    linked += len(text.strip())
            node = node.next
            continue
        kind, tag, hint = meaning_of(number, _UNKNOWN)
        if kind == BLOCK:
            if pieces:  # which it ends even if there is nothing in it
                close_run(box, pieces, linked, verbatim)
                pieces, linked = [], 0
            child = node.first_child
            if child is None:
                node = node.next
                continue
            attributes = node.attributes
            if attributes:
                said = said_by(attributes)
                if said > words.ARTICLE or not hint:
                    hint = said
            if doubts and hint > words.ARTICLE:
                if node.mem_id not in worthy and is_wordless(node):
                    node = node.next
                    continue
                doubts -= 1
            opened = Box(tag, hint, box)
            box.items.append(opened)
            boxes.append(opened)
            box = opened
            if tag in VERBATIM:
                verbatim += 1
            open_elements.append((node, kind))
            node = child
            continue
        child = node.first_child if SKIP < kind < NEWLINE else None
        if child is None:
            if kind == NEWLINE:
                pieces.append(BREAK)
            elif kind == RULE and pieces:
                close_run(box, pieces, linked, verbatim)
                pieces, linked = [], 0
            node = node.next
            continue
        if kind != PLAIN:
            attributes = node.attributes
            if attributes and is_hidden(attributes):
                node = node.next
                continue
            if kind == LINK:
                if "href" in attributes:
                    links += 1
                else:
                    kind = PLAIN  # an anchor
        open_elements.append((node, kind))
        node = child


def close_run(box: Box, pieces: list[str], linked: int, verbatim: int) -> None:
    """Make a leaf of the text since the last block began or ended, if there is any."""
    text = "".join(pieces)
    if verbatim:
        text = text.replace(BREAK, "\n")
        if not text.strip():
            return
        size = len(text)
    else:
        text = text.strip()
        if not text.isprintable() or "  " in text:  # else there is no white space but single blanks, nor a break
            text = " ".join(text.split())
            if BREAK in text:
                text = "\n".join([line.strip() for line in text.split(BREAK)]).strip()
        if not text:
            return
        # Bytes, not characters: a Chinese character says as much as three letters, and no script has to be named here.
        size = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
        if linked and size != len(text):
            linked = linked * size // len(text)
    tag = box.tag
    if size > LONG and tag in HEADINGS:
        tag = "p"  # in large letters
    leaf = Leaf(tag, text, size, min(linked, size))
    box.items.append(leaf)
    box.size += size
    box.linked += leaf.linked
    if size - linked >= PROSE and 2 * linked < size and tag not in HEADINGS:
        box.own += size - leaf.linked
    elif leaf.size >= TITLE and leaf.linked * 10 >= leaf.size * 9:
        box.titles += 1


def sum_up(boxes: list[Box]) -> None:
    """Add to each box what its boxes hold."""
    for box in reversed(boxes):
        parent = box.parent
        box.prose += box.own
        if not box.titles:
            box.solid = box.prose
        if parent is not None:
            if box.solid > parent.solid:
                parent.solid = box.solid
            parent.size += box.size
            parent.linked += box.linked
            parent.prose += box.prose
            parent.titles += box.titles
