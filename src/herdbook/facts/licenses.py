"""Licences as facts: what each allows, and the strictest of several.

A licence is an SPDX identifier with four flags, and in words what else it asks. What is made from several sources may be used
only as the strictest of them allows; `strictest` says so in one `License` whose id is an SPDX expression (`BSD-3-Clause AND
CC-BY-SA-4.0`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from herdbook.errors import UserError

UNKNOWN = "LicenseRef-unknown"


@dataclass(frozen=True)
class License:
    """A licence and what it allows.

    Attributes:
        id: SPDX identifier, `LicenseRef-…`, or an SPDX expression joined by AND.
        commercial: may it be used commercially.
        derivatives: may changed versions be passed on.
        notice: must its text or its authors be named.
        share_alike: must what is made from it carry the same licence.
        conditions: what else it asks, in plain words, such as uses it forbids and that must be forbidden onwards.
    """

    id: str
    name: str
    commercial: bool
    derivatives: bool
    notice: bool
    share_alike: bool
    conditions: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The licence as plain JSON."""
        return asdict(self)

    def in_words(self) -> str:
        """What it allows and what it asks, in plain words."""
        use = "commercial use allowed" if self.commercial else "no commercial use"
        terms = [
            *(["name the authors"] if self.notice else []),
            *(["share under the same licence"] if self.share_alike else []),
            *([] if self.derivatives else ["no changed versions"]),
        ]
        return "; ".join(part for part in (f"{self.id}: {use}", ", ".join(terms), self.conditions) if part)


def _fold(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


@cache
def _table() -> tuple[dict[str, License], dict[str, str]]:
    raw = yaml.safe_load(resources.files("herdbook.facts").joinpath("licenses.yaml").read_text(encoding="utf-8"))
    licenses, names = {}, {}
    for identifier, row in raw["licenses"].items():
        aliases = row.pop("aliases")
        licenses[identifier] = License(id=identifier, **row)
        for name in (identifier, row["name"], *aliases):
            names[_fold(name)] = identifier
    return licenses, names


def known_licenses() -> list[License]:
    """All licences of the table."""
    return list(_table()[0].values())


def find_license(name: str | None) -> License:
    """The licence that `name` (an SPDX id or a usual name) means; None means unknown.

    Raises UserError for a name that is not in the table. A `LicenseRef-…` of the user's own is accepted, and treated as
    strictly as an unknown one.
    """
    licenses, names = _table()
    folded = _fold(name or "")
    if folded in names:
        return licenses[names[folded]]
    if name and name.startswith("LicenseRef-"):
        unknown = licenses[UNKNOWN]
        return License(name, name.removeprefix("LicenseRef-"), *(getattr(unknown, flag) for flag in
                       ("commercial", "derivatives", "notice", "share_alike")))  # fmt: skip
    close = difflib.get_close_matches(str(name), [*licenses], n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(
        f"the licence {name!r} is not known", todo=f"{hint}Use an SPDX id, or LicenseRef-NAME for terms that have none"
    )


def strictest(licenses: Iterable[License]) -> License:
    """The one licence that grants only what all of `licenses` grant, combined ones by their parts; none at all is unknown."""
    unique = {part.id: part for license_ in licenses for part in _parts(license_)}
    if not unique:
        return _table()[0][UNKNOWN]
    rows = sorted(unique.values(), key=lambda row: (row.commercial, row.derivatives, not row.share_alike, row.id))
    if len(rows) == 1:
        return rows[0]
    return License(
        id=" AND ".join(row.id for row in rows),
        name="the strictest of: " + ", ".join(row.name for row in rows),
        commercial=all(row.commercial for row in rows),
        derivatives=all(row.derivatives for row in rows),
        notice=any(row.notice for row in rows),
        share_alike=any(row.share_alike for row in rows),
        conditions="; ".join(dict.fromkeys(row.conditions for row in rows if row.conditions)),
    )


def _parts(license_: License) -> list[License]:
    parts = license_.id.split(" AND ")
    return [license_] if len(parts) == 1 else [find_license(part) for part in parts]


def find_expression(expression: str | None) -> License:
    """Like `find_license`, for an SPDX expression joined by AND too."""
    parts = [part.strip() for part in (expression or "").split(" AND ")]
    return strictest(find_license(part or None) for part in parts)
