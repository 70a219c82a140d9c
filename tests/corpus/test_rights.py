from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from herdbook.corpus.config_web import RightsConfig
from herdbook.corpus.rights import Rights, find_rights, judge_rights, spdx_id

CASES = yaml.safe_load(Path(__file__).with_name("cases").joinpath("rights.yaml").read_text(encoding="utf-8"))


def find(html: str, headers: Any = (), **fields: Any) -> Rights:
    return find_rights(html, RightsConfig(**fields), headers)


@pytest.mark.parametrize("license_, where, html", CASES, ids=lambda value: str(value)[:50])
def test_cases(license_: str | None, where: str, html: str) -> None:
    found = find(f"<html><head><title>x</title></head><body>{html}</body></html>")
    assert (found.license, found.where) == (license_, where)
    assert found.ai is None and not found.noindex


@pytest.mark.parametrize("html, headers, expected", [
    ('<meta name="robots" content="noai, noimageai">', {}, ("reserved", "meta noai", "reserved", False)),
    ('<META CONTENT="NOINDEX,follow" NAME="Robots">', {}, (None, "", None, True)),
    ('<meta name="robots" content="none">', {}, (None, "", None, True)),
    ('<meta name="robots" content="noimageai">', {}, (None, "", "reserved", False)),
    ('<meta name="robots" content="index, max-snippet:-1">', {}, (None, "", None, False)),
    ('<meta name="description" content="noai noindex">', {}, (None, "", None, False)),
    ('<meta name="tdm-reservation" content="1">', {}, ("reserved", "meta tdm-reservation", "reserved", False)),
    ('<meta name="tdm-reservation" content="0">', {}, (None, "", None, False)),
    ("", {"TDM-Reservation": "1"}, ("reserved", "header tdm-reservation", "reserved", False)),
    ("", {"X-Robots-Tag": "noindex, NOAI"}, ("reserved", "header noai", "reserved", True)),
    ("", [("x-robots-tag", "otherbot: noindex"), ("X-Robots-Tag", "otherbot: noai")],
     ("reserved", "header noai", "reserved", False)),
    ("", {"X-Robots-Tag": "unavailable_after: 25 Jun 2030"}, (None, "", None, False)),
    ("<p>noai noindex robots</p>", {"Content-Type": "text/html"}, (None, "", None, False)),
])  # fmt: skip
def test_reservations(html: str, headers: Any, expected: tuple[Any, ...]) -> None:
    found = find(html, headers)
    assert (found.ai, found.ai_where, found.images, found.noindex) == expected


def test_what_is_respected() -> None:
    both, cfg = Rights(ai="reserved", noindex=True), RightsConfig(enabled=True, respect_noindex=True)
    assert judge_rights(both, cfg) == ("ai_reserved", None, None)
    assert judge_rights(Rights(noindex=True), cfg) == ("noindex", None, None)
    assert judge_rights(Rights(noindex=True), RightsConfig(enabled=True)) is None
    assert judge_rights(Rights(license="CC-BY-4.0"), cfg) is judge_rights(both, RightsConfig()) is None


def test_policy_and_base_license() -> None:
    assert find('<meta name="tdm-policy" content="https://x.example/Terms.json">').policy == "https://x.example/Terms.json"
    assert find("", {"tdm-policy": "https://x.example/T"}).policy == "https://x.example/T"
    ids = ["CC-BY-3.0-IGO", "CC-BY-NC-SA-2.0-UK", "CC-BY-4.0", "CC0-1.0", "MIT"]
    assert [Rights(license=name).base_license for name in ids] == [
        "CC-BY-3.0",
        "CC-BY-NC-SA-2.0",
        "CC-BY-4.0",
        "CC0-1.0",
        "MIT",
    ]
    assert Rights().base_license is None


def test_names_and_addresses() -> None:
    assert spdx_id("CC-BY-NC-SA-4.0") == spdx_id("cc by nc sa 4.0") == "CC-BY-NC-SA-4.0"
    assert spdx_id("CC0") == spdx_id("cc zero") == "CC0-1.0"
    assert spdx_id("https%3A//creativecommons.org/licenses/by/4.0/") == "CC-BY-4.0"
    assert spdx_id("http://www.apache.org/licenses/LICENSE-2.0.html") == "Apache-2.0"
    assert spdx_id("Copyright 2024, all rights reserved") is spdx_id("cc by 5.0") is spdx_id("") is None


def test_only_beginning_and_end_are_read() -> None:
    mark, filler = '<a rel="license" href="https://creativecommons.org/licenses/by/4.0/">x</a>', "<p>prose</p>" * 1000
    small = {"head_bytes": 2000, "tail_bytes": 2000}
    assert find(mark + filler, **small).license == find(filler + mark, **small).license == "CC-BY-4.0"
    assert find(filler + mark + filler, **small).license is None
    assert find(filler + mark, head_bytes=2000, tail_bytes=0).license is None


TAGS = st.sampled_from(["<a ", "<meta ", 'rel="license" ', "href=", "name=robots ", "content='noai", "'>", '"', ">", "license",
                        '<script type="application/ld+json">', '{"license": ', "[" * 3000, "}", "</script>", "\x00",
                        "&#x;", "İ",
                        "https://creativecommons.org/licenses/by/4.0/"])  # fmt: skip


@given(st.lists(TAGS | st.text(max_size=10), max_size=15).map("".join))
def test_any_html_can_be_read(html: str) -> None:
    found = find(html, {"x-robots-tag": html, html: html})
    assert found.license is None or found.license.startswith("CC")


@pytest.mark.parametrize(
    "piece", ["<a ", "<meta name=", "<a x=", "license ", '<script type="application/ld+json">', "<", "a=", "<a " + "x" * 2990]
)
def test_no_html_takes_long(piece: str) -> None:
    html = "license robots ld+json " + piece * (400_000 // len(piece))
    began = time.process_time()
    find(html)
    assert time.process_time() - began < 2
