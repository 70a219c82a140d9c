"""What a model on disk may be used for: from its pedigree, its card, or its GGUF header, and from the model it was made of.

A fine-tuned model can carry any licence on its card and still be bound by that of its base. So a card that names its
`base_model`, where the catalogue knows that model, is read as the strictest of both.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from herdbook import pedigree
from herdbook.errors import UserError
from herdbook.facts.licenses import UNKNOWN, License, find_expression, find_license, strictest
from herdbook.facts.models import published_license
from herdbook.files import read_json

CARD_LIMIT = 1_000_000  # characters of a card that are looked at


def license_of(path: Path) -> License:
    """The licence of a model: the strictest of what its pedigree, its card or its GGUF header state, and of what it names as
    its origin; unknown where nothing is stated."""
    return with_ancestors(stated_license(path) or find_license(None), named_bases(path))


def stated_license(path: Path) -> License | None:
    """The strictest licence that a model states itself: a folder in its pedigree and on its card, a GGUF file in its header."""
    if not path.is_dir():
        return _named_if_any(_gguf_header(path).get("general.license"))
    front = card_front_matter(path)
    card = _named_if_any(front.get("license_name") if front.get("license") == "other" else front.get("license"))
    made = find_expression(pedigree.read(path)["license"]["id"]) if pedigree.exists(path) else None
    stated = [license_ for license_ in (made, card) if license_ is not None and license_.id != UNKNOWN]
    return strictest(stated) if stated else None


def _named_if_any(name: Any) -> License | None:
    license_ = named(name) if isinstance(name, str) else None
    return None if license_ is None or license_.id == UNKNOWN else license_


def named_bases(path: Path) -> list[str]:
    """The models that a folder's card (`base_model`) and config (`_name_or_path`), or a GGUF file's header, name as origin."""
    if path.is_dir():
        listed = card_front_matter(path).get("base_model")
        config = read_json(path / "config.json", what="model config") if (path / "config.json").is_file() else {}
        names = [*(listed if isinstance(listed, list) else [listed])]
        names += [config.get("_name_or_path")] if isinstance(config, dict) else []
    else:
        header = _gguf_header(path)
        count = header.get("general.base_model.count", 0)
        keys = range(min(count, 16) if isinstance(count, int) else 0)
        urls = [header.get(f"general.base_model.{n}.repo_url") for n in keys]
        names = ["/".join(url.rstrip("/").split("/")[-2:]) for url in urls if isinstance(url, str)]
    return [name for name in names if isinstance(name, str) and name]


def with_ancestors(license_: License, bases: Iterable[str]) -> License:
    """The strictest of a licence and those of the models of the catalogue that `bases` name as hubs do (`owner/model`)."""
    found = [known for base in bases if (known := published_license(base)) is not None]
    return strictest([license_, *found]) if found else license_


def named(name: str | None) -> License:
    """The licence of this name; one we do not know is treated as strictly as silence, under its own name."""
    try:
        return find_expression(name and name.replace("-and-", " AND "))  # as the hub writes several on a card
    except UserError:
        plain = "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in str(name)[:100])
        return find_license(f"LicenseRef-{plain.removeprefix('LicenseRef-')}")


def require_commercial(license_: License, where: Path | str, todo: str | None = None) -> None:
    """Raises UserError when the licence forbids commercial use, or nobody has said that it allows it."""
    if not license_.commercial:
        raise UserError(
            f"--commercial: {license_.in_words()}", where=where,
            todo=todo or "use a model that may be used commercially: `herdbook models --commercial` lists them",
        )  # fmt: skip


def card_front_matter(folder: Path) -> dict[str, Any]:
    """The YAML between the `---` lines at the top of a folder's README.md; empty where there is none, or it is broken."""
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as card:
            text = card.read(CARD_LIMIT)
    except OSError:
        return {}
    parts = text.split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        front = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return front if isinstance(front, dict) else {}


def _gguf_header(path: Path) -> dict[str, Any]:
    """The keys of a GGUF file; none for another kind of file, which has no place for a licence."""
    from herdbook.interop.gguf.container import open_gguf

    return open_gguf(path).metadata if path.suffix == ".gguf" and path.is_file() else {}
