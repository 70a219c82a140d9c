"""`config.json` in Hugging Face's words, both ways, written and read by hand.

Read strictly: a setting that changes the logits and that our decoder does not have is an error that names the key and its
value; keys that mean nothing to the logits pass. Written so that transformers 5 (`rope_parameters`) and 4 (`rope_theta`,
`rope_scaling`, `rotary_pct`) read it alike. A shape that none of its classes expresses gets our own type `herdbook`:
everything here reads it, transformers does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from herdbook.errors import UserError
from herdbook.files import read_json
from herdbook.interop.checks import first_problem
from herdbook.interop.families import FAMILIES, Family, RopeKeys, family_named, family_of
from herdbook.interop.families.base import MOST, Settings, shown, written_out
from herdbook.model.config import ModelConfig
from herdbook.tokenizer import Tokenizer

OWN_TYPE = "herdbook"
# Keys that some class of transformers knows and that change what a model computes → the values at which they do not.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "quantization_config": (None,), "is_encoder_decoder": (None, False), "add_cross_attention": (None, False),
    "logit_scale": (None, 1), "logits_scaling": (None, 1), "embedding_multiplier": (None, 1), "residual_multiplier": (None, 1),
    "attention_multiplier": (None,), "query_pre_attn_scalar": (None,), "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,), "use_qk_norm": (None, False), "qk_layernorm": (None, False),
    "num_local_experts": (None,), "num_experts": (None,), "no_rope_layers": (None,),
}  # fmt: skip
_ABSENT = object()


def read_config(path: Path) -> ModelConfig:
    """The config of a model folder. Raises UserError when there is none, or it says something our decoder cannot do."""
    return read_config_and_family(path)[0]


def read_config_and_family(path: Path) -> tuple[ModelConfig, Family | None]:
    """The config of a model folder and whose words it is in; None: our own type. Raises UserError as `read_config` does."""
    file = path / "config.json"
    todo = "name a model folder: one with config.json and model.safetensors"
    if not path.exists():
        raise UserError("there is no such model folder", where=path, todo=todo)
    raw = read_json(file, what="model config", todo=todo)
    if not isinstance(raw, dict):
        raise UserError("a model config is a JSON object", where=file)
    model_type = raw.get("model_type")
    family = family_named(model_type)
    if family is None and model_type != OWN_TYPE:
        known = ", ".join([*(name for family in FAMILIES for name in (family.model_type, *family.legacy)), OWN_TYPE])
        raise UserError(f"the model type {shown(model_type)} is not one we read", where=file, todo=f"known types: {known}")
    values, origin = (raw.get(OWN_TYPE), {}) if family is None else _from_theirs(raw, family, file)
    _require_plain_values(values, origin, file)
    try:
        cfg = ModelConfig.model_validate(values)
        if cfg.vocab_size is None:
            raise UserError("vocab_size is missing", where=file)
        if max(cfg.context, cfg.parameters()) > MOST:
            raise OverflowError
        return cfg.resolved(), family
    except ValidationError as error:
        raise UserError(first_problem(error, origin), where=file) from error
    except OverflowError as error:
        raise UserError("some number here is too large for any model", where=file) from error


def _require_plain_values(values: object, origin: dict[str, str], file: Path) -> None:
    """Raise UserError for a list, an object or a null where one value is needed."""
    for name, value in values.items() if isinstance(values, dict) else ():
        known = ModelConfig.model_fields.get(name)
        if isinstance(value, dict | list) or (value is None and known is not None and known.default is not None):
            raise UserError(f"{origin.get(name, name)} is {shown(value)}, and one plain value is needed", where=file)


# ---- theirs to ours ----


def _from_theirs(raw: dict[str, Any], family: Family, file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Our fields from their config, and which key each came from; raises UserError for a setting our decoder lacks."""
    settings = _settings(raw, family, file)
    for key, wanted in family.constants.items():
        if settings.get(key, wanted) != wanted:
            raise UserError(f"{key} is {shown(settings[key])}, and only {wanted!r} is supported", where=file)
    for key, harmless in {**NEUTRAL, **family.neutral}.items():
        if settings.get(key, harmless[0]) not in harmless:
            raise UserError(f"{key} is {shown(settings[key])}, which is not supported", where=file)
    ours: dict[str, Any] = {name: rule[0] for name, rule in family.fixed.items() if isinstance(rule, tuple) and len(rule) == 1}
    origin: dict[str, str] = {}
    for key in family.fields:
        for name in family.our_fields(key):
            if name not in origin:
                ours[name], origin[name] = _meaning(settings[key], key, family, file), key
    ours |= family.read(settings, file)
    if family.rope is not None and ours["positions"] == "rope":
        ours |= _rope_from_theirs(settings, family.rope, file)
    _require_one_attention(settings, ours, file)
    return ours, origin


def _settings(raw: dict[str, Any], family: Family, file: Path) -> Settings:
    """Their config with the class's defaults, other names of keys resolved and sections laid flat."""
    flat = dict(raw)
    keys = [*family.fields, *family.constants, *family.neutral, *family.defaults]
    for section in {key.partition(".")[0] for key in keys if "." in key}:
        inner = raw.get(section) or {}
        if not isinstance(inner, dict):
            raise UserError(f"{section} is not an object", where=file)
        flat |= {f"{section}.{key}": value for key, value in inner.items()}
    for alias, key in family.aliases.items():
        if flat.get(alias) is not None:
            flat[key] = flat[alias]
    return {**family.defaults, **family.legacy.get(str(raw.get("model_type")), {}), **flat}


def _meaning(value: Any, key: str, family: Family, file: Path) -> Any:
    if key not in family.values:
        return value
    ours = next((ours for theirs, ours in family.values[key].items() if theirs == value), _ABSENT)
    if ours is _ABSENT:
        known = ", ".join(str(theirs) for theirs in family.values[key])
        raise UserError(f"{key} {shown(value)} is not supported", where=file, todo=f"known: {known}")
    return ours


def _rope_from_theirs(settings: Settings, keys: RopeKeys, file: Path) -> dict[str, Any]:
    """Rotary positions from `rope_parameters` of transformers 5, or the keys of transformers 4, by the order 5 takes them."""
    rope = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise UserError("rope_parameters is not an object that holds for all layers", where=file)
    theta = rope.get("rope_theta", settings.get(keys.theta, 10_000.0))
    share = rope.get("partial_rotary_factor", settings.get(keys.fraction or "partial_rotary_factor", keys.default_fraction))
    if keys.fraction is None and share != 1:
        raise UserError("rotary positions on a part of the head are not supported in this kind of model", where=file)
    kind, factor = rope.get("rope_type", rope.get("type", "default")), rope.get("factor")
    if kind not in ("default", "linear"):
        todo = "only positions that are not scaled, or scaled linearly, are known"
        raise UserError(f"rotary positions of type {shown(kind)} are not supported", where=file, todo=todo)
    ours = {"rope_theta": theta, "rope_fraction": share}
    if kind == "default" or factor == 1:
        return ours
    if not isinstance(factor, int | float) or factor < 1:
        raise UserError(f"the factor of linear rotary positions is {shown(factor)}, and 1 or more is needed", where=file)
    return {**ours, "rope_scaling": "linear", "rope_factor": factor}


def _require_one_attention(settings: Settings, ours: Mapping[str, Any], file: Path) -> None:
    """Raise UserError for a window in a family that has no word for it, that leaves out any of the context, or by layers."""
    window = settings.get("sliding_window") if "window" not in ours and settings.get("use_sliding_window", True) else None
    context = ours.get("context")
    if window is not None and not (isinstance(window, int) and isinstance(context, int) and window >= context):
        todo = f"set sliding_window to null, and the context to at most {shown(window)}: up to there it is the same model"
        raise UserError(f"sliding_window is {shown(window)}, less than the context", where=file, todo=todo)
    kinds = settings.get("layer_types")
    if kinds is not None and not (isinstance(kinds, list) and all(kind == "full_attention" for kind in kinds)):
        raise UserError(f"layer_types is {shown(kinds)}, and only full_attention is supported", where=file)


# ---- ours to theirs ----


def config_json(
    cfg: ModelConfig, *, dtype: torch.dtype = torch.float32, tokenizer: Tokenizer | None = None, own: bool = False
) -> dict[str, Any]:
    """What `config.json` says of a decoder: in the words of transformers' class for it, or in ours (`own`, or it has none)."""
    family = None if own else family_of(cfg)
    if family is None:
        body: dict[str, Any] = {
            "model_type": OWN_TYPE,
            "architectures": ["HerdbookDecoder"],
            OWN_TYPE: cfg.model_dump(mode="json"),
        }
    else:
        body = {"model_type": family.model_type, "architectures": [family.architecture], **_to_theirs(cfg, family)}
    name = str(dtype).removeprefix("torch.")
    return {"use_cache": True, **body, "dtype": name, "torch_dtype": name, **token_ids(tokenizer)}


def _to_theirs(cfg: ModelConfig, family: Family) -> dict[str, Any]:
    shape, flat = written_out(cfg), dict(family.constants)
    for key in family.fields:
        value = shape[family.our_fields(key)[0]]
        if key in family.values:
            value = next(theirs for theirs, ours in family.values[key].items() if ours == value)
        flat[key] = value
    if family.rope is not None and cfg.positions == "rope":
        flat |= _rope_to_theirs(cfg, family.rope)
    theirs: dict[str, Any] = {}
    for key, value in {**flat, **family.write(cfg)}.items():
        section, _, name = key.rpartition(".")
        (theirs.setdefault(section, {}) if section else theirs)[name] = value
    return theirs


def _rope_to_theirs(cfg: ModelConfig, keys: RopeKeys) -> dict[str, Any]:
    """NTK-aware scaling is a larger base and nothing else, so it is written as that."""
    linear = cfg.rope_scaling == "linear"
    rope: dict[str, Any] = {"rope_theta": cfg.rotary_theta, "rope_type": "linear" if linear else "default"}
    flat: dict[str, Any] = {keys.theta: cfg.rotary_theta, "rope_scaling": None}
    if linear:
        rope["factor"] = cfg.rope_factor
        flat["rope_scaling"] = {"type": "linear", "factor": cfg.rope_factor}  # two keys: older versions refuse more
    if keys.fraction is not None:
        share = cfg.rope_fraction  # transformers cuts what is left over, so no share may be a hair too small
        exact = int(cfg.head_width * share) == cfg.rotary_width
        flat[keys.fraction] = rope["partial_rotary_factor"] = share if exact else math.nextafter(share, math.inf)
    return {**flat, "rope_parameters": rope}


def token_ids(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Special ids under their names; null where there is none, because transformers' classes have defaults of their own."""
    if tokenizer is None:
        return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
