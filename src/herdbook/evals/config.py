"""Settings of the evaluation: which tasks, on how many held-out documents, and the prompts whose answers the report shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from herdbook.config import Config
from herdbook.units import Bytes, Count, Share

HELD_OUT = ("bits_per_byte", "docstring_choice", "continuation_choice")  # tasks that a corpus' held-out documents make


def _prompt(value: Any) -> Any:
    """A prompt may be written as plain text."""
    return {"text": value} if isinstance(value, str) else value


class PromptConfig(Config):
    """A prompt whose generation goes into the report, with how to sample it."""

    text: str = Field(description="what the model is given", min_length=1)
    mode: Literal["completion", "chat", "both"] = Field(
        "both",
        description="completion: for models without a chat template; chat: for models with one; both: for all, each in its way",
    )
    max_tokens: Count = Field(80, ge=1, description="at most so many tokens are generated")
    temperature: float = Field(0.8, ge=0, description="0 takes the likeliest token each time")
    top_k: int = Field(0, ge=0, description="sample from the k likeliest tokens only; 0: from all")
    top_p: float = Field(0.95, gt=0, le=1, description="sample from the likeliest tokens that hold this probability")
    min_p: float = Field(0.0, ge=0, le=1, description="leave out tokens less likely than this share of the likeliest")


def _default_prompts() -> list[PromptConfig]:
    texts = (
        ("The history of the city", "completion"),
        ("Return the sum of", "completion"),
        ("What does `json.dumps` do?", "chat"),
        ("What does `math.sqrt` do?", "chat"),
        ("What is the Moon?", "chat"),
    )
    return [PromptConfig.model_validate({"text": text, "mode": mode}) for text, mode in texts]


class EvalConfig(Config):
    """What to measure, and on how much."""

    tasks: list[str] = Field(
        list(HELD_OUT),
        description="bits_per_byte: prediction of held-out text; docstring_choice, continuation_choice: multiple choice made "
        "from held-out text; others: tasks on published sets, or paths of one's own (docs/evaluation.md)",
    )
    suite: str | None = Field(None, description="a suite of tasks on published sets, or the path of one's own")
    folder: Path | None = Field(None, description="where the files of published sets lie; nothing is fetched")
    shots: Count | None = Field(None, ge=0, description="examples before each question of a set; null: the task's own number")
    documents: Count = Field(96, ge=1, description="held-out documents a source for bits_per_byte")
    document_bytes: Bytes = Field(4000, ge=64, description="of each such document at most its first so many bytes are scored")
    overlap: Share = Field(
        0.5,
        ge=0,
        lt=1,
        description="text longer than the context is scored in windows that share this much with the one before",
    )
    limit: Count | None = Field(
        None,
        ge=1,
        description="questions a task, or part of one, at most; null: all of a set, 250 of those made from held-out text",
    )
    docstring_source: str = Field("docstrings", description="the source whose documents are a signature and its docstring")
    prose_source: str = Field("wikipedia", description="the source of prose for continuation_choice")
    prompts: list[Annotated[PromptConfig, BeforeValidator(_prompt)]] = Field(
        default_factory=_default_prompts, description="prompts whose generations the report shows; plain text will do"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of every draw: documents, distractors, resampling and sampled text")

    @field_validator("tasks")
    @classmethod
    def _no_task_twice(cls, tasks: list[str]) -> list[str]:
        if len(set(tasks)) != len(tasks):
            raise ValueError("a task is listed twice")
        return tasks
