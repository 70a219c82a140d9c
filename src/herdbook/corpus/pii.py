"""Masking of personal data that regular expressions can find: e-mail addresses, public IP addresses, phone numbers.

FineWeb masks the first two (Penedo et al. 2024, arXiv 2406.17557, section 3.7); phone numbers are an option. Conservative:
what looks like something else stays, such as version numbers, private and reserved IP addresses, `icon@2x.png`, and numbers
without the marks of a phone number. In their place stand addresses reserved for examples (RFC 2606, 5737, 3849; the 555-01xx
numbers of North America), or tags. Those are never masked themselves, so that masking twice does what masking once does.

Every expression is bounded: a text of a megabyte of dots takes no longer than one of prose.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from herdbook.corpus.config_web import PiiConfig

EXAMPLES = {"email": "email@example.com", "ipv4": "192.0.2.1", "ipv6": "2001:db8::1", "phone": "+1 202-555-0100"}
TAGS = {"email": "<EMAIL>", "ipv4": "<IP>", "ipv6": "<IP>", "phone": "<PHONE>"}

# Each begins with the characters that a match can begin with and looks back after that: `re` skips to those quickly.
_EMAIL = re.compile(
    r"[a-z0-9_](?<![\w.+%-].)[\w.+%'-]{0,63}@(?![1-4]x\.)"
    r"((?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.){1,6}(?:[a-z]{2,24}|xn--[a-z0-9-]{2,59}))(?![\w@-]|\.\w)",
    re.IGNORECASE | re.ASCII,
)
_IPV4 = re.compile(r"[0-9](?<![\w.-].)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![\w-]|\.\w)")
_IPV6 = re.compile(r"[23](?<![\w:.].)[0-9a-f]{3}(?::[0-9a-f]{0,4}){2,7}(?![\w:])", re.IGNORECASE)
# International: a plus, a country code, and groups; then the national formats that are unlikely to be anything else.
_PHONE = re.compile(
    r"[+(0-9](?<![\w+.,/=-].)(?:"
    r"(?<=\+)[1-9][0-9]{0,2}(?:[ .\xa0-]{0,2}\(?[0-9]{1,12}\)?){1,6}"
    r"|(?:(?<=1)[ .-]\(?)?(?:(?<=\()[2-9][0-9]{2}\)[ .-]?|(?:(?<=[2-9])[0-9]{2}|(?<=[ .-])[2-9][0-9]{2})[.-])"
    r"[2-9][0-9]{2}[.-][0-9]{4}"  # North America
    r"|(?<=0)[1-9]([ .\xa0-])[0-9]{2}(?:\1[0-9]{2}){3}(?!\1[0-9a-f]{2}\b)"  # France, and no row of bytes
    r"|(?<=0)(?:20[ -][0-9]{4}[ -][0-9]{4}|[17][0-9]{3}[ -][0-9]{6})"  # the United Kingdom
    r")(?![\w+=]|[.,/-]\w)"
)
_VERSION_BEFORE = re.compile(r"(?:version|release|build|\bver\.?|\bv\.?)[ :]*$", re.IGNORECASE)


class Masked(NamedTuple):
    """A text without personal data, and how many of each kind (email, ipv4, ipv6, phone) were masked."""

    text: str
    counts: dict[str, int]


def mask_pii(text: str, cfg: PiiConfig) -> Masked:
    """Mask what the config asks for; a text with none of it comes back as it is."""
    if not cfg.enabled:
        return Masked(text, {})
    counts: Counter[str] = Counter()
    marks = EXAMPLES if cfg.style == "examples" else TAGS

    def mask(kind: str, pattern: re.Pattern[str], personal: Callable[[re.Match[str]], bool]) -> None:
        nonlocal text

        def replace(match: re.Match[str]) -> str:
            if not personal(match):
                return match[0]
            counts[kind] += 1
            return marks[kind]

        text = pattern.sub(replace, text)

    if cfg.emails and "@" in text:
        mask("email", _EMAIL, _real_mailbox)
    if cfg.ips and "." in text:
        mask("ipv4", _IPV4, _public_ipv4)
    if cfg.ips and ("::" in text or text.count(":") > 6):
        mask("ipv6", _IPV6, _public_ipv6)
    if cfg.phones:
        mask("phone", _PHONE, _real_phone)
    return Masked(text, dict(counts))


def _real_mailbox(match: re.Match[str]) -> bool:
    name = match[1].lower()
    last = ".".join(name.split(".")[-2:])
    return last not in ("example.com", "example.org", "example.net") and not name.endswith((".example", ".test", ".invalid"))


def _public_ipv4(match: re.Match[str]) -> bool:
    try:
        public = ipaddress.IPv4Address(match[0]).is_global
    except ValueError:
        return False
    # Sections of documents are numbered like that (7.5.1.2), hardly ever with three digits; 1 address in 40 has none either.
    return (
        public
        and any(len(part) == 3 for part in match[0].split("."))
        and not _VERSION_BEFORE.search(match.string, max(0, match.start() - 12), match.start())
    )


def _public_ipv6(match: re.Match[str]) -> bool:
    try:
        return ipaddress.IPv6Address(match[0]).is_global
    except ValueError:
        return False


def _real_phone(match: re.Match[str]) -> bool:
    digits = "".join(filter(str.isdigit, match[0]))
    if match[0].startswith("+") and not 8 <= len(digits) <= 15:  # ITU-T E.164
        return False
    return digits[-7:-2] != "55501"
