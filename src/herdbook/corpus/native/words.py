"""What class names, ids and roles say about a box: hidden, boilerplate of some kind, the article itself, or nothing.

Authors name the parts of a page for themselves, in a small vocabulary that has been stable for twenty years (Readability
2009, Boilerpipe 2010 and trafilatura 2021 all lean on it). Names are split into words at `-`, `_`, digits and capitals, so
that `post-share` speaks of sharing and `shareholder` does not. A name is a hint only: `choose` lets the text overrule it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import product

NOTHING, BODY, ARTICLE, CHROME, ALIEN, HIDDEN, CAPTION, COMMENTS = range(8)

LONGEST = 400  # characters of a name that are looked at, and kept in the cache
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORD = re.compile(r"(?<![^\W\d_])[a-z]+")
# The same in names of ASCII, found without splitting them at capitals first: that is faster.
_LOWER_WORD, _MIXED_WORD = re.compile(r"[a-z]+"), re.compile(r"[A-Z]+[a-z]*|[a-z]+")


def expand(pattern: str) -> list[str]:
    """All that a pattern stands for: "tag(s|)" for "tags" and "tag"."""
    return ["".join(parts) for parts in product(*[part.split("|") for part in re.split(r"[()]", pattern)])]


class _Vocabulary:
    """Words and phrases that speak of one thing. In a phrase, `-` is one character between words, and `~` one or none.

    Most names have no word in any vocabulary, so that to look up their words decides them; the expression for phrases is
    slow, and asked only of names with a word that one may begin with.
    """

    def __init__(self, words: str, phrases: str = "", but_after: dict[str, str] | None = None) -> None:
        self.words = {word for pattern in words.split() for word in expand(pattern)}
        self.starts: set[str] = set()
        sources = []
        for pattern in phrases.split():
            sources.append(pattern.replace("(", "(?:").replace("-", r"\W").replace("~", r"\W?"))
            for phrase in expand(pattern):
                if "-" not in phrase:
                    self.words.add(phrase.replace("~", ""))
                for cut in re.finditer("[-~]", phrase):
                    if "-" not in phrase[: cut.start()]:
                        self.starts.add(phrase[: cut.start()].replace("~", ""))
        for word, before in (but_after or {}).items():  # means something else there
            sources.append(f"(?<!{before}){word}")
            self.starts.add(word)
        self.phrases = re.compile(rf"(?<![^\W\d_])(?:{'|'.join(sources)})(?![a-z])")


_VOCABULARIES = {
    # What readers wrote: not the page's own text, even when it is most of it.
    COMMENTS: _Vocabulary(
        """comment(s|) commentlist commentform commenting commenter disqus respond replies livefyre viafoura spotim
        trackback(s|) pingback(s|)"""
    ),
    # Other articles, offers, dialogs.
    ALIEN: _Vocabulary(
        """cookie(s|) cookie(bar|banner|notice|consent) consent gdpr ccpa onetrust modal popup popover overlay lightbox dialog
        interstitial outbrain taboola zergnet revcontent nrelate yarpp recirc recirculation
        related related(post|posts|article|articles|content|link|links|stories|news) recommend(ed|ation|ations|s|) similar
        trending mostread newsletter(s|) subscri(be|ption|ptions|ber|bers) signin login regwall piano mailchimp optin
        ad(s|) advert(s|) advertisement(s|) advertising adsense adslot(s|) adunit adcontainer adwrapper dfp gpt
        sponsor(ed|s|ship|) promo(s|) promoted promotion(s|) partner(s|)""",
        """most-(read|popular|viewed|shared|emailed) more-(stories|from|news|articles|posts|on) read~(more|next|also)
        also-(read|like|see) see~also you-(may|might) up~next next~up sign~up""",
    ),
    # Parts of a page that are no prose; kept when most of the text is in them, as the name may mean something else.
    CHROME: _Vocabulary(
        """nav(s|) navbar navigation menu(s|) menubar submenu breadcrumb(s|) crumb(s|) pagination pager paging pagenav
        toolbar(s|) tool(s|) tab(s|) topbar bottombar share(s|) sharing sharebar sharedaddy sharethis sharetools addthis
        addtoany social(s|) socialmedia follow followers like(s|) tweet facebook twitter whatsapp pinterest sidebar(s|)
        sidenav rail aside footer(s|) foot colophon masthead header banner copyright disclaimer teaser(s|) carousel slideshow
        slider gallery ticker marquee playlist player jwplayer byline(s|) dateline timestamp pubdate publish(ed|) date time
        posted author(s|) authorbox bio biography credit(s|) meta metadata postmeta tag(s|) taglist tagcloud topic(s|)
        categor(y|ies) keyword(s|) filed kicker eyebrow rating(s|) vote(s|) voting poll survey quiz feedback print printer
        email permalink reprint(s|) skip search searchbox searchform language lang switcher donat(e|ion|ions) shop cart buy
        basket contact contribute calltoaction cta prev previous next jump toc editsection noprint catlinks navbox hatnote
        ambox printfooter reflist""",
        """site-(info|links) video~(player|js) media~player entry~(meta|utility|info) info~bar support~us back~to
        mw~(jump|editsection) sister~project(s|)""",
        but_after={"widget": "elementor-", "widgets": "elementor-"},
    ),
    CAPTION: _Vocabulary(
        "caption(s|) figcaption thumbcaption",
        "wp~caption~text image~(credit|source) photo~credit",
    ),
    BODY: _Vocabulary(
        "storytext articletext fulltext richtext prose",
        """{part}~{text} {part}~{text}~(text|content|inner|copy|body|html) (body|content)~(copy|text) rich~text mw~parser~output
        e~content field~name~body""".format(
            part="(article|story|entry|post|blog|news|page|content|main|body|single|review|recipe|text|detail|node)",
            text="(body|content|text|copy|main|entry|fulltext)",
        ),
    ),
    ARTICLE: _Vocabulary("article hentry post story content main entry"),
}
_HIDDEN = frozenset((
    "hidden", "hide", "is-hidden", "visually-hidden", "visuallyhidden", "screen-reader", "screenreader", "screen-reader-text",
    "screenreader-text", "screen-reader-only", "sr-only", "sronly", "element-invisible", "invisible", "u-hidden", "offscreen",
    "d-none", "noscript", "print-only", "printonly", "assistive-text", "a11y-hidden",
))  # fmt: skip
_ROLES = {
    "navigation": CHROME, "banner": CHROME, "contentinfo": CHROME, "complementary": CHROME, "search": CHROME, "menu": CHROME,
    "menubar": CHROME, "toolbar": CHROME, "dialog": ALIEN, "alertdialog": ALIEN, "alert": ALIEN,
    "tooltip": HIDDEN, "main": ARTICLE, "article": ARTICLE,
}  # fmt: skip
_OTHERS = frozenset(("hidden", "aria-hidden", "style", "itemprop", "role"))
_UNSEEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)


_LATER = 8  # bits


def spoken() -> dict[str, int]:
    """The vocabularies that words are in, one bit each, and shifted by `_LATER` those with a phrase that begins so."""
    said: dict[str, int] = {}
    for kind, vocabulary in _VOCABULARIES.items():
        for word in vocabulary.words:
            said[word] = said.get(word, 0) | 1 << kind
        for word in vocabulary.starts - vocabulary.words:
            said[word] = said.get(word, 0) | 1 << kind + _LATER
    return said


def winner(said: int) -> int:
    """Which of several vocabularies, one bit each, a name is taken to be of: the words of content outdo some of the others."""
    for kind in (ALIEN, CAPTION, BODY) if said >> BODY & 1 else (COMMENTS, ALIEN, CAPTION, CHROME, ARTICLE):
        if said >> kind & 1:
            return kind
    return NOTHING


_SPOKEN = spoken()
_WINNERS = [winner(said) for said in range(1 << _LATER)]


@lru_cache(maxsize=1 << 14)
def said_by_name(name: str) -> int:
    """What the class and id of an element say of it. Pages use few names again and again: hence the cache."""
    lower = name.lower()
    if not _HIDDEN.isdisjoint(lower.split()):
        return HIDDEN
    if name == lower:
        found = (_LOWER_WORD if name.isascii() else _WORD).findall(name)
    elif name.isascii():
        found = [word.lower() for word in _MIXED_WORD.findall(name)]
    else:
        found = _WORD.findall(_CAMEL.sub("-", name).lower())
    said = 0
    for word in found:
        if word in _SPOKEN:
            said |= _SPOKEN[word]
    if said >> _LATER:
        said = add_phrases(said, lower if name == lower else _CAMEL.sub("-", name).lower())
    return _WINNERS[said]


def add_phrases(said: int, name: str) -> int:
    """The vocabularies a name is in, its phrases included, which are looked for where one may begin."""
    later, said = said >> _LATER, said & (1 << _LATER) - 1
    for kind, vocabulary in _VOCABULARIES.items():
        if later >> kind & 1 and not said >> kind & 1 and vocabulary.phrases.search(name):
            said |= 1 << kind
    return said


def name_of(attributes: dict[str, str | None]) -> str:
    """The class of an element, and its id unless that is text."""
    get = attributes.get
    name, anchor = get("class"), get("id")
    if anchor and anchor.count("-") + anchor.count("_") < 4 and "." not in anchor and "(" not in anchor:
        return f"{name or ''} {anchor}"[:LONGEST]
    # An id of many words is a heading's text to link to, not a name: "sharing-with-a-single-developer", "java.lang.String".
    return name[:LONGEST] if name else ""


def said_by(attributes: dict[str, str | None]) -> int:
    """What an element's attributes say of it, the plainest first."""
    if len(attributes) == 1 and "class" in attributes:  # as most elements
        return said_by_name((attributes["class"] or "")[:LONGEST])
    if not _OTHERS.isdisjoint(attributes):
        said = said_by_others(attributes)
        if said:
            return said
    return said_by_name(name_of(attributes))


def is_hidden(attributes: dict[str, str | None]) -> bool:
    """Whether `said_by` says HIDDEN, which is all that matters of an inline element."""
    if not _OTHERS.isdisjoint(attributes):
        said = said_by_others(attributes)
        if said:
            return said == HIDDEN
    name = name_of(attributes)
    return bool(name) and not _HIDDEN.isdisjoint(name.lower().split())


def said_by_others(attributes: dict[str, str | None]) -> int:
    """What `hidden`, `style`, `itemprop` and `role` say, the plainest first."""
    get = attributes.get
    if "hidden" in attributes or get("aria-hidden") == "true":
        return HIDDEN
    style = get("style")
    if style and _UNSEEN.search(style):
        return HIDDEN
    itemprop = get("itemprop")
    if itemprop and itemprop.lower() in ("articlebody", "blogpost", "recipeinstructions"):
        return BODY
    return _ROLES.get(get("role") or "", NOTHING)
