"""RefinedWeb's filter of addresses (Penedo et al. 2023, arXiv 2306.01116, section 3.1 and appendix G.1).

Three questions, in this order: is the site, or one it is part of, in a list of blocked domains; do the address's words say
what it is; is it a site that a curated copy exists of. Words are of three severities: a *strict* one drops wherever it is,
also across dots and dashes (the paper's example breaks one over a host name), a *hard* one as a whole word, *soft* ones from
two different on.

The paper's lists were never published. Domains come from lists that the user names (see `blocklist.py`), and words from
files; without files a few of our own stand in, which are too few to clean a crawl and are there so that the rule can be seen
at work.

Everything is compared in lower case, and words after %-escapes are undone. The scheme is no part of the text (`https` and a
host that begins with `ex` would make a word), nor are user names, passwords and ports. The first entry that matches is
reported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from herdbook.corpus.blocklist import (
    Blocklist,
    build_blocklist,
    cached_name,
    domains_above,
    is_prepared,
    normal_host,
    open_blocklist,
)
from herdbook.corpus.config_web import UrlConfig
from herdbook.corpus.phrases import any_of, read_words

# Our own, chosen to be few, plain and unlikely in names of places and people (`sex` is in Essex, so it is soft).
STRICT_WORDS = ("freeporn", "pornvideo", "sexvideo", "camgirl", "onlinecasino", "casinobonus")
HARD_WORDS = ("porn", "porno", "xxx", "hentai")
SOFT_WORDS = ("sex", "nude", "nudes", "escort", "escorts", "webcam", "casino", "slots", "jackpot", "poker", "betting", "viagra")

_ADDRESS = re.compile(r"(?:(?:[a-z][a-z0-9+.-]*:)?[/\\]{2})?([^/?#\\]*)(.*)", re.IGNORECASE | re.DOTALL)
_NOT_WORDS = re.compile(r"[\W_]+")


class Finding(NamedTuple):
    """Why an address is dropped: the rule, what was measured, its limit, and the entry of a list that matched."""

    reason: str
    value: float | None
    threshold: float | None
    detail: str


@dataclass(frozen=True)
class UrlLists:
    """The lists that addresses are held against; open them once a process."""

    blocklists: tuple[Blocklist, ...]
    strict: re.Pattern[str]
    hard: frozenset[str]
    soft: frozenset[str]
    curated: frozenset[str]


def prepare(cfg: UrlConfig, cache: Path) -> UrlConfig:
    """The config with each list of domains prepared in the folder `cache`; call it once, before processes start.

    Raises UserError for lists that are absent or broken.
    """
    ready = []
    for name in cfg.blocklists:
        source = Path(name)
        if not is_prepared(source):
            out = cache / cached_name(source, cfg.categories)
            build_blocklist(source, out, cfg.categories)
            source = out
        ready.append(str(source))
    return cfg.model_copy(update={"blocklists": ready})


def open_lists(cfg: UrlConfig) -> UrlLists:
    """Open what a config names; its lists of domains have to be prepared. Raises UserError for what cannot be read."""
    strict, hard, soft = (
        {_NOT_WORDS.sub("", word) for word in (read_words(path) if path else own)} - {""}
        for path, own in ((cfg.strict_words, STRICT_WORDS), (cfg.hard_words, HARD_WORDS), (cfg.soft_words, SOFT_WORDS))
    )
    return UrlLists(
        tuple(open_blocklist(Path(path)) for path in cfg.blocklists),
        re.compile(any_of(strict)),
        frozenset(hard),
        frozenset(soft),
        frozenset(map(normal_host, cfg.exclude)),
    )


def split_url(url: str) -> tuple[str, str]:
    """The host (normalised, without user and port) and the rest of an address in lower case; never fails."""
    match = _ADDRESS.match(url.strip())
    assert match is not None  # every part of the expression may be empty
    host = match[1].rpartition("@")[2]
    if host.startswith("["):
        host = host.partition("]")[0].removeprefix("[")
    else:
        host = host.partition(":")[0]
    return normal_host(host), match[2].replace("\\", "/").lower()


def judge_url(url: str, lists: UrlLists, cfg: UrlConfig) -> Finding | None:
    """The first rule of the module's that an address breaks, or None."""
    if not cfg.enabled:
        return None
    host, rest = split_url(url)
    for blocklist in lists.blocklists:
        if entry := blocklist.match(host, rest):
            return Finding("blocked_domain" if "/" not in entry else "blocked_url", None, None, entry)
    text = f"{host}{unquote(rest) if '%' in rest else rest}".lower()
    words = _NOT_WORDS.split(text)
    if found := lists.strict.search("".join(words)):
        return Finding("strict_word", 1, 1, found[0])
    if hard := lists.hard.intersection(words):
        return Finding("hard_word", len(hard), 1, min(hard))
    if len(soft := lists.soft.intersection(words)) >= cfg.soft_limit:
        return Finding("soft_words", len(soft), cfg.soft_limit, " ".join(sorted(soft)))
    for name in domains_above(host):
        if name in lists.curated:
            return Finding("curated_source", None, None, name)
    return None
