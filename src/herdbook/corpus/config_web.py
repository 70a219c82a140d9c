"""Rules for pages of the open web, each section off until it is asked for; every default names the paper it is from.

RefinedWeb's filter of addresses and its corrections of lines (Penedo et al. 2023, arXiv 2306.01116), C4's rules (Raffel et al.
2020, JMLR 21(140), section 2.2), FineWeb's three (Penedo et al. 2024, arXiv 2406.17557), masking of personal data, and what a
page says about its rights. Light on purpose: the recipe imports this file.

`compat: datatrove` takes what datatrove 0.10 ships where that is not what the paper says; a number that the user gives stays.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from herdbook.config import Config
from herdbook.errors import UserError
from herdbook.facts.licenses import read_patterns
from herdbook.units import Bytes, Count, Share

Fraction = Annotated[Share, Field(ge=0, le=1)]
Positive = Annotated[Count, Field(ge=1)]
Words = Annotated[Count, Field(ge=0)]
Compat = Literal["datatrove"]

# Sites that RefinedWeb leaves out because curated copies of them exist, so that both can be mixed without counting them twice.
CURATED: tuple[str, ...] = (
    "wikipedia.org", "arxiv.org",
    "stackexchange.com", "stackoverflow.com", "askubuntu.com", "mathoverflow.net", "serverfault.com", "stackapps.com",
    "superuser.com", "github.com", "reddit.com", "news.ycombinator.com",
    "ncbi.nlm.nih.gov", "pubmed.ncbi.nlm.nih.gov", "exporter.nih.gov",
    "courtlistener.com", "uspto.gov", "statmt.org", "irclogs.ubuntu.com",
)  # fmt: skip


def _fill(values: Any, **shipped: Any) -> Any:
    """Under `compat: datatrove`, its numbers for the keys that the user left out."""
    if isinstance(values, dict) and values.get("compat") == "datatrove":
        return {**shipped, **values}
    return values


class UrlConfig(Config):
    """RefinedWeb's filter of addresses (section 3.1 and appendix G.1)."""

    enabled: bool = Field(default=False, description="whether to judge documents by their address")
    blocklists: list[str] = Field(
        default_factory=list, description="lists of domains: UT1's folder or tar, a file with one a line, or a prepared list"
    )
    categories: list[str] | None = Field(default=None, description="categories of UT1 to use; null uses all")
    strict_words: str | None = Field(
        default=None, description="a file, one word a line: dropped if it is anywhere in the address, across dots and dashes"
    )
    hard_words: str | None = Field(default=None, description="a file, one a line: dropped if it is a whole word of the address")
    soft_words: str | None = Field(default=None, description="a file, one a line: whole words, dropped from `soft_limit` on")
    soft_limit: Positive = Field(default=2, description="so many different soft words drop a document")
    exclude: list[str] = Field(
        default_factory=lambda: list(CURATED),
        description="sites to leave out because curated copies are mixed in; with subdomains",
    )


class LinesConfig(Config):
    """RefinedWeb's corrections of lines (section 3.1 and appendix G.2). A rule set to null is off."""

    enabled: bool = Field(default=False, description="whether to correct lines")
    max_upper: Fraction | None = Field(default=0.5, description="drop lines with a larger share of upper-case characters")
    digits: bool = Field(default=True, description="drop lines of digits only")
    counters: bool = Field(default=True, description="drop counters such as `3 likes`")
    min_words: Words | None = Field(default=2, description="drop lines with fewer words")
    short_line: Words = Field(default=10, description="phrases are cut from lines of at most so many words")
    prefixes: list[str] = Field(default=["sign-in"], description="phrases cut where a short line begins")
    suffixes: list[str] = Field(default=["read more..."], description="phrases cut where a short line ends")
    anywhere: list[str] = Field(default=["items in cart"], description="phrases cut from any place of a short line")
    max_flagged: Fraction | None = Field(default=0.05, description="drop the document if more of its words were cut")

    @field_validator("prefixes", "suffixes", "anywhere")
    @classmethod
    def _not_empty(cls, value: list[str]) -> list[str]:
        if not all(phrase.strip() for phrase in value):
            raise ValueError("a phrase is empty")
        return value


class C4Config(Config):
    """C4's rules (JMLR version of the paper, section 2.2). A rule set to null is off.

    The numbers differ: 5 words and 3 sentences in the JMLR version and in the authors' code, 3 words and 5 sentences in the
    first preprint and in datatrove.
    """

    enabled: bool = Field(default=False, description="whether to apply these rules")
    compat: Compat | None = Field(default=None, description="datatrove: 3 words, 5 sentences, and its order of rules")
    terminal_marks: bool = Field(default=True, description="keep only lines that end in a full stop, ?, ! or a quotation mark")
    min_line_words: Words | None = Field(default=5, description="drop lines with fewer words")
    max_word_length: Positive | None = Field(default=1000, description="drop lines with a longer word; characters")
    javascript: bool = Field(default=True, description="drop lines that mention Javascript")
    policy: bool = Field(default=True, description="drop lines about cookies, terms of use and privacy policies")
    citations: bool = Field(default=True, description="cut marks such as [1], [edit] and [citation needed]")
    lorem_ipsum: bool = Field(default=True, description="drop documents with `lorem ipsum`")
    curly_bracket: bool = Field(default=True, description="drop documents with a curly bracket")
    min_sentences: Words | None = Field(default=3, description="drop documents with fewer sentences left")
    bad_words: str | None = Field(default=None, description="a file, one word or phrase a line: documents with one are dropped")

    @model_validator(mode="before")
    @classmethod
    def _shipped(cls, values: Any) -> Any:
        return _fill(values, min_line_words=3, min_sentences=5)


class FineWebConfig(Config):
    """FineWeb's three rules (section 3.6 of the paper). A rule set to null is off.

    datatrove's code has 0.01 for the second where the paper has 0.1, and a fourth rule that the paper has not.
    """

    enabled: bool = Field(default=False, description="whether to apply these rules")
    compat: Compat | None = Field(default=None, description="datatrove: its shipped numbers and comparisons")
    min_punctuated: Fraction | None = Field(
        default=0.12, description="drop at this share of lines with a terminal mark, or less"
    )
    max_repeated_chars: Fraction | None = Field(
        default=0.1, description="drop at this share of characters in lines seen before, or more"
    )
    short_line: Positive = Field(default=30, description="a line with fewer characters is short")
    max_short_lines: Fraction | None = Field(default=0.67, description="drop at this share of short lines, or more")
    max_newlines: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None, description="drop above so many newlines a word; datatrove's rule against lists"
    )

    @model_validator(mode="before")
    @classmethod
    def _shipped(cls, values: Any) -> Any:
        return _fill(values, max_repeated_chars=0.01, short_line=31, max_newlines=0.3)


class PiiConfig(Config):
    """Masking of personal data: e-mail and public IP addresses as in FineWeb (section 3.7); phone numbers if asked for."""

    enabled: bool = Field(default=False, description="whether to mask")
    emails: bool = Field(default=True, description="mask e-mail addresses")
    ips: bool = Field(default=True, description="mask public IPv4 and IPv6 addresses")
    phones: bool = Field(default=False, description="mask phone numbers; also hits some other numbers")
    style: Literal["examples", "tags"] = Field(
        default="examples", description="put addresses reserved for examples in their place, or tags such as <EMAIL>"
    )


class RightsConfig(Config):
    """What a page says about its licence, about training on it, and about being indexed."""

    enabled: bool = Field(default=False, description="whether to look")
    respect_ai: bool = Field(default=True, description="drop pages that reserve their text from training")
    respect_noindex: bool = Field(default=False, description="drop pages that ask not to be indexed")
    licenses: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None,
        description="keep only what is under these licences, as the page or its source states; `CC-BY-*` is any version",
    )
    require: bool = Field(default=False, description="drop what is under no stated licence, whichever it would be")
    plain_links: bool = Field(
        default=False,
        description="take a mere link to a Creative Commons licence for the page's own; it often is that of a picture",
    )
    head_bytes: Annotated[Bytes, Field(ge=1024)] = Field(default=256 << 10, description="look at so much of a page's beginning")
    tail_bytes: Annotated[Bytes, Field(ge=0)] = Field(default=64 << 10, description="and at so much of its end")

    @field_validator("licenses")
    @classmethod
    def _known_licenses(cls, value: list[str] | None) -> list[str] | None:
        try:
            return None if value is None else read_patterns(value)
        except UserError as error:
            raise ValueError(str(error).replace("\n  →", ":")) from error
