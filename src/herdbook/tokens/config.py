"""Settings of the tokenizer and of the token shards. Imports nothing heavy, so that reading a recipe stays quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from herdbook.config import Config
from herdbook.tokens.mixture import MixtureConfig
from herdbook.units import Bytes, Count, Share

# The ids of the special tokens are part of the format: shards, checkpoints and chat templates rely on them.
END_OF_TEXT, PAD, IM_START, IM_END = "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD, IM_START, IM_END)
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256
# In the SentencePiece-style kinds these follow: the token for what is unknown, which nothing is, and the bytes.
UNKNOWN = "<unk>"
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
COVERAGE = 0.99995  # LLaMA's

Weights = dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]


def _some(weights: Weights | None) -> Weights | None:
    if weights is not None and not weights:
        raise ValueError("names no source; leave the key out to take all of them")
    return weights


class TokenizerConfig(Config):
    """Train a tokenizer on a sample of the corpus, or take one that exists."""

    kind: Literal["bpe", "llama", "unigram"] = Field(
        "bpe",
        description="bpe: of bytes, as GPT-2; llama: SentencePiece's BPE as in LLaMA; unigram: SentencePiece's Unigram. In all "
        "of them digits stand alone and any text can be encoded",
    )
    vocab_size: Count = Field(
        4096, ge=SMALLEST_VOCABULARY, le=1_000_000, description="size of the vocabulary, special tokens included"
    )
    min_frequency: Count = Field(2, ge=1, description="what becomes a token must occur this often in the sample")
    character_coverage: Share | None = Field(
        None, gt=0, le=1, description="share of the sample's characters with a token of their own, the others become bytes; "
        f"kinds llama and unigram; default: {COVERAGE}",
    )  # fmt: skip
    prefix_space: bool | None = Field(
        None, description="put a space before every text, so that a word is the same token at its start; kinds llama and "
        "unigram; default: true",
    )  # fmt: skip
    normalization: Literal["identity", "nfkc"] = Field(
        "identity", description="nfkc: one of several ways to write the same (Unicode's form KC), which is all that comes back"
    )
    sample_bytes: Bytes = Field(64_000_000, gt=0, description="train on at most this much text, so that memory stays bounded")
    sources: Weights | None = Field(
        None, description="shares of the sample by source, as in tokens.sources; default: all, by size"
    )
    seed: int = Field(0, description="chooses the documents of the sample")
    path: Path | None = Field(None, description="take this tokenizer (a model's folder, or a file) instead of training one")
    license: str | None = Field(None, description="licence (SPDX) of the tokenizer at `path`, where its folder has no pedigree")
    compare: list[Path] = Field([], description="tokenizers (folders or files) to measure on the same text, for comparison")

    _sources = field_validator("sources")(_some)

    @model_validator(mode="after")
    def _license_of_something(self) -> Self:
        if self.license is not None and self.path is None:
            raise ValueError("license is that of the tokenizer at path, and no path is given")
        return self

    @model_validator(mode="after")
    def _fits_the_kind(self) -> Self:
        if self.kind == "bpe":
            for key in ("character_coverage", "prefix_space"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} belongs to the kinds llama and unigram: byte-level BPE starts from bytes")
        elif self.vocab_size < (smallest := SMALLEST_VOCABULARY + 2):
            raise ValueError(f"vocab_size has to be {smallest} at least: special tokens, bytes, the unknown, and the space")
        return self

    @property
    def coverage(self) -> float:
        """`character_coverage`, or its default."""
        return COVERAGE if self.character_coverage is None else self.character_coverage

    @property
    def prefixed(self) -> bool:
        """Whether every text gets a space before it."""
        return self.kind != "bpe" and self.prefix_space is not False


class TokensConfig(MixtureConfig):
    """Which sources become tokens and how they lie on disk; and the mixture they are trained on in, unless changed later."""

    dtype: Literal["auto", "uint16", "uint32"] = Field(
        "auto", description="integers on disk; auto: the smallest that holds the vocabulary"
    )
    shard_tokens: Count = Field(
        100_000_000, ge=1, description="a shard is closed at the end of the document that reaches this size"
    )

    def encoding(self) -> dict[str, Any]:
        """What decides the shards: a change of anything else leaves them as they are."""
        return {"dtype": self.dtype, "shard_tokens": self.shard_tokens, "sources": self.names}
