"""What can be set about fine-tuning on conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from herdbook.config import Config
from herdbook.train.config import LoopConfig
from herdbook.units import Count, Share


class ChatData(Config):
    """One source of conversations: a file of the user's."""

    path: Path = Field(description="a .jsonl or .json file of conversations, or a folder of them")
    license: str | None = Field(None, description="SPDX id of the data's licence; left out, it counts as unknown")
    weight: Count = Field(1, ge=1, description="how many times an epoch goes over it")


class PairsConfig(Config):
    """Questions and answers made from the corpus itself."""

    enabled: bool = Field(True, description="whether to make pairs from the corpus' documents")
    sources: list[str] | None = Field(
        None, description="which sources of the corpus to use; default: all that have a known form"
    )
    max_pairs: Count = Field(20_000, ge=1, description="most pairs to make, spread evenly over the sources")
    max_answer: Count = Field(400, ge=20, description="longest answer, in characters")


class SftConfig(LoopConfig):
    """Settings of supervised fine-tuning."""

    lr: float = Field(3e-4, gt=0, description="peak learning rate; about a tenth of pre-training's")
    min_lr_ratio: Share = Field(0.1, ge=0, le=1, description="last learning rate as a share of the peak")
    warmup: Share = Field(0.03, ge=0, lt=1, description="linear warm-up, a share of the run")
    weight_decay: float = Field(0.1, ge=0, description="decoupled weight decay of matrices; norms and biases have none")
    chat: Literal["chatml", "llama2", "plain"] | None = Field(
        None, description="chat format to teach; default: the model's own if it has one, else chatml"
    )
    commercial: bool = Field(False, description="refuse a base model or data that may not be used commercially")
    system: str | None = Field(None, description="system message put before conversations that have none")
    data: list[ChatData] = Field(default_factory=list, description="conversations to learn from")
    pairs: PairsConfig = Field(default_factory=lambda: PairsConfig.model_validate({}), description="pairs made from the corpus")
    epochs: float = Field(2.0, gt=0, description="how many times to go over the data")
    tokens: Count | None = Field(None, ge=1, description="most tokens to train on, if epochs would take more")
    tokens_per_step: Count = Field(4096, ge=1, description="tokens between two updates, prompts and padding included")
    context: Count | None = Field(None, ge=8, description="tokens a packed row; default: what model and step can hold")
    heldout: Share = Field(0.02, ge=0, lt=0.5, description="share of the samples kept aside to look at while training")

    @model_validator(mode="before")
    @classmethod
    def _plain_paths(cls, values: Any) -> Any:
        """`data: file.jsonl` and `data: [a.jsonl, b.jsonl]` are short for lists of `{path: …}`."""
        if not isinstance(values, dict) or "data" not in values:
            return values
        data = values["data"]
        items = [data] if isinstance(data, str | Path) else data
        if isinstance(items, list):
            items = [{"path": item} if isinstance(item, str | Path) else item for item in items]
        return {**values, "data": items}

    def identity(self) -> dict[str, Any]:
        """What decides which model comes out; `commercial` only decides whether any may."""
        return {key: value for key, value in super().identity().items() if key != "commercial"}
