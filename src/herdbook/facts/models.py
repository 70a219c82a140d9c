"""The catalogue of model shapes: who made them, on how much, under which licence, and the config that builds them here."""

from __future__ import annotations

import difflib
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


@dataclass(frozen=True)
class Preset:
    """A model of the catalogue.

    Attributes:
        name: as in `hb.load(name)`.
        family: key of the family, `llama2`; `title` is how people write it.
        config: the resolved shape.
        tiny: a sibling of ours with about a million parameters, for tests and studies.
        license_id: of the published weights; None where none were published, and for tiny siblings.
        terms: that licence in plain words.
        tokens: how many it was trained on, where that is known.
        published: the parameter count its authors give.
        training: optimiser, schedule, batch and data, as far as known.
        from_memory: names of figures that were not read again in the source.
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

    @property
    def license(self) -> License | None:
        """The licence of the published weights; None where there are none."""
        return None if self.license_id is None else find_license(self.license_id)

    def as_dict(self) -> dict[str, Any]:
        """The facts as plain JSON, with the counts that follow from the shape."""
        facts = {key: value for key, value in vars(self).items() if key not in ("config", "training", "license_id")}
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
    raw = yaml.safe_load(resources.files("herdbook.facts").joinpath("models.yaml").read_text(encoding="utf-8"))
    return {name: _preset(name, row, raw["families"][row["family"]]) for name, row in raw["models"].items()}


def _preset(name: str, row: dict[str, Any], family: dict[str, Any]) -> Preset:
    tiny = row.get("tiny", False)
    has_weights = not tiny and row.get("weights", True)
    tokens = None if tiny else row.get("tokens", family["tokens"])
    training = {} if tiny else {**family["training"], **row.get("training", {})}
    if "batch_tokens" in training:
        training["batch_tokens"] = parse_count(training["batch_tokens"])
    notes = ["A small sibling in the family's shape, made for tests and studies."] if tiny else []
    notes += [source["notes"] for source in (family, row) if "notes" in source and not tiny]
    return Preset(
        name=name, family=row["family"], title=family["title"], by="herdbook" if tiny else family["by"],
        released=str(family["released"]), source=family["source"],
        config=ModelConfig(**{**family["shape"], **row["shape"]}).resolved(), tiny=tiny,
        license_id=family["license"] if has_weights else None,
        terms="" if tiny else family["terms"] if has_weights else UNPUBLISHED,
        tokens=None if tokens is None else parse_count(tokens),
        published=parse_count(row["published"]) if "published" in row else None,
        training=training, notes=tuple(notes), from_memory=() if tiny else tuple(family["from_memory"]),
    )  # fmt: skip


def list_models() -> list[Preset]:
    """All models of the catalogue, by family and size."""
    return list(_catalogue().values())


def find_model(name: str) -> Preset:
    """The model of this name. Raises UserError, with the nearest names, when there is none."""
    catalogue = _catalogue()
    if name in catalogue:
        return catalogue[name]
    close = difflib.get_close_matches(name, catalogue, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise UserError(f"the catalogue has no model {name!r}", todo=f"{hint}`herdbook models` lists what there is")
