"""How duplicates across a whole corpus, and copies of evaluation sets, are found; the defaults are the published values.

Exact substrings as in Lee et al. 2021 (arXiv 2107.06499), decontamination as in GPT-3 (arXiv 2005.14165, appendix C) and
LLaMA-2 (arXiv 2307.09288, appendix A.6). Light on purpose: recipes import this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from herdbook.config import Config
from herdbook.units import Bytes, Count, Share

AtLeastTwo = Annotated[Count, Field(ge=2)]
Positive = Annotated[Count, Field(ge=1)]
Natural = Annotated[Count, Field(ge=0)]
Fraction = Annotated[Share, Field(ge=0, le=1)]


class BucketsConfig(Config):
    """How much memory sorting may take; what does not fit goes through files."""

    memory: Annotated[Bytes, Field(ge=1 << 16)] = Field(default=128 << 20, description="bytes for sorting, a process")


class UrlDedupConfig(Config):
    """Documents whose address was kept before (RefinedWeb deduplicates a crawl in parts, and carries addresses along)."""

    enabled: bool = Field(default=False, description="whether to drop them, and to leave a list of the addresses kept")
    against: list[str] = Field(
        default_factory=list, description="corpora made before with this on, or their `urls.seen`; none: this corpus only"
    )


class SubstringConfig(Config):
    """Passages that stand elsewhere in the corpus (EXACTSUBSTR of Lee et al. 2021, with RefinedWeb's variants)."""

    enabled: bool = Field(default=False, description="whether to look for them")
    tokens: Annotated[Count, Field(ge=2, le=10_000)] = Field(default=50, description="the shortest passage, in tokens")
    variant: Literal["cut", "mask", "drop_partial", "drop_any"] = Field(
        default="cut", description="cut passages out, put a marker in their place, or drop documents that have them"
    )
    marker: str = Field(default="\ufffc", description="what stands in place of a masked passage")
    max_share: Fraction = Field(default=0.2, description="drop_partial: drop above this share of tokens in passages")
    snap: Literal["none", "word", "line"] = Field(
        default="none", description="shrink passages to whole words or lines, for tokens that end inside of them"
    )
    min_characters: Natural = Field(default=20, description="drop documents with less left (white space not counted)")


class ContaminationConfig(Config):
    """Overlap with evaluation sets.

    `gpt3`: n-grams of words, n the 5th percentile of an evaluation set's lengths within `min_ngram` to `max_ngram`.
    `llama2`: matches of more than `min_match` tokens that begin with `min_match` equal ones and differ in at most `skips`.
    """

    sets: list[str] = Field(
        default_factory=list, description="evaluation sets: jsonl or parquet files, or names (gsm8k) of sets in `folder`"
    )
    folder: Path | None = Field(default=None, description="where the files of sets by name lie, as from the hub or llm-foundry")
    method: Literal["gpt3", "llama2"] = Field(default="gpt3", description="what counts as a match")
    min_ngram: AtLeastTwo = Field(default=8, description="gpt3: the shortest n-gram, in words")
    max_ngram: AtLeastTwo = Field(default=13, description="gpt3: the longest n-gram, in words")
    min_match: AtLeastTwo = Field(default=10, description="llama2: a match has more tokens than this")
    skips: Natural = Field(default=4, description="llama2: tokens within a match that may differ")
    max_documents: Positive | None = Field(
        default=10, description="gpt3: ignore n-grams found in more documents, they are common phrases; null keeps all"
    )
    action: Literal["cut", "drop"] = Field(default="cut", description="cut around matches, or drop the document")
    window: Natural = Field(default=200, description="characters to cut on each side of a match")
    min_piece: Natural = Field(default=200, description="characters; shorter pieces between cuts are dropped")
    max_pieces: Positive = Field(default=10, description="drop documents that fall into more pieces")
    min_share: Fraction = Field(default=0.0, description="leave documents alone with at most this share of words in matches")
    dirty_share: Fraction = Field(default=0.8, description="llama2: items with this share of tokens in matches are `dirty`")
    clean_share: Fraction = Field(default=0.2, description="llama2: items with a smaller share are `clean`")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_ngram > self.max_ngram:
            raise ValueError("`min_ngram` is above `max_ngram`")
        if self.clean_share > self.dirty_share:
            raise ValueError("`clean_share` is above `dirty_share`")
        return self
