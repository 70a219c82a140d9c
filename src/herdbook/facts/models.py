"""The catalogue of models: who made them, on how much, under which licence, and the config that builds them here.

`families/` holds one YAML file a family, read in the order of their release. A family says what its sizes share, and a size
what is its own, in the same words:

- `title`, `by`, `released`, `source`: where the figures stand; `hub`: the repository of the weights on the Hugging Face hub.
- `license`: of the published weights, an id of licenses.yaml, null where none were published; `weights: false`: this size was
  not. `terms` answers in plain words whether one may earn money with it, and on which conditions.
- `shape`: fields of ModelConfig. `tokens`: how many it was trained on. `published`: the parameter count its authors give,
  often rounded. `training`: how, under the names of TRAINING below. `notes`: what to know, above all wrong numbers about.
- `from_memory`: names of figures that were written down from memory and not read again in the source; a family's and a
  size's add up.
- `tiny: true`: a sibling of ours with about a million parameters. It has the family's shape and none of its history.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import yaml

from herdbook.errors import UserError
from herdbook.facts.licenses import License, find_license
from herdbook.model.config import ModelConfig
from herdbook.units import parse_count

UNPUBLISHED = "The weights were never published; the shape is free to train."
SIBLING = "A small sibling in the family's shape, made for tests and studies."
# How a model was trained, as far as it is known: the name of a figure → what it is.
TRAINING = {
    "data": "text", "optimizer": "optimiser", "schedule": "schedule", "peak_lr": "peak learning rate",
    "batch_tokens": "tokens a batch", "precision": "precision", "hardware": "hardware", "gpu_hours": "GPU hours",
    "energy_mwh": "energy, MWh", "co2_t": "CO2, tonnes", "cost_usd": "cost, US dollars",
}  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """A model of the catalogue.

    Attributes:
        name: as in `hb.load(name)`.
        family: key of the family, `llama2`; `title` is how people write it.
        config: the resolved shape; `shape` is what of it does not follow from the rest, without the vocabulary.
        tiny: a sibling of ours with about a million parameters, for tests and studies.
        license_id: of the published weights; None where none were published, and for tiny siblings.
        terms: that licence in plain words.
        tokens: how many it was trained on, where that is known.
        published: the parameter count its authors give.
        training: what is known of how it was trained, under the names of TRAINING.
        from_memory: names of figures that were not read again in the source.
        hub: the repository of the weights on the Hugging Face hub.
        variants: a word in a variant's name → the licence of such variants.
    """

    name: str
    family: str
    title: str
    by: str
    released: str
    source: str
    config: ModelConfig
    tiny: bool
    license_id: str | None
    terms: str
    tokens: int | None
    published: int | None
    training: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    from_memory: tuple[str, ...] = ()
    hub: str | None = None
    shape: Mapping[str, Any] = field(default_factory=dict)
    variants: Mapping[str, str] = field(default_factory=dict)

    @property
    def license(self) -> License | None:
        """The licence of the published weights; None where there are none."""
        return None if self.license_id is None else find_license(self.license_id)

    def as_dict(self) -> dict[str, Any]:
        """The facts as plain JSON, with the counts that follow from the shape."""
        apart = ("config", "shape", "variants", "training", "license_id")
        facts = {key: value for key, value in vars(self).items() if key not in apart}
        return {
            **facts,
            "license": None if self.license is None else self.license.as_dict(),
            "parameters": self.config.parameters(),
            "parameters_non_embedding": self.config.parameters_non_embedding(),
            "flops_per_token": self.config.flops_per_token(),
            "kv_bytes_per_token": self.config.kv_bytes_per_token(),
            "training": dict(self.training),
            "config": self.config.model_dump(mode="json"),
        }


@cache
def _catalogue() -> dict[str, Preset]:
    files = resources.files("herdbook.facts").joinpath("families").iterdir()
    families = {file.name.removesuffix(".yaml"): yaml.safe_load(file.read_text(encoding="utf-8")) for file in files}
    by_age = sorted(families.items(), key=lambda item: str(item[1]["released"]))
    return {name: _preset(name, key, row, family) for key, family in by_age for name, row in family["sizes"].items()}


def _preset(name: str, key: str, row: dict[str, Any], family: dict[str, Any]) -> Preset:
    config = ModelConfig(**{**family["shape"], **row["shape"]}).resolved()
    shape = {field: value for field, value in {**family["shape"], **row["shape"]}.items() if field != "vocab_size"}
    if row.get("tiny"):
        return Preset(
            name=name, family=key, title=family["title"], by="herdbook", released=str(family["released"]),
            source=family["source"], config=config, tiny=True, license_id=None, terms="", tokens=None, published=None,
            notes=(SIBLING,), shape=shape,
        )  # fmt: skip
    own = {**family, **row}
    weights = row.get("weights", True)
    training = {
        figure: value for figure, value in {**family["training"], **row.get("training", {})}.items() if value is not None
    }
    if "batch_tokens" in training:
        training["batch_tokens"] = parse_count(training["batch_tokens"])
    return Preset(
        name=name, family=key, title=family["title"], by=family["by"], released=str(own["released"]), source=own["source"],
        config=config, tiny=False, license_id=own["license"] if weights else None,
        terms=own["terms"] if weights else UNPUBLISHED, tokens=None if own["tokens"] is None else parse_count(own["tokens"]),
        published=parse_count(row["published"]), training=training, notes=(*_notes(family), *_notes(row)),
        from_memory=(*family.get("from_memory", []), *row.get("from_memory", [])), hub=row.get("hub"), shape=shape,
        variants=own.get("variants", {}),
    )  # fmt: skip


def _notes(part: dict[str, Any]) -> list[str]:
    notes = part.get("notes", [])
    return [notes] if isinstance(notes, str) else notes


def list_models() -> list[Preset]:
    """All models of the catalogue: the families by age, within them tiny siblings first and then by size."""
    return list(_catalogue().values())


def list_families() -> list[str]:
    """The keys of the families, by age."""
    return list(dict.fromkeys(preset.family for preset in list_models()))


def find_model(name: str) -> Preset:
    """The model of this name, or in this repository of the hub. Raises UserError, with near names, when there is none."""
    catalogue = _catalogue()
    if name in catalogue:
        return catalogue[name]
    for preset in catalogue.values():
        if preset.hub and preset.hub.lower() == name.lower():
            return preset
    close = difflib.get_close_matches(name.lower(), catalogue, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise UserError(f"the catalogue has no model {name!r}", todo=f"{hint}`herdbook models` lists what there is")


def find_published(repository: str) -> Preset | None:
    """The model that a repository of the hub holds a copy or a variant of, judging by its name; None if the catalogue has none.

    `meta-llama/Llama-2-7b-chat-hf`, `someone/llama-2-7b-4bit-gguf` and the address of either are all made from LLaMA-2 7B.
    """
    wanted = _bare(repository)
    found = [
        (len(name), preset) for preset in list_models() if not preset.tiny for name in _names(preset) if wanted.startswith(name)
    ]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def published_license(repository: str) -> License | None:
    """The licence of a published model or of a variant of it that has terms of its own (`mpt-7b-chat`); None if unknown."""
    preset = find_published(repository)
    if preset is None:
        return None
    own = (license_id for word, license_id in preset.variants.items() if word in _bare(repository))
    return find_license(next(own, preset.license_id)) if preset.license_id else None


def _names(preset: Preset) -> set[str]:
    return {_bare(name) for name in (preset.name, preset.hub or preset.name)}


def _bare(name: str) -> str:
    """A name without address, owner, revision and punctuation: `meta-llama/Llama-2-7b-hf@main` → `llama27bhf`."""
    path = name.split("://", 1)[-1].split("/tree/")[0].split("/blob/")[0].split("@")[0]
    return re.sub(r"[^a-z0-9.]", "", path.rstrip("/").rpartition("/")[2].lower().removesuffix("-hf"))
