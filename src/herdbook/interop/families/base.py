"""The words of a key map: where each tensor goes, and what each key of a config means.

A family is data about one of transformers' model classes. What it does not mention our decoder must leave at its plainest,
so a new field of `ModelConfig` is refused by every family until one names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herdbook.errors import UserError
from herdbook.model.config import ModelConfig

Settings = Mapping[str, Any]  # a config of theirs, flat: keys of a section are "section.key"
Rule = tuple[Any, ...] | Callable[[ModelConfig], bool]  # the values of a field that a class can express

MOST = 10**18  # of parameters, positions or anything: beyond is no model, and soon beyond what a tensor's size can say
ACTIVATIONS = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu": "gelu", "gelu_python": "gelu", "relu": "relu",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Where a tensor goes: `theirs` holds `ours`, stacked in this order along the outputs; `{n}` is the layer.

    Attributes:
        theirs: the name in a checkpoint.
        ours: the names in our decoder.
        transposed: theirs is stored (in, out), as GPT-2's Conv1D does, and ours (out, in).
        grouped: stacked anew for each key/value head, [its queries, its key, its value], instead of once for all of them.
        blocks: the kinds of block that have this tensor; none: all.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    grouped: bool = False
    blocks: tuple[str, ...] = ()


@dataclass(frozen=True)
class RopeKeys:
    """How a family calls the base of the wavelengths, and the turned share of a head where it can be chosen."""

    theta: str = "rope_theta"
    fraction: str | None = None
    default_fraction: float = 1.0


def _nothing_read(settings: Settings, where: Path) -> dict[str, Any]:
    return {}


def _nothing_written(cfg: ModelConfig) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Family:
    """One of transformers' model classes.

    Attributes:
        model_type: what `config.json` calls it.
        architecture: the class.
        fields: their config key → our field, or fields that share one value. Several keys may mean the same field: all are
            written, the first is read.
        defaults: what their class assumes when a key is absent.
        fixed: our field → the values their class can express, or a rule about the config. One value alone is what we read.
        rows: where each tensor goes.
        values: their key → {their value: ours}, where values are named differently; the first of equals is written.
        constants: their key → what it must be when it is present, and what we write.
        neutral: their key → the values at which it does nothing; any other is refused.
        aliases: another name of a key → the key; where both are given the other name counts, as it does in transformers.
        legacy: an older model type → what its class assumed when a key is absent.
        rope: how the keys of rotary positions are called; None: the class has no such keys.
        read: our fields from several of their keys at once; raises UserError for what our decoder does not have.
        write: their keys from several of our fields at once.
        derived: the fields that `read` finds.
        ignored: endings of tensor names that hold no weights (buffers of old versions).
        prefixes: what some checkpoints leave out in front of tensor names.
        caveats: when transformers itself computes something else than the model's authors, and what to say then.
    """

    model_type: str
    architecture: str
    fields: Mapping[str, str | tuple[str, ...]]
    fixed: Mapping[str, Rule]
    rows: tuple[Row, ...]
    defaults: Settings = field(default_factory=dict)
    values: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)
    constants: Settings = field(default_factory=dict)
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    legacy: Mapping[str, Settings] = field(default_factory=dict)
    rope: RopeKeys | None = None
    read: Callable[[Settings, Path], dict[str, Any]] = _nothing_read
    write: Callable[[ModelConfig], dict[str, Any]] = _nothing_written
    derived: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    caveats: tuple[tuple[Callable[[ModelConfig], bool], str], ...] = ()

    @property
    def head(self) -> str:
        """Their name of the matrix that gives the logits."""
        return next(row.theirs for row in self.rows if row.ours == ("unembed.weight",))

    def our_fields(self, key: str) -> tuple[str, ...]:
        """The fields of ours that one of their keys sets."""
        names = self.fields[key]
        return (names,) if isinstance(names, str) else names

    def fits(self, cfg: ModelConfig) -> bool:
        """Whether their class computes what a decoder of this config does."""
        shape = written_out(cfg)
        known = {name: key for key in self.fields for name in self.our_fields(key)}
        free = {*self.derived, "bias"}  # `bias` says nothing that attn_bias and ff_bias do not
        if self.rope is not None and cfg.positions == "rope":
            free |= {"rope_theta", "rope_scaling", "rope_factor"} | ({"rope_fraction"} if self.rope.fraction else set())
        for name, value in shape.items():
            rule = self.fixed.get(name)
            if rule is not None:
                if not (rule(cfg) if callable(rule) else value in rule):
                    return False
            elif name in known:
                meanings = self.values.get(known[name])
                if meanings is not None and value not in meanings.values():
                    return False
            elif name not in free and value != _plainest(name, cfg):
                return False
        return all(len({shape[name] for name in self.our_fields(key)}) == 1 for key in self.fields)


def written_out(cfg: ModelConfig) -> dict[str, Any]:
    """Every field of a config with its nulls replaced by what follows from the others; only the vocabulary may stay null."""
    return {
        **{name: getattr(cfg, name) for name in type(cfg).model_fields},
        "n_kv_heads": cfg.kv_heads, "head_dim": cfg.head_width, "d_ff": cfg.ff_width, "embed_dim": cfg.embed_width,
        "attn_bias": cfg.has_attn_bias, "ff_bias": cfg.has_ff_bias, "norm_bias": cfg.has_norm_bias,
    }  # fmt: skip


def _plainest(name: str, cfg: ModelConfig) -> Any:
    """What a field must be where a family does not mention it."""
    plain = {
        "n_kv_heads": cfg.n_heads,
        "head_dim": cfg.d_model / cfg.n_heads,
        "d_ff": 4 * cfg.d_model,
        "embed_dim": cfg.d_model,
    }
    return plain.get(name, type(cfg).model_fields[name].default)


def pair(
    theirs: str, *ours: str, transposed: bool = False, grouped: bool = False, blocks: tuple[str, ...] = ()
) -> tuple[Row, Row]:
    """The rows of a weight and its bias; names of ours in a layer go without `blocks.{n}.`. Only the weight is transposed."""
    layer = "blocks.{n}." if "{n}" in theirs else ""
    weight, bias = (tuple(f"{layer}{name}.{part}" for name in ours) for part in ("weight", "bias"))
    return (
        Row(f"{theirs}.weight", weight, transposed, grouped, blocks),
        Row(f"{theirs}.bias", bias, grouped=grouped, blocks=blocks),
    )


def whole_number(settings: Settings, key: str, where: Path) -> int:
    """A setting that must be a whole number above zero. Raises UserError that names it when it is not."""
    value = settings.get(key)
    if not isinstance(value, int) or not 0 < value <= MOST:
        raise UserError(f"{key} is {shown(value)}, and a whole number above 0 is needed", where=where)
    return value


def shown(value: Any) -> str:
    """A value from a file as an error quotes it: never longer than a line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def divides(cfg: ModelConfig) -> bool:
    """Whether the width is a multiple of the heads, which some classes check even where `head_dim` is given."""
    return cfg.d_model % cfg.n_heads == 0
