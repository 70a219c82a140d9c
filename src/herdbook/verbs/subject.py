"""What a person names to have it looked at: a model of the catalogue, or a model folder on disk with what it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herdbook import pedigree
from herdbook.errors import UserError
from herdbook.facts.licenses import License, strictest
from herdbook.facts.models import Preset, find_model, find_published, published_license
from herdbook.model.config import ModelConfig


@dataclass(frozen=True)
class Ancestor:
    """Something a model was made from: a station of ours, a model folder, or a published model.

    Attributes:
        preset: the model of the catalogue it is, or is a variant of; None where it is none.
    """

    name: str
    license: License | None
    preset: Preset | None = None

    def as_dict(self) -> dict[str, Any]:
        """The ancestor as plain JSON."""
        license_ = None if self.license is None else self.license.as_dict()
        return {"name": self.name, "license": license_, "preset": self.preset.name if self.preset else None}


@dataclass(frozen=True)
class Subject:
    """A model that is looked at.

    Attributes:
        preset: the model of the catalogue; None for a folder.
        license: of the weights, the strictest of the folder's own and its ancestors'; None where there are no weights.
        stated: the licence the folder itself states.
        counts: what the folder's pedigree counted: tokens, steps, loss.
    """

    name: str
    config: ModelConfig
    license: License | None
    preset: Preset | None = None
    folder: Path | None = None
    stated: License | None = None
    ancestors: tuple[Ancestor, ...] = ()
    counts: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int | None:
        """How many tokens it was trained on, where that is known."""
        return self.preset.tokens if self.preset else self.counts.get("tokens")

    def commercial(self) -> bool | None:
        """Whether its weights may be used to earn money; None where nobody published any."""
        return None if self.license is None else self.license.commercial


def find_subject(name: str) -> Subject:
    """The model that `name` means: on disk (or in a run's folder) where there is one, else of the catalogue.

    Raises UserError when it is neither, and when what is on disk is broken or of a kind we do not read.
    """
    if Path(name).exists():
        return _on_disk(name)
    try:
        preset = find_model(name)
    except UserError as error:
        if "/" not in name:
            raise
        raise UserError("there is no such model folder", where=name, todo="check the path, or see `herdbook models`") from error
    return Subject(name=preset.name, config=preset.config, license=preset.license, preset=preset)


def _on_disk(name: str) -> Subject:
    from herdbook.interop.doors import read_shape
    from herdbook.interop.licenses import license_of
    from herdbook.verbs.talk import find_model as model_folder

    folder = Path(model_folder(name))
    config, stated = read_shape(folder), license_of(folder)
    ancestors = tuple({ancestor.name: ancestor for ancestor in _ancestors(folder)}.values())
    binding = strictest([stated, *(ancestor.license for ancestor in ancestors if ancestor.license)])
    counts = pedigree.read(folder)["counts"] if pedigree.exists(folder) else {}
    return Subject(
        name=name, config=config, license=binding, folder=folder, stated=stated, ancestors=ancestors, counts=counts
    )  # fmt: skip


def _ancestors(folder: Path) -> Iterator[Ancestor]:
    """What a model folder was made from, nearest first: by its pedigree, and by what its card and config name."""
    if pedigree.exists(folder):
        yield from _by_pedigree(pedigree.tree(folder))
    yield from _by_name(folder)


def _by_pedigree(node: pedigree.Node) -> Iterator[Ancestor]:
    for child in node.children:
        if child.manifest is not None:
            yield Ancestor(f"{child.title} in {_shown(child.path)}", License(**child.manifest["license"]))
            yield from _by_pedigree(child)
        elif child.path is not None and (child.path / "config.json").is_file():
            yield from _of_base(child.path)


def _of_base(folder: Path) -> Iterator[Ancestor]:
    """A model folder that no station of ours wrote, and what it names in its turn."""
    from herdbook.interop.licenses import license_of

    yield Ancestor(_shown(folder), license_of(folder))
    yield from _by_name(folder)


def _shown(path: Path | None) -> str:
    """A path as a person types it: from here where it lies below."""
    assert path is not None
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _by_name(path: Path) -> Iterator[Ancestor]:
    """The published models that a model says it was made from."""
    from herdbook.interop.licenses import named_bases

    for name in named_bases(path):
        preset = find_published(name)
        if preset is not None:
            yield Ancestor(name, published_license(name), preset)
