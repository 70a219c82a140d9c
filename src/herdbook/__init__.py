"""Herdbook: raise an open base language model from raw web text, and keep its pedigree.

    import herdbook as hb
    lm = hb.load("runs/quickstart/sft")
    print(lm.generate("Once upon a time", max_tokens=64, temperature=0.8, seed=1))
    hb.run("recipe.yaml", overrides={"train.tokens": "2M"})

Importing this package is cheap: torch is loaded by the first call that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["LanguageModel", "UserError", "__version__", "load", "run"]

if TYPE_CHECKING:
    from herdbook.api import LanguageModel, load
    from herdbook.errors import UserError
    from herdbook.road import run


def __getattr__(name: str) -> Any:
    if name in ("LanguageModel", "load", "run"):
        from herdbook.threads import wait_politely

        wait_politely()
    if name in ("LanguageModel", "load"):
        from herdbook import api

        return getattr(api, name)
    if name == "run":
        from herdbook.road import run

        return run
    if name == "UserError":
        from herdbook.errors import UserError

        return UserError
    raise AttributeError(f"module 'herdbook' has no attribute {name!r}")
