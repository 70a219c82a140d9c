"""What a mixture is: how much of each source a run is trained on, and when that changes.

How much is written in one of four ways, in any combination:

    web: 3            a weight, on any scale: such sources divide what the others leave
    code: 10%         a share of the training
    wiki: 2ep         as often as that through the whole source; with the length of the run this is a share
    pages: c4         as much as a published mixture (`preset: llama`) has of its source of that name

Shares and epochs imply each other through the length of the run: share x length = epochs x tokens of the source. `curriculum`
replaces the mixture from a milestone on; epochs are counted through it, so nothing is read again before its source is through.

A mixture is a matter of training, not of the shards: it can be changed without encoding anything again.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from herdbook.config import Config
from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.facts.mixtures import MANY_EPOCHS, PublishedMixture, find_mixture
from herdbook.units import human_count, parse_count, parse_share

_AMOUNT = re.compile(r"([0-9_.,]+(?:[eE][+-]?[0-9]+)?)\s*(%|ep|epochs?)?")
_FORMS = "a weight (3), a share (10%), a number of epochs (2ep)"
_SLACK = 0.01  # epochs and the length of a run are round numbers; what they miss each other by is made up by scaling


def parse_amount(value: Any) -> float | str:
    """How much of a source: a weight as a number, or `10%`, `2ep` or the name of a source of a preset as text.

    `{epochs: 2}`, `{share: 10%}` and `{weight: 3}` say the same at greater length. Raises ValueError for anything else.
    """
    if isinstance(value, Mapping):
        if len(value) != 1 or next(iter(value)) not in ("epochs", "share", "weight"):
            raise ValueError(f"{dict(value)!r} is not how much of a source to take; give one of epochs, share or weight")
        [(unit, number)] = value.items()
        return parse_amount({"epochs": f"{number}ep", "share": _percent(number), "weight": number}[unit])
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not {_FORMS}")
    match = _AMOUNT.fullmatch(value.strip()) if isinstance(value, str) else None
    if isinstance(value, str) and match is None:
        if not value.strip() or value.strip()[0] in "+-0123456789.%":
            raise ValueError(f"{value!r} is not {_FORMS}")
        return value.strip()
    number = float(match[1].replace("_", "").replace(",", "")) if match else float(value)
    unit = (match[2] or "") if match else ""
    if not 0 < number < math.inf:
        raise ValueError(f"{value!r} is not more than nothing; leave a source out that is not wanted")
    if unit == "%" and number > 100:
        raise ValueError(f"{value!r} is more than all of the training")
    return f"{number:.10g}%" if unit == "%" else f"{number:.10g}ep" if unit else number


def _percent(number: Any) -> str:
    return f"{100 * parse_share(number):.10g}%"


def parse_milestone(value: Any) -> float:
    """When: a share of the run (`80%`, `0.8`), or from 1 on a number of tokens (`1.6B`)."""
    text = value.strip() if isinstance(value, str) else value
    share = str(text).endswith("%") or (isinstance(text, str | float) and str(text).startswith(("0.", ".")))
    number = parse_share(text) if share else float(parse_count(text))
    if not (0 < number < 1 if share else number >= 1):
        raise ValueError(f"{value!r} is neither a share of the run (80%) nor a number of tokens (1.6B)")
    return number


Amounts = dict[str, Annotated[float | str, BeforeValidator(parse_amount)]]


class CurriculumStage(Config):
    """Another mixture from a milestone on."""

    after: Annotated[float, BeforeValidator(parse_milestone)] = Field(
        description="from when on: a share of the run (80%) or tokens trained on (1.6B)"
    )
    sources: Amounts = Field(description="how much of each source from then on; epochs are those within this stage")


class MixtureConfig(Config):
    """How much of each source a run is trained on, in which order, and how documents become sequences."""

    sources: Amounts | None = Field(
        None,
        description="how much of each source: a weight (3), a share (10%), epochs (2ep), or the name of a source of the "
        "preset; default: all sources, by their tokens",
    )
    preset: str | None = Field(None, description="a published mixture whose weights are taken, as in llama or mpt-30b")
    curriculum: tuple[CurriculumStage, ...] = Field((), description="other amounts from a milestone on, in order")
    packing: Literal["concat", "best_fit"] = Field(
        "concat", description="concat: documents one after another, cut where a sequence ends; best_fit: only cut when too long"
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        published = _find(self.preset)
        for amounts in (self.sources, *(stage.sources for stage in self.curriculum)):
            if amounts is not None and not amounts:
                raise ValueError("sources names no source; leave the key out to take all of them")
            for name, amount in (amounts or {}).items():
                _check_amount(name, amount, published)
            if not math.isfinite(sum(amount for amount in (amounts or {}).values() if isinstance(amount, float))):
                raise ValueError("the weights of sources are too large to add up")
        for before, after in itertools.pairwise(self.curriculum):
            if (before.after < 1) == (after.after < 1) and before.after >= after.after:
                raise ValueError("the milestones of the curriculum are not in order")
        return self

    @property
    def names(self) -> list[str] | None:
        """The sources that are named at all; None when the run begins with all there are."""
        if self.sources is None:
            return None
        return sorted({*self.sources, *(name for stage in self.curriculum for name in stage.sources)})

    @property
    def needs_length(self) -> bool:
        """Whether only the length of the run says what the shares are."""
        tables = [self.sources or {}, *(stage.sources for stage in self.curriculum)]
        epochs = any(str(amount).endswith("ep") for table in tables for amount in table.values())
        return epochs or any(stage.after < 1 for stage in self.curriculum)

    def mixture(self) -> dict[str, Any]:
        """This mixture as plain JSON, without what a class below adds."""
        return self.model_dump(mode="json", include=set(MixtureConfig.model_fields))


def _find(preset: str | None) -> PublishedMixture | None:
    try:
        return None if preset is None else find_mixture(preset)
    except UserError as error:
        raise ValueError(error.render()) from error


def _check_amount(name: str, amount: float | str, published: PublishedMixture | None) -> None:
    if isinstance(amount, float) or amount.endswith("%") or _AMOUNT.fullmatch(amount):
        return
    if published is None:
        raise ValueError(f"{name}: {amount!r} is not {_FORMS}; without a preset there is no source of that name")
    if amount not in published.weights:
        close = difflib.get_close_matches(amount, published.weights, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ValueError(f"{name}: {published.name} has no source {amount!r}; {hint}it has {', '.join(published.weights)}")


@dataclass(frozen=True)
class Stage:
    """A part of a run with one mixture.

    Attributes:
        start: the tokens trained on before it.
        shares: of each source in it, adding up to 1; sources with none are left out.
    """

    start: int
    shares: dict[str, float]


def resolve(cfg: MixtureConfig, available: Mapping[str, int], length: int | None) -> list[Stage]:
    """The stages of a run as shares.

    Args:
        available: tokens of each source that is there.
        length: tokens the run trains on; None when that is not known.

    Raises UserError when a source is not there, shares do not go together, or the length is needed and not known.
    """
    available = {name: tokens for name, tokens in available.items() if tokens}
    if not available:
        raise UserError("there are no tokens to train on", todo="curate some documents, or give a source a weight")
    if cfg.needs_length and length is None and not _only_epochs(cfg):
        raise UserError("epochs and shares of a run are only known with the length of the run", where="tokens.sources")
    starts = _starts(cfg, length)
    tables = [cfg.sources, *(stage.sources for stage in cfg.curriculum)]
    stages = []
    for number, (start, table) in enumerate(zip(starts, tables, strict=True)):
        where = f"tokens.curriculum.{number - 1}.sources" if number else "tokens.sources"
        end = starts[number + 1] if number + 1 < len(starts) else length
        if end is not None and end <= start:  # a milestone behind the end of a shorter run
            continue
        amounts = _amounts(table, cfg.preset, available, where)
        stages.append(Stage(start, _shares(amounts, available, None if end is None else end - start, where)))
    return stages


def require_sources(cfg: MixtureConfig, available: Mapping[str, int]) -> None:
    """Raise UserError when a mixture names sources that are not there, or cannot be one whatever the length of the run.

    Args:
        available: tokens, or anything that there is of each source.
    """
    if not cfg.needs_length:
        resolve(cfg, available, None)
    for number, table in enumerate([cfg.sources, *(stage.sources for stage in cfg.curriculum)]):
        _amounts(table, cfg.preset, available, f"tokens.curriculum.{number - 1}.sources" if number else "tokens.sources")


def _only_epochs(cfg: MixtureConfig) -> bool:
    """Whether the epochs of all sources are given, and so what they are to each other."""
    return not cfg.curriculum and all(
        isinstance(amount, str) and amount.endswith("ep") for amount in (cfg.sources or {}).values()
    )


def _starts(cfg: MixtureConfig, length: int | None) -> list[int]:
    starts = [0]
    for stage in cfg.curriculum:
        start = math.ceil(stage.after * (length or 0)) if stage.after < 1 else int(stage.after)
        if start < starts[-1] or (start == starts[-1] and start > 0):
            raise UserError(
                f"the milestones are not in order: {human_count(starts[-1])} tokens, then {human_count(start)}",
                where="tokens.curriculum",
            )
        starts.append(start)
    return starts


def _amounts(
    table: Mapping[str, float | str] | None, preset: str | None, available: Mapping[str, int], where: str
) -> dict[str, float | str]:
    """The amounts of a stage, with the names of a preset's sources made into weights."""
    published = find_mixture(preset) if preset is not None else None
    if table is None:
        if published is None:
            return {name: float(tokens) for name, tokens in available.items()}
        table = {name: name for name in available if name in published.weights}
        if not table:
            raise UserError(
                f"none of the sources is called as one of {published.name}'s", where="tokens.preset",
                todo=f"say which is which, as in tokens.sources={{{next(iter(available))}: {next(iter(published.weights))}}}; "
                f"it has {', '.join(published.weights)}, and there are {', '.join(available)}",
            )  # fmt: skip
    for name in table:
        if name not in available:
            close = difflib.get_close_matches(name, available, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise UserError(
                f"there are no tokens of a source {name!r}", where=where, todo=f"{hint}There are: {', '.join(available)}"
            )
    if published is None:
        return dict(table)
    return {name: _as_published(name, amount, table, published, available) for name, amount in table.items()}


def _as_published(
    name: str, amount: float | str, table: Mapping[str, float | str], published: PublishedMixture, available: Mapping[str, int]
) -> float | str:
    """A published source's weight; where several sources stand for it, they divide it by their tokens."""
    if not isinstance(amount, str) or amount not in published.weights:
        return amount
    same = [other for other, theirs in table.items() if theirs == amount]
    return published.weights[amount] * available[name] / sum(available[other] for other in same)


def _shares(
    amounts: Mapping[str, float | str], available: Mapping[str, int], length: int | None, where: str
) -> dict[str, float]:
    weights = {name: amount for name, amount in amounts.items() if isinstance(amount, float)}
    texts = {name: amount for name, amount in amounts.items() if isinstance(amount, str)}
    taken = {name: available[name] * float(amount[:-2]) for name, amount in texts.items() if amount.endswith("ep")}
    if length is None and taken:
        return _in_order({name: tokens / sum(taken.values()) for name, tokens in taken.items()}, available)
    fixed = {name: tokens / (length or 1) for name, tokens in taken.items()}
    fixed |= {name: float(amount[:-1]) / 100 for name, amount in texts.items() if amount.endswith("%")}
    rest = 1 - math.fsum(fixed.values())
    longer = f"take fewer epochs, or train longer than {human_count(length)} tokens" if length else "make the shares smaller"
    if weights and rest <= 0:
        raise UserError(f"shares and epochs leave nothing for {', '.join(weights)}: {_listed(fixed)}", where=where, todo=longer)
    if rest < -_SLACK:
        raise UserError(f"shares and epochs are more than the training: {_listed(fixed)}", where=where, todo=longer)
    if rest > _SLACK and not weights:
        needed = f", or train on {human_count(sum(taken.values()))} tokens" if len(taken) == len(fixed) else ""
        raise UserError(
            f"shares and epochs come to only {1 - rest:.1%} of the training: {_listed(fixed)}", where=where,
            todo=f"give a source a plain weight, so that it takes up the rest{needed}",
        )  # fmt: skip
    if not weights:
        return _in_order({name: share / (1 - rest) for name, share in fixed.items()}, available)
    total = math.fsum(weights.values())
    return _in_order(fixed | {name: rest * (weight / total) for name, weight in weights.items()}, available)


def _in_order(shares: Mapping[str, float], available: Mapping[str, int]) -> dict[str, float]:
    return {name: shares[name] for name in available if name in shares}


def _listed(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in shares.items())


@dataclass(frozen=True)
class SourceRow:
    """What a run takes of one source.

    Attributes:
        shares: in each stage of the run.
        available: tokens it has; trained: tokens taken from it over the whole run.
        epochs: trained / available.
    """

    name: str
    shares: tuple[float, ...]
    available: int
    trained: int
    epochs: float


def show_rows(rows: Sequence[SourceRow], terminal: Terminal) -> None:
    """Print what a run takes of each source, and warn of sources that are repeated more often than pays."""
    terminal.table(
        ["source", "share", "tokens of training", "epochs", "tokens there are"],
        [
            (row.name, " → ".join(f"{share:.1%}" for share in row.shares), human_count(row.trained), f"{row.epochs:.2f}",
             human_count(row.available))
            for row in rows
        ],
    )  # fmt: skip
    for row in rows:
        if row.epochs > MANY_EPOCHS:
            terminal.warn(
                f"{row.name} is gone through {row.epochs:.3g} times; beyond about {MANY_EPOCHS} repeats teach little "
                "(Muennighoff et al. 2023)"
            )


def left_out(cfg: MixtureConfig, available: Mapping[str, int]) -> list[str]:
    """The sources of the preset that nothing stands for; what they had is divided among the others."""
    if cfg.preset is None:
        return []
    weights = find_mixture(cfg.preset).weights
    table = cfg.sources if cfg.sources is not None else {name: name for name in available}
    return [f"{name} ({weight:.1%})" for name, weight in weights.items() if name not in table.values()]
