"""Settings of the tokenizer and of the token shards. Imports nothing heavy, so that reading a recipe stays quick."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from herdbook.config import Config
from herdbook.units import Bytes, Count

# The ids of the special tokens are part of the format: shards, checkpoints and chat templates rely on them.
END_OF_TEXT, PAD, IM_START, IM_END = "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD, IM_START, IM_END)
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256

Weights = dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]


def _some(weights: Weights | None) -> Weights | None:
    if weights is not None and not weights:
        raise ValueError("names no source; leave the key out to take all of them")
    return weights


class TokenizerConfig(Config):
    """Train a byte-level BPE on a sample of the corpus, or take a tokenizer that exists."""

    kind: Literal["bpe"] = Field("bpe", description="byte-level BPE: any text can be encoded and comes back unchanged")
    vocab_size: Count = Field(
        4096, ge=SMALLEST_VOCABULARY, le=1_000_000, description="size of the vocabulary, special tokens included"
    )
    min_frequency: Count = Field(2, ge=1, description="a pair of tokens merged must occur this often in the sample")
    sample_bytes: Bytes = Field(64_000_000, gt=0, description="train on at most this much text, so that memory stays bounded")
    sources: Weights | None = Field(
        None, description="shares of the sample by source, as in tokens.sources; default: all, by size"
    )
    seed: int = Field(0, description="chooses the documents of the sample")
    path: Path | None = Field(None, description="take this tokenizer (a folder with tokenizer.json) instead of training one")
    license: str | None = Field(None, description="licence (SPDX) of the tokenizer at `path`, where its folder has no pedigree")

    _sources = field_validator("sources")(_some)

    @model_validator(mode="after")
    def _license_of_something(self) -> Self:
        if self.license is not None and self.path is None:
            raise ValueError("license is that of the tokenizer at path, and no path is given")
        return self


class TokensConfig(Config):
    """Which sources become tokens, in which shares they are trained on, and how they lie on disk."""

    sources: Weights | None = Field(
        None,
        description="share of each source in training, as `name: weight` (any scale); default: all sources, by their tokens",
    )
    dtype: Literal["auto", "uint16", "uint32"] = Field(
        "auto", description="integers on disk; auto: the smallest that holds the vocabulary"
    )
    shard_tokens: Count = Field(
        100_000_000, ge=1, description="a shard is closed at the end of the document that reaches this size"
    )

    _sources = field_validator("sources")(_some)

    @model_validator(mode="after")
    def _finite(self) -> Self:
        if self.sources is not None and not math.isfinite(sum(self.sources.values())):
            raise ValueError("the weights of sources are too large to add up")
        return self
