"""What a page says about its licence and about what may be done with its text.

Licences, the most explicit mark first: `rel="license"` on a link; a `<meta>` of Dublin Core (`dc.rights`, `dcterms.license`)
or the like; `license` in JSON-LD of the page itself (not of its pictures); a plain link to, or the badge of, a Creative
Commons licence. If marks of one kind name different licences, as pages with many works do, the page's own is unknown.

Reservations: `noai`, `noimageai`, `noindex` in `<meta name="robots">` or an `X-Robots-Tag` header; `tdm-reservation` 1 in a
`<meta>` or header (TDM Reservation Protocol, W3C community group 2024). No statement is no permission: that is for whoever
curates to decide.

HTML is not parsed but searched for tags, by expressions that never look past the next `<`, in the page's beginning and end
only. Two look-ups of words go first, so that a page with none of this costs next to nothing.
"""

from __future__ import annotations

import html as entities
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

from herdbook.corpus.config_web import RightsConfig
from herdbook.corpus.filters import Removal

# Looked up in the page in lower case; `in` on a string is many times as fast as an expression that ignores case.
_LICENSE_GATE = ("license", "licence", "creativecommons", "dc.rights", "dcterms.rights")
_META_GATE = ("robots", "tdm-")
_TAG = re.compile(r"<(a|link|meta|img)\s([^<>]{1,3000})>", re.IGNORECASE)
_META_TAG = re.compile(r"<(meta)\s([^<>]{1,3000})>", re.IGNORECASE)
_SCRIPT = re.compile(r"<script[^<>]{1,200}application/ld\+json[^<>]{0,200}>|</script", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"""([\w:.-]{1,40})\s{0,4}=\s{0,4}(?:"([^"]{0,2000})"|'([^']{0,2000})'|([^\s"'>]{1,2000}))""")
_CC_URL = re.compile(
    r"(?:creativecommons\.org/(?:licenses|publicdomain)|i\.creativecommons\.org/[lp]|licensebuttons\.net/[lp])"
    r"/(by(?:-[a-z-]{2,8})?|zero|mark)/(\d\.\d)(?:/([a-z]{2,8}))?",
    re.IGNORECASE,
)
_CC_NAME = re.compile(r"\bcc[\s_-]?(by(?:[\s_-](?:nc|nd|sa)){0,2})[\s_-]v?(\d\.\d)\b|\bcc[\s_-]?(0|zero)\b", re.IGNORECASE)
_OTHER_URLS = (
    (re.compile(r"opensource\.org/licenses?/(mit|isc|bsd-2-clause|bsd-3-clause|apache-2\.0)\b", re.IGNORECASE), None),
    (re.compile(r"apache\.org/licenses/license-2\.0", re.IGNORECASE), "Apache-2.0"),
    (re.compile(r"opendatacommons\.org/licenses/by/", re.IGNORECASE), "ODC-By-1.0"),
    (re.compile(r"unlicense\.org", re.IGNORECASE), "Unlicense"),
)
_SPDX_CASE = {
    "mit": "MIT",
    "isc": "ISC",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "apache-2.0": "Apache-2.0",
}
# The combinations, versions and ports that SPDX 3.27 has; another port of a licence goes by the licence's own id.
_VERSIONS = ("1.0", "2.0", "2.5", "3.0", "4.0")
_PORTED = frozenset(
    ["BY-2.5-AU", "BY-3.0-AT", "BY-3.0-AU", "BY-3.0-DE", "BY-3.0-IGO", "BY-3.0-NL", "BY-3.0-US", "BY-NC-3.0-DE", "BY-ND-3.0-DE",
     "BY-NC-ND-3.0-DE", "BY-NC-ND-3.0-IGO", "BY-NC-SA-2.0-DE", "BY-NC-SA-2.0-FR", "BY-NC-SA-2.0-UK", "BY-NC-SA-3.0-DE",
     "BY-NC-SA-3.0-IGO", "BY-SA-2.0-UK", "BY-SA-2.1-JP", "BY-SA-3.0-AT", "BY-SA-3.0-DE", "BY-SA-3.0-IGO"]
)  # fmt: skip
_PARTS = ("BY", "NC", "ND", "SA")
_META = frozenset(
    ["dc.rights", "dc.rights.license", "dcterms.rights", "dcterms.license", "dc.license", "license", "cc:license"]
)
_PICTURES = frozenset(
    ["ImageObject", "VideoObject", "AudioObject", "MediaObject", "Photograph", "SoftwareSourceCode", "Dataset"]
)


@dataclass(frozen=True, slots=True)
class Rights:
    """What a page says of itself.

    Attributes:
        license: SPDX id, with version and, where SPDX has one, port (`CC-BY-SA-3.0-DE`); None if not said, or not clearly.
        where: the mark it is from (`rel`, `meta`, `json-ld`, `link`), or `conflict`.
        ai: `reserved` if the text is not to be trained on.
        ai_where: the mark that says so, as in `meta tdm-reservation`.
        images: `reserved` if its pictures are not to be trained on.
        noindex: whether it asks not to be indexed.
        policy: address of the terms for text and data mining.
    """

    license: str | None = None
    where: str = ""
    ai: Literal["reserved"] | None = None
    ai_where: str = ""
    images: Literal["reserved"] | None = None
    noindex: bool = False
    policy: str | None = None

    @property
    def base_license(self) -> str | None:
        """The licence without its port: `CC-BY-SA-3.0` of `CC-BY-SA-3.0-DE`."""
        return re.sub(r"(?<=^CC-)(.*\d\.\d)-[A-Z]{2,3}$", r"\1", self.license) if self.license else None


def find_rights(html: str, cfg: RightsConfig, headers: Mapping[str, str] | Iterable[tuple[str, str]] = ()) -> Rights:
    """What a page and its HTTP headers say; never fails, whatever the HTML."""
    marks = _header_marks(headers)
    text = html
    if len(html) > cfg.head_bytes + cfg.tail_bytes:
        text = html[: cfg.head_bytes] + "\n" + (html[-cfg.tail_bytes :] if cfg.tail_bytes else "")
    named: dict[str, set[str]] = {"rel": set(), "meta": set(), "json-ld": set(), "link": set()}
    low = text.lower()
    licensed = any(word in low for word in _LICENSE_GATE)
    if licensed or any(word in low for word in _META_GATE):
        for tag, inside in (_TAG if licensed else _META_TAG).findall(text):
            _read_tag(tag.lower(), _attributes(inside), marks, named)
        if licensed and "ld+json" in low:
            named["json-ld"] = {found for value in _json_licenses(text) if (found := spdx_id(value))}
    license_, where = next(((found, kind) for kind, found in named.items() if found), (set(), ""))
    clear = len(license_) == 1
    ai = next((mark for mark in marks if mark.endswith((" noai", " tdm-reservation"))), "")
    return Rights(
        license=min(license_) if clear else None,
        where=where if clear or not where else "conflict",
        ai="reserved" if ai else None,
        ai_where=ai,
        images="reserved" if ai or any(mark.endswith(" noimageai") for mark in marks) else None,
        noindex=any(mark.endswith((" noindex", " none")) for mark in marks),
        policy=next((mark.partition(" tdm-policy ")[2] for mark in marks if " tdm-policy " in mark), None),
    )


def judge_rights(rights: Rights, cfg: RightsConfig) -> Removal | None:
    """Whether a page goes because of what it asks for, as far as the config respects that."""
    if not cfg.enabled:
        return None
    if cfg.respect_ai and rights.ai:
        return Removal("ai_reserved")
    return Removal("noindex") if cfg.respect_noindex and rights.noindex else None


def spdx_id(text: str) -> str | None:
    """The SPDX id that an address of a licence, or its usual name (`CC BY-SA 4.0`), stands for; None if it is not known."""
    text = text[:2000]
    if found := _CC_URL.search(unquote(text)):
        return _creative_commons(found[1].lower(), found[2], (found[3] or "").upper())
    for pattern, identifier in _OTHER_URLS:
        if found := pattern.search(text):
            return identifier or _SPDX_CASE[found[1].lower()]
    if found := _CC_NAME.search(text):
        return _creative_commons("zero", "1.0", "") if found[3] else _creative_commons(found[1].lower(), found[2], "")
    return _SPDX_CASE.get(text.strip().lower())


def _creative_commons(kind: str, version: str, port: str) -> str | None:
    if kind in ("zero", "mark"):
        return ("CC0-1.0" if kind == "zero" else "CC-PDM-1.0") if version == "1.0" else None
    parts = {part.upper() for part in re.split(r"[\s_-]", kind)}
    if not parts <= {*_PARTS} or {"ND", "SA"} <= parts:
        return None
    name = f"{'-'.join(part for part in _PARTS if part in parts)}-{version}"
    if f"{name}-{port}" in _PORTED:
        return f"CC-{name}-{port}"
    return f"CC-{name}" if version in _VERSIONS else None


def _attributes(inside: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, double, single, bare in _ATTRIBUTE.findall(inside):
        value = double or single or bare
        found.setdefault(name.lower(), (entities.unescape(value) if "&" in value else value).strip())
    return found


def _read_tag(tag: str, attributes: dict[str, str], marks: list[str], named: dict[str, set[str]]) -> None:
    """Note what one tag says."""
    if tag == "meta":
        name = (attributes.get("name") or attributes.get("property") or attributes.get("itemprop") or "").lower()
        content = attributes.get("content", "")
        if name == "robots":
            marks += [f"meta {word}" for word in re.split(r"[\s,;]+", content.lower())]
        elif name == "tdm-reservation" and content == "1":
            marks.append("meta tdm-reservation")
        elif name == "tdm-policy" and content:
            marks.append(f"meta tdm-policy {content}")
        elif name in _META and (found := spdx_id(content)):
            named["meta"].add(found)
        return
    address = attributes.get("href") or attributes.get("src") or ""
    kind = "rel" if "license" in attributes.get("rel", "").lower().split() and tag != "img" else "link"
    # A link to a licence of software is about something to be had there; only a rel says that it is the page's own.
    if (kind == "rel" or _CC_URL.search(address)) and (found := spdx_id(address)):
        named[kind].add(found)


def _header_marks(headers: Mapping[str, str] | Iterable[tuple[str, str]]) -> list[str]:
    marks: list[str] = []
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        low, value = name.strip().lower(), value.strip()
        if low == "x-robots-tag":
            agent, colon, rest = value.lower().partition(":")
            mine = not colon or "," in agent or agent.strip() in ("unavailable_after", "max-snippet", "max-image-preview")
            words = [word.strip() for word in (value.lower() if mine else rest).split(",")]
            # What is said to one crawler is not said to all, but one that may not train speaks for the page.
            marks += [f"header {word}" for word in words if mine or word in ("noai", "noimageai")]
        elif low == "tdm-reservation" and value == "1":
            marks.append("header tdm-reservation")
        elif low == "tdm-policy" and value:
            marks.append(f"header tdm-policy {value}")
    return marks


def _json_licenses(text: str) -> Iterator[str]:
    """Licences of the things that a page's JSON-LD describes at its top, pictures and the like left out."""
    began: int | None = None
    for tag in _SCRIPT.finditer(text):
        block = text[began : tag.start()] if began is not None else ""
        began = tag.end() if tag[0].endswith(">") else None
        if "license" not in block or began is not None:
            continue
        try:
            data = json.loads(block)
        except (ValueError, RecursionError):
            continue
        for item in _top_items(data):
            value = item.get("license")
            for part in value if isinstance(value, list) else [value]:
                given = part.get("@id") or part.get("url") or part.get("name") if isinstance(part, dict) else part
                if isinstance(given, str):
                    yield given


def _top_items(data: Any) -> Iterator[dict[str, Any]]:
    rows = data if isinstance(data, list) else [data]
    for row in rows:
        if not isinstance(row, dict):
            continue
        graph = row.get("@graph")
        for item in [row, *(graph if isinstance(graph, list) else [])]:
            types = item.get("@type") if isinstance(item, dict) else None
            if isinstance(item, dict) and not _PICTURES.intersection(types if isinstance(types, list) else [str(types)]):
                yield item
