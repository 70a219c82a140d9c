"""How Hugging Face's model classes name what our decoder has: names of config fields and of tensors, as data.

A family fits a config when its class computes the same; then `fields` translate one by one and `rows` say where each tensor
goes. Sources: the layouts of transformers 4.57 and 5.23, checked against its classes by the tests. PaLM is not here:
transformers has no class for it.
"""

from __future__ import annotations

from herdbook.interop.families.base import Family, RopeKeys, Row
from herdbook.interop.families.falcon import FALCON
from herdbook.interop.families.gpt import GPT2, GPTJ, NEOX
from herdbook.interop.families.llama import LLAMA, MISTRAL, QWEN3
from herdbook.interop.families.mpt import MPT
from herdbook.interop.families.opt_bloom import BLOOM, OPT
from herdbook.model.config import ModelConfig

__all__ = ["FAMILIES", "Family", "RopeKeys", "Row", "family_named", "family_of"]

FAMILIES = (LLAMA, MISTRAL, QWEN3, GPT2, OPT, BLOOM, MPT, NEOX, FALCON, GPTJ)


def family_of(cfg: ModelConfig) -> Family | None:
    """The first class of transformers that expresses this config, or None."""
    return next((family for family in FAMILIES if family.fits(cfg)), None)


def family_named(model_type: object) -> Family | None:
    """The family that a config's `model_type` names, by a name of today or of an earlier release; or None."""
    return next((family for family in FAMILIES if model_type in (family.model_type, *family.legacy)), None)
