"""What `herdbook plan` can be asked: the keys of a training plan, of a serving plan, and how words become them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field

from herdbook.config import Config, ConfigError, Draft, apply_overrides, build
from herdbook.errors import UserError
from herdbook.plan.layouts import USABLE
from herdbook.units import Count, Seconds, Share

QueryT = TypeVar("QueryT", bound="Query")
# A name may look like a number to YAML (`like=4`), and a path is one already.
Name = Annotated[str, BeforeValidator(str)]


class Query(Config):
    """Keys that both kinds of plan share."""

    device: Name | None = Field(
        None, description="as `herdbook plan devices` lists them; here: this machine, measured; or a YAML file"
    )
    like: Name | None = Field(None, description="a model of the catalogue whose fields a shape of the dial takes over")
    context: Count | None = Field(None, gt=0, description="tokens a sequence; default: the model's")
    usable: Share = Field(USABLE, gt=0, le=1, description="share of a device's memory to plan with")


class TrainQuery(Query):
    """A plan of training: any of its quantities, from which the others follow."""

    params: Count | None = Field(None, gt=0, description="parameters, N")
    tokens: Count | None = Field(None, gt=0, description="tokens, D")
    flops: Count | None = Field(None, gt=0, description="FLOPs, C")
    gpu_hours: float | None = Field(None, gt=0, description="hours of one device")
    gpus: Count | None = Field(None, gt=0, description="devices")
    time: Seconds | None = Field(None, gt=0, description="wall time, as in 7d or 12h")
    budget: Count | None = Field(None, gt=0, description="money, US dollars")
    depth: Count | None = Field(None, gt=0, le=512, description="layers: the one dial that fills in a whole recipe")
    model: Name | None = Field(None, description="a model of the catalogue or a model folder")
    law: Literal["epoch", "approach1", "approach2", "approach3"] = Field(
        "epoch", description="which scaling law closes the plan"
    )
    multiple: float | None = Field(None, gt=0, description="tokens as a multiple of 20 a parameter, in place of a law")
    serve_tokens: Count | None = Field(None, gt=0, description="tokens to be served over the model's life")
    mfu: Share | None = Field(None, gt=0, le=1, description="share of the peak that training reaches, measured or stated")
    serve_mfu: Share | None = Field(None, gt=0, le=1, description="the same of serving; default: as in training")
    price: float | None = Field(None, gt=0, description="US dollars a device and hour")
    watts: float | None = Field(None, gt=0, description="power of a device")
    pue: float = Field(1.1, ge=1, description="power of the data centre for one watt of a device (LLaMA's assumption)")
    co2: float = Field(0.385, ge=0, description="kg of CO2 a kWh (LLaMA: the average of the United States)")
    precision: Literal["mixed", "zero", "fp32", "bf16"] = Field(
        "mixed", description="how weights, gradients and moments are kept"
    )
    micro_batch: Count = Field(1, gt=0, description="sequences a device computes at once")


class ServeQuery(Query):
    """A plan of serving: the largest model that fits a device and is fast enough."""

    speed: float | None = Field(None, gt=0, description="tokens/s that each sequence is to get at least")
    precision: Literal["fp32", "bf16", "fp16", "int8", "int4"] = Field("bf16", description="of the weights")
    sequences: Count = Field(1, gt=0, description="sequences written at once")
    bandwidth_share: Share = Field(
        1.0, gt=0, le=1, description="share of the memory's bandwidth that an engine reaches; 1: the bound"
    )


def read_words(kind: type[QueryT], words: Sequence[str]) -> QueryT:
    """The query that `key=value` words make; `gpu-hours` and `gpu_hours` are one key.

    Raises UserError with every word that is wrong, and the nearest keys.
    """
    draft = Draft(source="command line")
    apply_overrides(draft, [f"{key.replace('-', '_')}{rest}" for key, rest in _split(words)])
    try:
        return build(kind, draft)
    except ConfigError as error:
        listing = "\n".join(f"  {problem.key}: {problem.message}" for problem in error.problems)
        raise UserError(
            f"these words cannot be planned with:\n{listing}", todo="`herdbook plan --help` lists the keys"
        ) from error


def _split(words: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for word in words:
        key, equals, value = word.partition("=")
        pairs.append((key, equals + value))
    keys = [key.replace("-", "_") for key, _ in pairs]
    twice = [key for key in dict.fromkeys(keys) if keys.count(key) > 1]
    if twice:
        raise UserError(f"{twice[0]} is given twice", where="command line", todo="leave one of them out")
    return pairs
