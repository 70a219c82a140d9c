"""Buckets of perplexity under a language model of clean text, as in CCNet (Wenzek et al. 2020, arXiv 1911.00359, section 5.2).

Light on purpose: the recipe imports this file.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from herdbook.config import Config
from herdbook.units import Bytes

Bucket = Literal["head", "middle", "tail"]
BUCKETS: tuple[Bucket, ...] = ("head", "middle", "tail")
Perplexity = Annotated[float, Field(gt=1, allow_inf_nan=False)]


class PerplexityConfig(Config):
    """CCNet's buckets: head below the 30th percentile of perplexity, middle below the 60th, tail from there on."""

    model: str | None = Field(default=None, description="a folder of `herdbook corpus ngram`; null is off")
    keep: list[Bucket] = Field(default=list(BUCKETS), min_length=1, description="buckets that stay; all of them: only noted")
    head: Perplexity | None = Field(
        default=None, description="head is below this perplexity; null: the model's own 30th percentile"
    )
    middle: Perplexity | None = Field(default=None, description="middle is below this; null: the model's own 60th percentile")
    max_bytes: Annotated[Bytes, Field(ge=1024)] = Field(default=1 << 20, description="judge by so much of a text's beginning")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.head is not None and self.middle is not None and self.head > self.middle:
            raise ValueError("`head` is above `middle`")
        return self

    @property
    def enabled(self) -> bool:
        """Whether there is a model to judge by."""
        return self.model is not None
