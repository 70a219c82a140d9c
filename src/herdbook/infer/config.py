"""How text is drawn from a model, and how the engine works. Imports no torch, so that the command line can read it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from herdbook.config import Config
from herdbook.units import Bytes, Count, Share

TokenId = Annotated[int, Field(ge=0)]
Bias = Annotated[float, Field(ge=-1e4, le=1e4)]  # any logit is far below; larger ones would not fit a sum in float32


class Sampling(Config):
    """What to draw from the model's distribution, and when to stop.

    Logits are changed by penalties, bias and constraint, divided by the temperature, and cut by `top_k`, `typical_p`, `top_p`
    and `min_p` in this order; with none of them the distribution is the model's own. The same seed gives the same text,
    whatever else is generated beside it.
    """

    max_tokens: Count = Field(default=64, ge=0, description="most tokens to generate")
    temperature: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="0: always the likeliest token; 1: as the model says"
    )
    top_k: Count = Field(default=0, ge=0, description="only the k likeliest tokens; 0: all")
    typical_p: float = Field(
        default=1.0, gt=0, le=1,
        description="only the tokens whose surprise is nearest to the expected one, up to this probability together",
    )  # fmt: skip
    top_p: float = Field(default=1.0, gt=0, le=1, description="only the likeliest tokens that together reach this probability")
    min_p: float = Field(default=0.0, ge=0, le=1, description="only tokens at least this share as likely as the likeliest")
    repetition_penalty: float = Field(
        default=1.0, gt=0, allow_inf_nan=False,
        description="logits of tokens in prompt and text are divided by this where positive, else multiplied",
    )  # fmt: skip
    presence_penalty: float = Field(
        default=0.0, allow_inf_nan=False, description="taken off the logit of each token that the text has already"
    )
    frequency_penalty: float = Field(
        default=0.0, allow_inf_nan=False, description="taken off a token's logit for each time the text has it"
    )
    logit_bias: dict[TokenId, Bias] = Field(default_factory=dict, description="added to the logits of these ids")
    seed: int = Field(default=0, ge=0, lt=2**63, description="of the draws; the n-th text of a prompt counts up from it")
    stop: tuple[str, ...] = Field(default=(), description="texts that end the generation and are left out of it")
    stop_ids: tuple[int, ...] = Field(default=(), description="tokens that end the generation and are left out of it")
    ignore_end: bool = Field(default=False, description="go on after the token that ends a text")
    n: Count = Field(default=1, ge=1, description="how many texts a prompt gets")
    best_of: Count | None = Field(
        default=None, ge=1, description="texts to draw, of which the n likeliest a token are kept; null: n"
    )
    beams: Count = Field(default=0, ge=0, description="beam search of this width, without draws; 0: none")
    length_penalty: float = Field(
        default=1.0, allow_inf_nan=False, description="beams are ranked by log-probability / length ^ this"
    )
    json_schema: dict[str, Any] | None = Field(default=None, description="the text is JSON of this schema; {}: any JSON")
    regex: str | None = Field(default=None, description="the text matches this expression as a whole")
    grammar: str | None = Field(default=None, description="the text is derived from this grammar, in Lark's notation")
    logprobs: bool = Field(
        default=False, description="also give the log-probability of each token drawn, before penalties, temperature and cuts"
    )
    top_logprobs: Count = Field(default=0, ge=0, description="and of this many likeliest tokens at each place")
    prompt_logprobs: bool = Field(default=False, description="and of the prompt's tokens")
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

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError(f"best_of {self.best_of} is less than n {self.n}: more texts are asked for than drawn")
        if self.beams and (self.beams < self.n or self.best_of is not None):
            raise ValueError("beams must be at least n, and take the place of best_of")
        if sum(value is not None for value in (self.json_schema, self.regex, self.grammar)) > 1:
            raise ValueError("json_schema, regex and grammar exclude each other")
        return self

    @property
    def constrained(self) -> bool:
        """Whether the text must have a form."""
        return self.json_schema is not None or self.regex is not None or self.grammar is not None


class EngineConfig(Config):
    """How the engine works; no text depends on it but for rounding, `kv: int8`, and `context`."""

    backend: Literal["auto", "torch", "native"] = Field(
        default="auto", description="what runs the decoder: torch, or the C++ kernels where they are to be had and serve it"
    )
    kv: Literal["auto", "int8"] = Field(default="auto", description="type of keys and values: the model's, or 8 bits")
    kv_memory: Bytes | None = Field(
        default=None, gt=0, description="memory for keys and values; null: 2 GiB, on a GPU 80% of what is free"
    )
    context: Count | None = Field(
        default=None, gt=0, description="most tokens of a sequence; null: the model's. More needs ALiBi or scaled RoPE"
    )
    rows: Count = Field(default=64, gt=0, description="most sequences that run at once")
    step_tokens: Count = Field(default=2048, gt=0, description="tokens of a step, of which prompts get what is left over")
    queue: Count = Field(default=1024, gt=0, description="most requests that wait; more are refused")
    prefix_cache: bool = Field(default=True, description="keep keys and values for requests that begin alike")
    speculate: Literal["none", "lookup", "draft"] = Field(
        default="none",
        description="guess tokens ahead, from what the text had already or by a small model, and check them at once",
    )
    draft_tokens: Count = Field(default=4, gt=0, description="most tokens guessed ahead")
    kept_share: Share = Field(
        default=0.01, ge=0, lt=1, description="share of the blocks that new requests leave to those that run"
    )
