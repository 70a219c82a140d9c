"""How text is drawn from a model. Imports no torch, so that the command line can read it."""

from __future__ import annotations

from pydantic import Field, field_validator

from herdbook.config import Config
from herdbook.units import Count


class Sampling(Config):
    """What to draw from the model's distribution, and when to stop.

    The distribution is divided by the temperature, then cut by `top_k`, `top_p` and `min_p` in this order; with none of them
    it is the model's own. The same seed gives the same text, whatever else is generated beside it.
    """

    max_tokens: Count = Field(default=64, ge=0, description="most tokens to generate")
    temperature: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="0: always the likeliest token; 1: as the model says"
    )
    top_k: Count = Field(default=0, ge=0, description="only the k likeliest tokens; 0: all")
    top_p: float = Field(default=1.0, gt=0, le=1, description="only the likeliest tokens that together reach this probability")
    min_p: float = Field(default=0.0, ge=0, le=1, description="only tokens at least this share as likely as the likeliest")
    seed: int = Field(default=0, ge=0, lt=2**63, description="of the draws")
    stop: tuple[str, ...] = Field(default=(), description="texts that end the generation and are left out of it")
    ignore_end: bool = Field(default=False, description="go on after the token that ends a text")
    logprobs: bool = Field(
        default=False, description="also give the log-probability of each token drawn, before temperature and cuts"
    )
    truncate_prompt: bool = Field(
        default=False, description="cut the beginning off a prompt that leaves no room for max_tokens, instead of refusing it"
    )

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _no_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("an empty stop string would stop before the first character")
        return value
