"""Published mixtures of training data, and a check of their arithmetic.

A table of a mixture says some things twice: a share of the training is so many tokens, and so are the epochs of a source. The
check works with intervals: `0.14` stands for 0.135 to 0.145. Where two ways to the same number do not meet even so, one of the
printed numbers is wrong, and the check says which values would fit. It finds that the card of MPT-7B prints 417.99B tokens
of mC4 where its own 0.14 epochs need about 2,400B (the card of MPT-30B has 2417.99B).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml

from herdbook.errors import UserError
from herdbook.facts.pipelines import Seen
from herdbook.units import human_count, parse_bytes, parse_count, parse_share

Kind = Literal["web", "code", "markup", "books", "reference", "papers", "conversations", "language"]
MANY_EPOCHS = 4  # Muennighoff et al. 2023 (arXiv:2305.16264): up to about four passes are nearly as good as new data
BYTES_PER_TOKEN = (1.5, 8.0)  # what text and code come to with any tokenizer of the time
_SUFFIXES = ("TB", "GB", "MB", "T", "B", "M", "K", "%", "")


@dataclass(frozen=True)
class Printed:
    """A number as it was printed, and the interval that its digits leave open.

    Attributes:
        text: the digits, with their unit.
        value: what they say; low, high: half a unit of the last digit below and above.
    """

    text: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PublishedSource:
    """One row of a published mixture; None where nothing was printed.

    Attributes:
        name: the short name that a recipe refers to.
        weight: share of the training, from 0 to 1.
        epochs: how often it was gone through.
        available: the tokens it has; trained: the tokens taken from it, repeats included; disk: its size in bytes.
    """

    name: str
    title: str
    kind: Kind
    weight: Printed | None = None
    epochs: Printed | None = None
    available: Printed | None = None
    trained: Printed | None = None
    disk: Printed | None = None


@dataclass(frozen=True)
class PublishedMixture:
    """A published table of training data.

    Attributes:
        family: tables of one family that name a source alike mean the same data.
        seen: where the table was read, as in `facts.pipelines`.
        models: the models of the catalogue that were trained on it.
        tokens: how many were trained on.
        partial: whether some sources are not named.
    """

    name: str
    title: str
    family: str
    source: str
    seen: Seen
    models: tuple[str, ...]
    tokens: Printed
    sources: Mapping[str, PublishedSource]
    partial: bool = False
    notes: str = ""

    @property
    def weights(self) -> dict[str, float]:
        """The share of each source as printed; they may add up to a little more or less than 1."""
        return {name: row.weight.value for name, row in self.sources.items() if row.weight is not None}

    def share_of(self, kind: Kind) -> float:
        """The share of the sources of a kind, as in `share_of("code")`."""
        return math.fsum(weight for name, weight in self.weights.items() if self.sources[name].kind == kind)


@dataclass(frozen=True)
class Finding:
    """Something in a table that does not add up.

    Attributes:
        source: the row; None where it is the table.
        what: the contradiction in words, with the values that would fit.
    """

    mixture: str
    source: str | None
    what: str


def _printed(text: str | None, parse: Any) -> Printed | None:
    if text is None:
        return None
    suffix = next(unit for unit in _SUFFIXES if text.endswith(unit))
    digits = text.removesuffix(suffix)
    half = parse(f"1{suffix}") * 10.0 ** -len(digits.partition(".")[2]) / 2
    value = float(parse(text))
    return Printed(text, value, value - half, value + half)


@cache
def _mixtures() -> dict[str, PublishedMixture]:
    raw = yaml.safe_load(resources.files("herdbook.facts").joinpath("mixtures.yaml").read_text(encoding="utf-8"))
    return {name: _mixture(name, row) for name, row in raw["mixtures"].items()}


def _mixture(name: str, row: dict[str, Any]) -> PublishedMixture:
    sources = {key: _source(key, facts) for key, facts in row["sources"].items()}
    tokens = _printed(row["tokens"], parse_count)
    assert tokens is not None
    return PublishedMixture(
        name=name, title=row["title"], family=row.get("family", name), source=row["source"], seen=row["seen"],
        models=tuple(row["models"]), tokens=tokens, sources=sources, partial=row.get("partial", False),
        notes=row.get("notes", ""),
    )  # fmt: skip


def _source(name: str, row: dict[str, Any]) -> PublishedSource:
    parsers = {"weight": parse_share, "epochs": float, "available": parse_count, "trained": parse_count, "disk": parse_bytes}
    numbers = {key: _printed(row.get(key), parse) for key, parse in parsers.items()}
    return PublishedSource(name, row["title"], row["kind"], **numbers)


def list_mixtures() -> list[PublishedMixture]:
    """All published mixtures, oldest first."""
    return list(_mixtures().values())


def find_mixture(name: str) -> PublishedMixture:
    """One of them by its name. Raises UserError for a name that is not there."""
    known = _mixtures()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"there is no published mixture {name!r}", todo=f"{hint}There are: {', '.join(known)}")
    return known[name]


def check_mixture(mixture: PublishedMixture) -> list[Finding]:
    """What does not add up in a table, even with all that rounding leaves open; empty when everything does."""
    found = [*_check_totals(mixture)]
    for row in mixture.sources.values():
        found += [Finding(mixture.name, row.name, what) for what in (*_check_row(row, mixture), *_check_siblings(row, mixture))]
    return found


def _check_totals(mixture: PublishedMixture) -> list[Finding]:
    found = []
    weights = [row.weight for row in mixture.sources.values() if row.weight is not None]
    if weights and not mixture.partial and not sum(w.low for w in weights) <= 1 + 1e-9 <= sum(w.high for w in weights) + 2e-9:
        found.append(Finding(mixture.name, None, f"the shares add up to {sum(w.value for w in weights):.1%}"))
    trained = [row.trained for row in mixture.sources.values() if row.trained is not None]
    if len(trained) == len(mixture.sources) and not mixture.partial:
        low, high = sum(t.low for t in trained), sum(t.high for t in trained)
        if not low <= mixture.tokens.value <= high:
            total = human_count(sum(t.value for t in trained))
            found.append(Finding(mixture.name, None, f"the sources add up to {total} tokens, not {mixture.tokens.text}"))
    return found


def _check_row(row: PublishedSource, mixture: PublishedMixture) -> list[str]:
    total = mixture.tokens.value
    low, high = 0.0, math.inf
    found = []
    if row.weight is not None:
        low, high = row.weight.low * total, row.weight.high * total
    if row.trained is not None:
        if row.trained.high < low or row.trained.low > high:
            assert row.weight is not None
            found.append(f"{row.weight.text} of {mixture.tokens.text} tokens is not the {row.trained.text} printed beside it")
        low, high = row.trained.low, row.trained.high
    if not 0 < low <= high < math.inf or row.epochs is None:
        return found
    if row.available is not None:
        found += _check_epochs(row, low, high)
    if row.disk is not None:
        least, most = row.disk.low * row.epochs.low / high, row.disk.high * row.epochs.high / low
        if most < BYTES_PER_TOKEN[0] or least > BYTES_PER_TOKEN[1]:
            found.append(f"{row.disk.text} for its tokens would be {least:.2g} to {most:.2g} bytes a token")
    return found


def _check_epochs(row: PublishedSource, low: float, high: float) -> list[str]:
    """Whether `epochs` times the tokens of a source can be the `low` to `high` tokens that were trained on."""
    epochs, available = row.epochs, row.available
    assert epochs is not None and available is not None
    if available.low * epochs.low <= high and available.high * epochs.high >= low:
        return []
    least, most = low / epochs.high, high / epochs.low
    lost = [digit for digit in "123456789" if least <= parse_count(digit + available.text) <= most]
    words = f"{epochs.text} epochs of {available.text} are {human_count(epochs.value * available.value)} tokens, "
    words += f"and its share of the training is {human_count((low + high) / 2)}; "
    words += f"{human_count(least)} to {human_count(most)} tokens, or {low / available.high:.2f} to {high / available.low:.2f} "
    words += "epochs, would fit"
    return [words + (f": a leading {lost[0]} seems to be lost ({lost[0]}{available.text})" if len(lost) == 1 else "")]


def _check_siblings(row: PublishedSource, mixture: PublishedMixture) -> list[str]:
    """Tables of the same family that give the same source another size."""
    if row.available is None:
        return []
    found = []
    for other in _mixtures().values():
        theirs = other.sources.get(row.name)
        if other.name == mixture.name or other.family != mixture.family or theirs is None or theirs.available is None:
            continue
        if row.available.low > theirs.available.high or row.available.high < theirs.available.low:
            found.append(f"{row.available.text} tokens here, and {theirs.available.text} in the table of {other.title}")
    return found
