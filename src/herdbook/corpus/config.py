"""What a corpus is made of, and by which rules; every threshold names the paper it is from.

The defaults are the published ones: Gopher's quality and repetition rules (Rae et al. 2021, arXiv 2112.11446, section A1.1 and
table A1), the 0.65 language threshold of RefinedWeb (Penedo et al. 2023, arXiv 2306.01116), the 14 bands of 8 hashes over
word 5-grams of FineWeb (Penedo et al. 2024, arXiv 2406.17557). Light on purpose: the recipe imports this file.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from herdbook.config import Config
from herdbook.corpus.config_dedup import BucketsConfig, ContaminationConfig, SubstringConfig, UrlDedupConfig
from herdbook.corpus.config_models import ClassifierConfig
from herdbook.corpus.config_perplexity import PerplexityConfig
from herdbook.corpus.config_web import C4Config, FineWebConfig, LinesConfig, PiiConfig, RightsConfig, UrlConfig
from herdbook.facts.licenses import find_expression
from herdbook.units import Bytes, Count, Share, parse_count

Format = Literal["auto", "warc", "wet", "html", "jsonl", "parquet"]
Builtin = Literal["pydoc", "docstrings", "prose"]
Positive = Annotated[Count, Field(ge=1)]
Natural = Annotated[Count, Field(ge=0)]
Fraction = Annotated[Share, Field(ge=0, le=1)]
Length = Annotated[float, Field(ge=0, allow_inf_nan=False)]
NgramSize = Annotated[Count, Field(ge=2)]


def _sample_size(value: Any) -> int | str:
    """A count or `all`, as one type: of a union every member would report the same mistake."""
    if value == "all":
        return "all"
    try:
        size = parse_count(value)
    except ValueError:
        raise ValueError("give a count from 0 on, or `all`") from None
    if size < 0:
        raise ValueError("give a count from 0 on, or `all`")
    return size


# Docstrings and lead sections were written as text by people, so rules that tell prose from web clutter do not apply to them.
ALREADY_TEXT: frozenset[str] = frozenset({"docstrings", "prose"})


class Source(Config):
    """One place that documents come from."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80, description="what the mixture calls it")
    path: str | list[str] | None = Field(
        default=None, description="a file, a folder, a glob, an address (s3://, https://), a list of paths, or several of these"
    )
    base: str | None = Field(
        default=None, description="what the entries of a `*.paths.gz` are relative to, if not its own address"
    )
    builtin: Builtin | None = Field(default=None, description="text that this machine already has, in place of a path")
    format: Format = Field(default="auto", description="auto looks at the first bytes of each file")
    license: str | None = Field(default=None, description="SPDX id of the text; unknown when it is left out")
    description: str | None = Field(default=None, description="one sentence for reports")
    language: str | None = Field(default=None, description="take this language as given (`en`), instead of identifying it")
    filters: bool | None = Field(
        default=None, description="judge by the quality and repetition rules; off for docstrings and prose"
    )
    limit: Positive | None = Field(default=None, description="read at most so many documents")
    text_key: str = Field(default="text", description="jsonl and parquet: the field that holds the text")
    id_key: str = Field(
        default="id", description="jsonl and parquet: the field of the id; absent, file name and line are the id"
    )
    url_key: str = Field(default="url", description="jsonl and parquet: the field of the address")
    date_key: str = Field(default="date", description="jsonl and parquet: the field of the date")
    license_key: str = Field(default="license", description="jsonl and parquet: the field of a document's own licence")

    @field_validator("license")
    @classmethod
    def _known_license(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                return find_expression(value).id
            except Exception as error:
                raise ValueError(str(error).replace("\n  →", ":")) from error
        return None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.builtin is None):
            raise ValueError("give either `path` or `builtin`")
        if self.path is not None and not self.paths:
            raise ValueError("`path` is empty")
        return self

    @property
    def paths(self) -> list[str]:
        """The paths and globs as a list."""
        return [] if self.path is None else [self.path] if isinstance(self.path, str) else list(self.path)

    @property
    def filtered(self) -> bool:
        """Whether the quality and repetition rules judge this source."""
        return self.filters if self.filters is not None else self.builtin not in ALREADY_TEXT


class ExtractConfig(Config):
    """From an HTML page to its text."""

    engine: Literal["native", "resiliparse", "trafilatura", "trafilatura_fast"] = Field(
        default="native",
        description="what extracts the text; native is ours: fewer menus, lists and tables kept readable; trafilatura is what "
        "RefinedWeb used (ten times slower; its fast mode leaves out the fallbacks) and needs herdbook[trafilatura]",
    )
    main_content: bool = Field(default=True, description="leave out menus, footers and the like; false keeps all visible text")
    max_nesting: Positive = Field(
        default=2000, description="skip pages nested deeper: parsing time grows with the square of it"
    )


class LimitsConfig(Config):
    """Sizes beyond which a record is skipped and counted; in bytes, never in seconds, so that results do not depend on load."""

    max_record_bytes: Annotated[Bytes, Field(ge=1024)] = Field(default=16 << 20, description="a payload, packed and unpacked")
    max_text_bytes: Annotated[Bytes, Field(ge=1024)] = Field(default=8 << 20, description="a document's text")


class QualityConfig(Config):
    """Gopher's quality rules (table and text of section A1.1). A rule set to null is off."""

    enabled: bool = Field(default=True, description="whether to apply these rules")
    compat: Literal["datatrove", "dclm"] | None = Field(
        default=None, description="count as that tool does (docs/gopher.md), instead of as we read the paper"
    )
    words: Literal["space", "spacy", "uniseg"] = Field(
        default="space", description="what words are: datatrove's are spacy, DCLM's uniseg, each by a package of that name"
    )
    min_words: Natural | None = Field(default=50, description="fewer words are dropped")
    max_words: Natural | None = Field(default=100_000, description="more words are dropped")
    min_mean_word_length: Length | None = Field(default=3.0, description="characters")
    max_mean_word_length: Length | None = Field(default=10.0, description="characters")
    max_symbol_ratio: Fraction | None = Field(default=0.1, description="number signs, or ellipses, over words")
    max_bullet_lines: Fraction | None = Field(default=0.9, description="share of lines that begin with a bullet")
    max_ellipsis_lines: Fraction | None = Field(default=0.3, description="share of lines that end in an ellipsis")
    min_alpha_words: Fraction | None = Field(
        default=0.8, description="share of words with a letter, dashes and the like not counted"
    )
    min_stop_words: Natural | None = Field(default=2, description="different stop words of its language (en, fr, es)")

    @model_validator(mode="after")
    def _something_passes(self) -> Self:
        for low, high in (("min_words", "max_words"), ("min_mean_word_length", "max_mean_word_length")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise ValueError(f"`{low}` ({least:g}) is above `{high}` ({most:g}): no document would pass")
        return self


class RepetitionConfig(Config):
    """Gopher's repetition rules (table A1). A rule set to null is off; above the threshold is dropped."""

    enabled: bool = Field(default=True, description="whether to apply these rules")
    compat: Literal["datatrove", "dclm"] | None = Field(
        default=None, description="count as that tool does (docs/gopher.md), instead of as we read the paper"
    )
    words: Literal["space", "spacy", "uniseg"] = Field(
        default="space", description="what words are: datatrove's are spacy, DCLM's uniseg, each by a package of that name"
    )
    duplicate_lines: Fraction | None = Field(default=0.30, description="share of lines seen before in the document")
    duplicate_paragraphs: Fraction | None = Field(default=0.30, description="share of paragraphs seen before")
    duplicate_line_chars: Fraction | None = Field(default=0.20, description="share of characters in such lines")
    duplicate_paragraph_chars: Fraction | None = Field(default=0.20, description="share of characters in such paragraphs")
    top_ngrams: dict[NgramSize, Fraction] = Field(
        default={2: 0.20, 3: 0.18, 4: 0.16}, description="share of characters in the most frequent n-gram"
    )
    duplicate_ngrams: dict[NgramSize, Fraction] = Field(
        default={5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},
        description="share of characters in n-grams seen before",
    )

    @field_validator("top_ngrams", "duplicate_ngrams")
    @classmethod
    def _by_size(cls, value: dict[int, float]) -> dict[int, float]:
        return dict(sorted(value.items()))


class MinHashConfig(Config):
    """Near-duplicates by MinHash and bands (Broder 1997; parameters as FineWeb's)."""

    enabled: bool = Field(default=True, description="whether to drop near-duplicates")
    ngram: Annotated[Count, Field(ge=1, le=50)] = Field(default=5, description="words in a shingle")
    bands: Annotated[Count, Field(ge=1, le=1000)] = Field(default=14, description="more bands catch less similar pairs")
    rows: Annotated[Count, Field(ge=1, le=1000)] = Field(
        default=8, description="hashes a band; more rows ask for more similarity"
    )
    multipliers: Positive | None = Field(
        default=None, description="hash functions share so many random multipliers (faster); null gives each its own"
    )

    @model_validator(mode="after")
    def _independent_rows(self) -> Self:
        if self.multipliers is not None and (self.multipliers < self.rows or self.num_perm % self.multipliers):
            raise ValueError("`multipliers` divides bands × rows, and is at least `rows` so that a band's rows are independent")
        return self

    @property
    def num_perm(self) -> int:
        """How many hashes a document has: bands × rows."""
        return self.bands * self.rows

    @property
    def midpoint(self) -> float:
        """The Jaccard similarity at which about half of the pairs are found: (1/bands)^(1/rows)."""
        return float((1 / self.bands) ** (1 / self.rows))


# RefinedWeb's main text says 20 buckets of 450 hashes, its appendix and Lee et al. 20 hashes in each of 450 buckets. The former
# finds half of the pairs at a similarity of 0.993 and the latter at 0.737; what was built is the latter.
MINHASH: dict[str, MinHashConfig] = {
    "refinedweb": MinHashConfig(bands=450, rows=20, multipliers=60),
    "fineweb": MinHashConfig(bands=14, rows=8, multipliers=16),
}


class DedupConfig(Config):
    """Which documents are dropped because the corpus has them already."""

    exact: bool = Field(default=True, description="drop documents whose words are the same, whatever case and spacing")
    minhash: MinHashConfig = Field(default_factory=lambda: MINHASH["fineweb"], description="near-duplicates")
    urls: UrlDedupConfig = Field(default_factory=UrlDedupConfig, description="addresses kept before")
    substring: SubstringConfig = Field(default_factory=SubstringConfig, description="passages that stand elsewhere")
    contamination: ContaminationConfig = Field(default_factory=ContaminationConfig, description="overlap with evaluation sets")
    keep: Literal["first", "longest"] = Field(default="first", description="which of a cluster stays; ties: the first")

    @property
    def steps(self) -> tuple[str, ...]:
        """The names of the comparisons that these settings ask for, in order (see `funnel.STEPS`)."""
        asked = {
            "exact": self.exact,
            "minhash": self.minhash.enabled,
            "urls": self.urls.enabled,
            "substring": self.substring.enabled,
            "contamination": bool(self.contamination.sets),
        }
        return tuple(name for name, wanted in asked.items() if wanted)


# The published pipelines as far as this station has their steps; keys that a recipe sets itself go before.
PRESETS: dict[str, dict[str, Any]] = {
    # Rae et al. 2021: quality and repetition; near-duplicates as here by default.
    "gopher": {},
    # Penedo et al. 2023 (RefinedWeb): addresses, language, Gopher's rules, corrections of lines, 450 bands of 20, substrings.
    "refinedweb": {
        "url": {"enabled": True}, "languages": ["en"], "min_score": 0.65, "lines": {"enabled": True},
        "dedup": {"minhash": {"bands": 450, "rows": 20, "multipliers": 60}, "urls": {"enabled": True},
                  "substring": {"enabled": True}},
    },
    # Penedo et al. 2024 (FineWeb): the same beginning, C4's rules without the one on terminal marks, three of its own, 14 of 8.
    "fineweb": {
        "url": {"enabled": True, "exclude": []}, "languages": ["en"], "min_score": 0.65,
        "c4": {"enabled": True, "terminal_marks": False}, "fineweb": {"enabled": True},
        "dedup": {"minhash": {"bands": 14, "rows": 8, "multipliers": 16}}, "pii": {"enabled": True},
    },
    # Raffel et al. 2020 (C4): its own rules alone. Its threshold of 0.99 is for langdetect, whose scores lie closer to one.
    "c4": {
        "languages": ["en"], "min_score": 0.65, "c4": {"enabled": True}, "quality": {"enabled": False},
        "repetition": {"enabled": False}, "dedup": {"minhash": {"enabled": False}},
    },
    # Wenzek et al. 2020 (CCNet): passages that stand elsewhere, language from 0.5 on, head and middle by perplexity. It
    # compares paragraphs by hash where we compare 50 tokens anywhere, and wants 300 characters where 50 words are asked here.
    # The n-gram model is the user's: `perplexity.model`.
    "ccnet-like": {
        "min_score": 0.5, "repetition": {"enabled": False},
        "quality": {"max_words": None, "min_mean_word_length": None, "max_mean_word_length": None, "max_symbol_ratio": None,
                    "max_bullet_lines": None, "max_ellipsis_lines": None, "min_alpha_words": None, "min_stop_words": None},
        "perplexity": {"keep": ["head", "middle"]},
        "dedup": {"minhash": {"enabled": False}, "substring": {"enabled": True}},
    },
}  # fmt: skip


def _under(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, section by section."""
    merged = dict(below)
    for key, value in above.items():
        known = merged.get(key)
        merged[key] = _under(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return merged


class CorpusConfig(Config):
    """The corpus station: sources and the rules that decide what stays."""

    preset: Literal["gopher", "refinedweb", "fineweb", "c4", "ccnet-like"] | None = Field(
        default=None, description="a published pipeline's settings, under those that are set here"
    )
    sources: list[Source] = Field(min_length=1, description="where documents come from, in reading order")
    commercial: bool = Field(default=False, description="refuse what may not be used commercially")
    languages: list[str] | None = Field(default=None, description="languages to keep (`[en, fr]`); null keeps all")
    min_score: Fraction = Field(default=0.65, description="with `languages`: drop documents whose language is less certain")
    first_look: Fraction | None = Field(
        default=None,
        description="with `languages`: drop a page before extraction if all its visible text is in none of them with so much "
        "probability (0.05 saves half of a slow engine's time on a crawl, and loses 1 page in 400); null extracts all",
    )
    heldout: Annotated[Share, Field(ge=0, lt=1)] = Field(
        default=0.02, description="share of documents that no training may see, chosen by a hash of their id"
    )
    extract: ExtractConfig = Field(default_factory=ExtractConfig, description="HTML to text")
    limits: LimitsConfig = Field(default_factory=LimitsConfig, description="sizes beyond which records are skipped")
    quality: QualityConfig = Field(default_factory=QualityConfig, description="Gopher's quality rules")
    repetition: RepetitionConfig = Field(default_factory=RepetitionConfig, description="Gopher's repetition rules")
    url: UrlConfig = Field(default_factory=UrlConfig, description="RefinedWeb's filter of addresses")
    rights: RightsConfig = Field(default_factory=RightsConfig, description="licences and reservations that pages state")
    lines: LinesConfig = Field(default_factory=LinesConfig, description="RefinedWeb's corrections of lines")
    c4: C4Config = Field(default_factory=C4Config, description="C4's rules")
    fineweb: FineWebConfig = Field(default_factory=FineWebConfig, description="FineWeb's rules")
    classifier: ClassifierConfig = Field(default_factory=ClassifierConfig, description="a fastText classifier of quality")
    perplexity: PerplexityConfig = Field(default_factory=PerplexityConfig, description="CCNet's buckets of perplexity")
    pii: PiiConfig = Field(default_factory=PiiConfig, description="masking of personal data")
    dedup: DedupConfig = Field(default_factory=DedupConfig, description="duplicates and near-duplicates")
    removed_sample: Annotated[int | Literal["all"], BeforeValidator(_sample_size)] = Field(
        default=50, description="removed documents whose text is kept for a look, per rule; or all (of cuts, 20 times as many)"
    )
    unreachable: Literal["stop", "skip"] = Field(
        default="stop",
        description="files by address that cannot be fetched: stop when all else is done, so that running again fetches them, "
        "or leave them out",
    )
    executor: Literal["local", "ray"] = Field(
        default="local", description="where batches are worked on; ray takes the cluster's address from RAY_ADDRESS"
    )
    buckets: BucketsConfig = Field(default_factory=BucketsConfig, description="memory of what compares documents")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=0, description="of the held-out split, the removed sample and the hash functions"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, values: Any) -> Any:
        preset = PRESETS.get(str(values.get("preset"))) if isinstance(values, dict) else None
        return _under(preset, values) if preset else values

    def identity(self) -> dict[str, Any]:
        """What the corpus depends on, as JSON: all but who works on it and how much memory that takes."""
        return self.model_dump(mode="json", exclude={"executor", "buckets", "unreachable"})

    @property
    def steps(self) -> tuple[str, ...]:
        """The names of the steps that these settings ask for, in order (see `funnel.STEPS`)."""
        asked = {
            "url": self.url.enabled, "rights": self.rights.enabled,
            "first_look": self.first_look is not None and self.languages is not None,
            "license": self.commercial, "repetition": self.repetition.enabled, "quality": self.quality.enabled,
            "lines": self.lines.enabled, "c4": self.c4.enabled, "fineweb": self.fineweb.enabled,
            "classifier": self.classifier.enabled, "perplexity": self.perplexity.enabled, "pii": self.pii.enabled,
        }  # fmt: skip
        order = (
            "read",
            "url",
            "rights",
            "first_look",
            "extract",
            "license",
            "language",
            "repetition",
            "quality",
            "lines",
            "c4",
            "fineweb",
            "classifier",
            "perplexity",
            "pii",
        )
        return tuple(name for name in order if asked.get(name, True))

    @model_validator(mode="after")
    def _model_for_ccnet(self) -> Self:
        if self.preset == "ccnet-like" and self.perplexity.model is None:
            raise ValueError("the preset `ccnet-like` needs `perplexity.model`; `herdbook corpus ngram` makes one")
        return self

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources have the name {twice[0]!r}")
        return self
