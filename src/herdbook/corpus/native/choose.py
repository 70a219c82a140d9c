"""Which boxes and leaves are the page's main content.

Three steps, each over boxes that are already summed up: cut what is named or shaped like boilerplate; find the smallest boxes
that hold what remains; trim what stands around and between paragraphs but is no text (dates, "share this", dangling headings).
A name never wins against the text: a box that holds a fair part of the page's prose stays whatever it is called, comments
excepted, and if the cuts leave next to nothing they are made again more leniently (as Readability and trafilatura do).
"""

from __future__ import annotations

import re

from herdbook.corpus.native import words
from herdbook.corpus.native.tree import HEADINGS, Box, Leaf

ENOUGH = 250  # bytes of prose below which cuts are taken back, Readability's and trafilatura's order of size
CARD = 400  # a linked title with less prose than this to it announces another article
PARTS = 5  # boxes that an article is spread over at most; beyond that its name is a style's
LAYERS = 8  # of boxes named as content in one another
FAREWELLS = 4  # paragraphs at the end that may be about the site
STANDFIRSTS = 3  # paragraphs of one at most
RESUMED = 1000  # bytes of paragraphs in a row after which an article goes on; an announcement has fewer
LOOKED = 40  # bits of text between a title and its article
SHORT = 60  # bytes; a paragraph is longer, and a byline, date or label is shorter

# Boxes that may be lists of links; a row or a cell is judged with its table.
_LISTS = frozenset(("ul", "ol", "dl", "div", "section", "table", "p", "form", "nav", "details", "fieldset", "center"))
_KEPT = frozenset(("body", "main", "tr", "td", "th"))
# Elements that say themselves what they are for, which names do less surely.
_SEMANTIC = frozenset(("nav", "footer", "aside", "header", "menu"))
_FRAMES = frozenset(("nav", "footer", "menu"))
# Boxes that are text rather than hold it: the content is what they are in.
_TEXTUAL = frozenset(("p", "li", "td", "th", "tr", "blockquote", "pre", "ul", "ol", "dl", "table"))
_PLAIN = frozenset(("li", "td", "th", "dt", "dd", "pre", "blockquote", "listing", "xmp"))
_FULL_STOP = re.compile(r"[.!?…:;。！？।؟][\"'”’»)\]]*$")
# How lines begin that are addressed to a visitor, not to a reader.
_ASIDE = re.compile(
    r"""(?:advertise?ment|sponsored|read\ more|read\ also|also\ read|see\ also|more\ from|more\ on|related|recommended|share\b
    |tweet\b|follow\ (?:us|me|him|her|them|@)|sign\ up|subscribe|click\ (?:here|to)|photo(?:graph)?s?\b|image\b|picture:|getty
    |credit:|source:\ getty|copyright|©|\(c\)|all\ rights|print\b|email\b|comments?\b|leave\ a|posted\ (?:by|on|in)|published
    |updated|last\ (?:updated|modified)|filed\ under|tags?:|categor(?:y|ies):|(?-i:[Bb]y\ [A-Z])
    |view\ (?:image|gallery|comments)|watch:|listen:|watch\ ?\||story\ continues|continue\ reading|download\ (?:the|our)
    |join\ (?:us|our)|like\ us
    |\d+\ (?:comments?|shares?|min(?:ute)?s?\ read))""",
    re.VERBOSE | re.IGNORECASE,
)

# What a last paragraph says that is about the site.
_FAREWELL = re.compile(
    r"""\b(?:newsletters?|whatsapp|telegram|push-?(?:nachrichten|notifications?)|sign\ up|subscri(?:be|ption)\b
    |abonnier(?:e|en|t)|bookmark|download\ (?:the|our)|follow\ (?:us|me|him|her|them|@)|google\ news|rss)\b""",
    re.VERBOSE | re.IGNORECASE,
)
# What stands above a list of other articles.
_OTHERS = re.compile(
    r"""(?:
    (?:you\ (?:may|might|could)|das\ könnte|vous\ aimerez|(?:te|le)\ puede|ti\ potrebbe|você\ (?:pode|vai))\ .*
    |(?:related|recommended|popular|trending|latest|recent|similar|further|suggested)\ (?:articles?|posts?|stories|news|content
      |reading|topics?|links?|coverage|videos?|items|pages).*
    |(?:more|read\ more)\ (?:from|on|about|in|by|news|stories|posts|articles|like\ this)\b.*
    |(?:mehr|weitere[sn]?)\ (?:zu|zum|zur|aus|von|über|artikel|beiträge|themen|informationen|links|lesen)\b.*
    |(?:meer|más|plus|mais|altri|altre|więcej)\ (?:over|sobre|sur|articles|notícias|noticias|articoli|na\ temat)\b.*
    |(?:see|read|watch)\ also|also\ (?:read|see|on)\b.*|read\ (?:next|more|further)\b.*|up\ next|what\ to\ read\ next
    |editors?['’]?s?\ picks?|most\ (?:read|popular|viewed)|don['’]t\ miss.*|related
    |lesen\ sie\ (?:auch|mehr).*|auch\ interessant|verwandte\ .*|ähnliche\ .*
    |(?:à\ )?lire\ aussi.*|sur\ le\ même\ (?:sujet|thème)
    |(?:leia|veja|lea|vea)\ (?:também|mais|también|más).*|leggi\ anche.*|lees\ ook.*|(?:czytaj|zobacz)\ (?:też|także|więcej).*
    |(?:noticias|notícias|artículos|artigos|articoli)\ (?:relacionad[oa]s|correlati).*
    |about\ (?:the\ )?authors?
    )\W*$""",
    re.VERBOSE | re.IGNORECASE,
)
# Whose picture it is: so what it is said of is a picture's caption.
_CREDIT_MARKS = (":", "©", "/", "(", "etty", "tock", "hoto")
_CREDIT = re.compile(
    r"""\b(?:photo(?:graph)?s?|pictures?|images?|credits?|fotos?|bild|bilder|imagen|zdjęcie)(?:\ (?:by|credit))?\s?:\s?\S
    |\((?:photo|picture|image|foto)s?\ (?:by|courtesy)\b|photo\ by\ [A-Z]|©|getty\ images|shutterstock|istockphoto|\bistock\b
    |\bap\ photo|/(?:reuters|afp|epa|getty|ap|dpa)\b|(?:reuters|afp|epa)/""",
    re.VERBOSE | re.IGNORECASE,
)


def choose(boxes: list[Box]) -> list[Box]:
    """Cut what is not main content and give back the boxes that hold the rest."""
    few = not boxes[0].prose and boxes[0].size < ENOUGH
    for strictness in (0,) if few else (3, 2, 1, 0):
        cut_boxes(boxes, strictness)
        if boxes[0].net >= min(ENOUGH, boxes[0].prose) and boxes[0].net * 6 >= boxes[0].prose - comments(boxes):
            break
    if few:
        cut_frames(boxes)
    roots = find_roots(boxes)
    lead = find_lead(roots[0])
    trim(kept_leaves(roots))
    return [lead, *roots] if lead.items else roots


def cut_boxes(boxes: list[Box], strictness: int) -> None:
    """Mark boxes as boilerplate, and sum up the prose that remains."""
    whole = boxes[0].prose
    for box in boxes:
        box.cut = bool(strictness) and is_boilerplate(box, whole, strictness)
        box.net = box.own
    for box in reversed(boxes):
        if box.cut:
            box.net = 0
        elif box.parent is not None:
            box.parent.net += box.net


def cut_frames(boxes: list[Box]) -> None:
    """On a page of a few words without a sentence, where names say nothing, cut what elements call a menu or a footer.

    Nothing is cut if nothing would be left.
    """
    gone: set[int] = set()
    left = False
    for box in boxes:  # parents first
        if box.tag in _FRAMES or (box.parent is not None and id(box.parent) in gone):
            gone.add(id(box))
        else:
            left = left or any(type(item) is Leaf for item in box.items)
    for box in boxes:
        box.cut = left and box.tag in _FRAMES


def comments(boxes: list[Box]) -> int:
    """Bytes of prose in what readers wrote; counted double where comments are within comments, which does no harm."""
    return sum([box.prose for box in boxes if box.cut and box.hint == words.COMMENTS])


def is_boilerplate(box: Box, whole: int, strictness: int) -> bool:
    """Whether a box is to go, by what its name and its links say, and how much of the page's prose it has."""
    hint, prose = box.hint, box.prose
    if box.tag in _KEPT:
        return False
    if strictness == 1:  # the text went with them: only what cannot be it
        return not prose and (hint > words.ARTICLE or box.linked * 2 > box.size)
    if hint > words.ARTICLE:
        if hint == words.CAPTION:
            return True
        if hint == words.HIDDEN:
            return prose * 2 < whole
        if hint == words.COMMENTS:
            return prose * 2 < whole or (strictness == 3 and prose * 10 < whole * 9)
        if box.tag in _SEMANTIC:
            return prose * 2 < whole and not is_titled(box)
        # A paragraph is not a part of a page, and a class that styles it ("paywall", "tag-text") says little about its text;
        # a quotation is part of the article ("twitter-tweet").
        if prose * 4 < whole and not (box.tag in HEADINGS or box.tag == "blockquote" or (box.tag == "p" and prose > 100)):
            return True
    if box.tag not in _LISTS:
        return False
    if box.tag == "p" and is_sentence(box):
        return False
    # Mostly links, and little beside them; a list with sentences around its links is part of the text up to three quarters.
    if box.linked * 2 > box.size and box.size - box.linked < 200 and (not prose or box.linked * 4 > box.size * 3):
        return not (box.tag == "table" and has_header(box))
    if box.titles < 2 or prose * 10 > whole * (9 if strictness == 3 else 6):
        return False
    if box.hint == words.BODY and box.linked * 3 < box.size and prose * 2 > box.size:  # a part of the article, so named
        return False
    if box.solid >= CARD * 2 and box.solid * 2 > prose:  # an article, and announcements around it
        return False
    return (prose < box.titles * CARD and box.linked * 4 > box.size and prose * 10 < whole * 6) or is_stream(box)


def is_sentence(box: Box) -> bool:
    """Whether a paragraph is a sentence of which most is linked, rather than a link with a word of where it goes."""
    if len(box.items) != 1 or type(leaf := box.items[0]) is not Leaf or leaf.linked * 20 > leaf.size * 19:
        return False
    return leaf.size >= SHORT and _FULL_STOP.search(leaf.text) is not None and not _ASIDE.match(leaf.text)


def is_titled(box: Box) -> bool:
    """Whether a `header` is a section's heading and nothing else."""
    return box.tag == "header" and not box.linked and all(item.tag in HEADINGS and item.tag != "h1" for item in box.items)


def has_header(table: Box) -> bool:
    """Whether a table begins with a row of column names, as tables of data do and menus do not."""
    row = table.items[0] if table.items else None
    return type(row) is Box and len(row.items) > 1 and all(type(cell) is Box and cell.tag == "th" for cell in row.items)


def is_stream(box: Box) -> bool:
    """Whether a box is a row of announcements: four or more boxes of which most have a linked title."""
    if box.prose > 2 * CARD * box.titles or box.linked * 12 < box.size:
        return False
    boxes = [item for item in box.items if type(item) is Box and item.size]
    return len(boxes) >= 4 and sum([item.titles > 0 for item in boxes]) * 5 > len(boxes) * 3


def find_roots(boxes: list[Box]) -> list[Box]:
    """The smallest boxes that hold the content: those so named if they have most of the prose, or else by the prose alone."""
    named = [box for box in boxes if box.hint == words.BODY and box.net and not box.cut and box.tag not in _TEXTUAL]
    outer = outermost(named)
    if not outer or len(outer) > PARTS or sum([box.net for box in outer]) * 2 <= boxes[0].net:
        return [descend(boxes[0])]
    for _ in range(LAYERS):
        named = named_within(named, outer)
        inner = outermost(named)
        if not inner or len(inner) > PARTS or sum([box.net for box in inner]) * 2 < sum([box.net for box in outer]):
            break
        outer = inner
    return outer


def named_within(named: list[Box], outer: list[Box]) -> list[Box]:
    """`named` without `outer`."""
    gone = set(map(id, outer))
    return [box for box in named if id(box) not in gone]


def outermost(named: list[Box]) -> list[Box]:
    """Those boxes that are in no other one of them, nor in one that was cut; each box on the way up is looked at once."""
    inside: dict[int, bool] = {}
    chosen = set(map(id, named))
    found = []
    for box in named:
        path = []
        up = box.parent
        while up is not None and id(up) not in inside:
            path.append(up)
            up = up.parent
        within = up is not None and inside[id(up)]
        for step in reversed(path):
            within = within or id(step) in chosen or step.cut
            inside[id(step)] = within
        if not (within if path else up is not None and inside[id(up)]):
            found.append(box)
    return found


def descend(root: Box) -> Box:
    """The deepest box that has nearly all of the prose."""
    while True:
        boxes = [item for item in root.items if type(item) is Box and not item.cut]
        best = max(boxes, key=lambda box: box.net, default=None)
        if best is None or not best.net or best.net * 20 < root.net * 19 or best.tag in _TEXTUAL:
            return root
        root = best


def find_lead(root: Box) -> Box:
    """A box of the paragraphs between the page's title and the text below it, if there are any: the standfirst.

    They stand apart, often with the title in a `header` that was cut. Looked for backwards from the text, until a title.
    """
    lead = Box("div", words.NOTHING, None)
    found: list[Leaf] = []
    looked = 0
    box = root
    while box.parent is not None:
        siblings = box.parent.items
        todo = siblings[: siblings.index(box)]
        while todo:
            item = todo.pop()
            if type(item) is Leaf:
                looked += 1
                if item.tag == "h1":
                    if len(found) > STANDFIRSTS:  # titles of pictures or of other articles
                        found = [leaf for leaf in found if _FULL_STOP.search(leaf.text)]
                    lead.items += reversed(found)
                    return lead
                if looked > LOOKED:
                    return lead
                if is_lead(item):
                    found.append(item)
            elif type(item) is Box and (not item.cut or item.hint == words.CHROME):
                todo += item.items
        box = box.parent
    return lead


def is_lead(leaf: Leaf) -> bool:
    """Whether a leaf may be a standfirst: a sentence or two, no date, not addressed to visitors."""
    text = leaf.text
    if leaf.size - leaf.linked < SHORT or leaf.linked * 4 >= leaf.size or _ASIDE.match(text):
        return False
    return leaf.size >= 3 * SHORT or (sum([char.isdigit() for char in text]) * 10 < len(text) and not is_credit(text))


def kept_leaves(roots: list[Box]) -> list[Leaf]:
    """The leaves that are left, in document order."""
    leaves: list[Leaf] = []
    todo: list[Box | Leaf] = [*reversed(roots)]
    while todo:
        item = todo.pop()
        if type(item) is Leaf:
            leaves.append(item)
        elif type(item) is Box and not item.cut:
            todo += reversed(item.items)
    return leaves


def trim(leaves: list[Leaf]) -> None:
    """Cut what is no text: before the first paragraph, after the last, asides between, headings of nothing."""
    cut_tail(leaves)
    leaves = [leaf for leaf in leaves if not leaf.cut]
    prose = [at for at, leaf in enumerate(leaves) if leaf.size - leaf.linked >= SHORT and leaf.tag not in HEADINGS]
    if not prose:
        return
    if sum([leaves[at].size for at in prose]) > CARD * 4:
        cut_farewell([leaves[at] for at in prose[-FAREWELLS:]])
    first, last = prose[0], max([at for at in prose if not leaves[at].cut], default=prose[0])
    for at, leaf in enumerate(leaves):
        if leaf.tag in HEADINGS or leaf.tag in _PLAIN:
            short = False
        else:
            short = leaf.size < 200
        if short and (is_credit(leaf.text) or (leaf.size < 160 and _ASIDE.match(leaf.text))):
            leaf.cut = True
        elif at < first:
            leaf.cut = leaf.tag == "h1" or is_label(leaf)
        elif at > last:
            leaf.cut = leaf.cut or is_label(leaf) or leaf.linked * 2 > leaf.size
    level = "h1"
    followed = False
    for leaf in reversed(leaves):
        if leaf.cut:
            continue
        if leaf.tag not in HEADINGS:
            level, followed = "h7", True
        elif not followed or leaf.tag >= level:
            leaf.cut = True
        else:
            level = leaf.tag


def cut_farewell(leaves: list[Leaf]) -> None:
    """Cut last paragraphs that ask the reader to subscribe or follow; `leaves` are the last ones of a text, in order."""
    for leaf in reversed(leaves):
        if leaf.size >= CARD or _FAREWELL.search(leaf.text) is None:
            return
        leaf.cut = True


def is_credit(text: str) -> bool:
    """Whether a line says whose picture it is. Looks for what no such line is without first, as the expression is slow."""
    return any(mark in text for mark in _CREDIT_MARKS) and _CREDIT.search(text) is not None


def cut_tail(leaves: list[Leaf]) -> None:
    """Cut from a short line on that announces other articles, if what follows is little, and titles rather than paragraphs."""
    whole = sum([leaf.size for leaf in leaves])
    after = titles = paragraphs = running = 0
    first = None
    for at in range(len(leaves) - 1, -1, -1):
        leaf = leaves[at]
        after += leaf.size
        if after * 4 > whole:
            break
        if leaf.size < SHORT and leaf.tag not in _PLAIN and titles * 2 >= paragraphs and _OTHERS.match(leaf.text):
            first = at
        if leaf.tag in HEADINGS or leaf.linked * 2 > leaf.size:
            titles += 1
            running = 0
        elif leaf.size >= SHORT:
            paragraphs += 1
            running += leaf.size
            if running >= RESUMED:
                break
    if first is not None:
        for leaf in leaves[first:]:
            leaf.cut = True


def is_label(leaf: Leaf) -> bool:
    """Whether a leaf is short and no sentence: a byline, a date, a place, a count."""
    return leaf.size < SHORT and leaf.tag not in HEADINGS and leaf.tag not in _PLAIN and not _FULL_STOP.search(leaf.text)
