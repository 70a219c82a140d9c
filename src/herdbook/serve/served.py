"""A model as a server knows it: its engine, its name, and what it may be used for."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from herdbook.errors import UserError
from herdbook.facts.licenses import UNKNOWN, License
from herdbook.infer.backend import BLOCK
from herdbook.infer.engine import Engine
from herdbook.serve.pieces import Pieces
from herdbook.tokenizer import Tokenizer


@dataclass
class Served:
    """A model that is served.

    Attributes:
        name: as requests call it.
        engine: what runs it.
        license: what its weights may be used for; None for random weights, which nobody licensed.
        source: where it came from.
    """

    name: str
    engine: Engine
    license: License | None = None
    source: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def tokenizer(self) -> Tokenizer:
        """Texts to ids and back. Raises UserError when the model has none: a server of text needs one."""
        if self.engine.tokenizer is None:
            raise UserError("this model has no tokenizer, so it cannot be served", where=self.name)
        return self.engine.tokenizer

    @property
    def template(self) -> str | None:
        """The chat template, where the model's folder has one."""
        return self.tokenizer.chat_template

    @cached_property
    def pieces(self) -> Pieces:
        """The bytes of each token."""
        return Pieces(self.tokenizer)

    @property
    def room(self) -> int:
        """Tokens that a prompt and its text may have together: what the model reads and the memory holds."""
        return min(self.engine.context + 1, (self.engine.stats().blocks - 1) * BLOCK)

    def terms(self) -> str:
        """What the model may be used for, in plain words."""
        if self.license is None:
            return "random weights, which nobody licensed"
        if self.license.id == UNKNOWN:
            return "licence unknown: nothing says what it may be used for, so take it that nothing is allowed"
        return self.license.in_words()

    def facts(self) -> dict[str, Any]:
        """The model as `/v1/models` lists it."""
        license_ = None if self.license is None else self.license.as_dict()
        return {
            "id": self.name, "object": "model", "created": self.created, "owned_by": "herdbook",
            "max_model_len": self.engine.context, "parameters": self.engine.model.cfg.parameters(),
            "chat": self.template is not None, "license": license_, "terms": self.terms(),
        }  # fmt: skip
