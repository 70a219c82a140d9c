"""The recipe that the dial fills in, as YAML with the formula beside every number."""

from __future__ import annotations

from typing import Any

import yaml

from herdbook.model.config import ModelConfig
from herdbook.plan.shapes import Settings, shape

# What stands here runs on any machine, so that the recipe can be tried before there is a corpus.
_CORPUS = """\
corpus:
  # Put your own text here: {name: pages, path: crawl/*.warc.gz, license: CC-BY-4.0}. These three come with the machine, and are
  # far too little for more than a try.
  sources:
    - {name: pydoc, builtin: pydoc}
    - {name: docstrings, builtin: docstrings}
    - {name: wikipedia, builtin: prose}
  languages: [en]
"""


def recipe_text(depth: int, model: ModelConfig, chosen: Settings, *, like: str | None, multiple: float) -> str:
    """A recipe of `depth` layers. `like` is the model of the catalogue that the rest of the shape is from."""
    told = f" like={like}" if like else ""
    aspect = (
        "width = depth · (4·depth within 64 and 128), in whole heads" if like is None else f"sizes by depth, the rest as {like}"
    )
    sequences = chosen.tokens_per_step // model.context
    return f"""\
# A whole recipe from one dial: herdbook plan --depth {depth}{told}
# `herdbook run THIS --dry-run` says what it would do.
name: depth-{depth}
description: {depth} layers of {model.d_model}, {model.parameters():,} parameters, {chosen.tokens:,} tokens.

{_CORPUS}
tokenizer: {{vocab_size: {model.vocabulary}}}{_vocabulary_note(like)}

# {aspect}
model: {_flow(_written(depth, model, like))}

train:
  tokens: {chosen.tokens}  # {chosen.tokens / model.parameters():.3g} a parameter: {multiple:.3g} × Chinchilla's 20
  # With C = {chosen.flops:.3g} FLOPs without the head (DeepSeek LLM, equation 1): batch 0.2920·C^0.3271, rate 0.3118·C^-0.1250
  tokens_per_step: {chosen.tokens_per_step}  # {sequences} sequences of {model.context}: a power of two
  lr: {chosen.lr:g}

eval: {{tasks: [bits_per_byte]}}
"""


def _vocabulary_note(like: str | None) -> str:
    return "" if like else "  # 32,768·(N/1e9)^(1/3) to a power of two, within 4,096 and 32,768"


def _written(depth: int, model: ModelConfig, like: str | None) -> dict[str, Any]:
    """The fields that differ from their defaults, so that the file says what was chosen and no more."""
    if like is None:
        assert model == shape(depth)
        return {"d_model": model.d_model, "n_layers": depth, "n_heads": model.n_heads, "context": model.context}
    return model.model_dump(mode="json", exclude_defaults=True, exclude_none=True)


def _flow(values: dict[str, Any]) -> str:
    return str(yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=10_000)).strip()
