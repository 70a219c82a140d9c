"""Learned models in the corpus: a fastText classifier that judges documents, and how one is trained from a user's own sets.

DCLM (Li et al. 2024, arXiv 2406.11794, section 4.4) keeps the top tenth of its pool by a classifier that tells instructions
and well-liked answers from web pages; LLaMA (Touvron et al. 2023, arXiv 2302.13971, section 2.1) keeps pages that look like
those that Wikipedia refers to. Light on purpose: the recipe imports this file.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from herdbook.config import Config
from herdbook.units import Bytes, Count, Share

Fraction = Annotated[Share, Field(ge=0, le=1)]
Positive = Annotated[Count, Field(ge=1)]
TextBytes = Annotated[Bytes, Field(ge=256)]

# The names that DCLM's model has, so that what runs theirs runs ours.
POSITIVE, NEGATIVE = "__label__hq", "__label__cc"


class ClassifierConfig(Config):
    """A fastText model that judges each document; off without `model`.

    DCLM's is used with `threshold: 0.018112`, which kept the top tenth of its own pool and says little about another one.
    """

    model: str | None = Field(
        default=None, description="a fastText model (.bin, not quantised), or a trained classifier's folder"
    )
    label: str = Field(default=POSITIVE, description="the label whose probability is the document's score")
    threshold: Fraction | None = Field(
        default=None, description="documents that score less go; null takes what the model's card says"
    )
    below: Literal["drop"] = Field(default="drop", description="what becomes of documents that score less")
    max_bytes: TextBytes = Field(default=65_536, description="judge by so many bytes from the text's beginning")

    @property
    def enabled(self) -> bool:
        """Whether documents are judged."""
        return self.model is not None


class TrainerConfig(Config):
    """How a classifier is trained; the defaults are fastText's where they are not explained."""

    documents: Positive = Field(default=200_000, description="documents of each side at most, chosen by a hash (DCLM: 200k)")
    heldout: Annotated[Share, Field(gt=0, lt=0.9)] = Field(default=0.1, description="share that measures and does not train")
    keep: Annotated[Share, Field(gt=0, lt=1)] = Field(
        default=0.1, description="share that the suggested threshold keeps (DCLM: 0.1)"
    )
    word_ngrams: Annotated[Count, Field(ge=1, le=5)] = Field(default=2, description="n-grams of words up to this length")
    dim: Annotated[Count, Field(ge=1, le=1000)] = Field(
        default=16,
        description="of the vectors; two labels gain nothing from fastText's 100, which cost time and six times the file",
    )
    min_count: Positive = Field(default=1, description="words that are rarer have no vector of their own")
    max_words: Positive = Field(default=1_000_000, description="the most frequent words that have one")
    buckets: Positive | None = Field(
        default=None, description="rows that n-grams share; null: two for each n-gram of the texts, 2 million at most"
    )
    epochs: Positive = Field(default=5, description="times that every document is seen")
    lr: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] = Field(
        default=0.1, description="learning rate at the start; falls to zero linearly"
    )
    max_bytes: TextBytes = Field(
        default=65_536, description="of a text so many bytes from its beginning are read, here and in use"
    )
    text_key: str = Field(default="text", description="jsonl and parquet: the field that holds the text")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=0, description="of the choice, the split, the start and the order"
    )
