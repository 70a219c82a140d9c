from __future__ import annotations

import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from herdbook.corpus.blocklist import build_blocklist, domains_above, is_prepared, open_blocklist
from herdbook.corpus.config_web import CURATED, UrlConfig
from herdbook.corpus.urlfilter import UrlLists, judge_url, open_lists, prepare, split_url
from herdbook.errors import UserError

CASES = yaml.safe_load(Path(__file__).with_name("cases").joinpath("urlfilter.yaml").read_text(encoding="utf-8"))


def ut1(folder: Path) -> Path:
    """A list in UT1's layout."""
    rows = {"adult/domains": "Blocked.example\nbücher.example.\n# a note\n\nlocalhost\n", "adult/urls": "shop.example/adult/\n",
            "games/domains": "games.example\n0.0.0.0 hosts.example # as hosts files have it\n203.0.113.9\n"}  # fmt: skip
    for name, text in rows.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> tuple[UrlLists, UrlConfig]:
    folder = tmp_path_factory.mktemp("lists")
    for name, text in {"strict": "BadWord\n", "hard": "# ours\nworse\n", "soft": "red\nhot\nshop\n"}.items():
        (folder / name).write_text(text)
    cfg = UrlConfig(enabled=True, blocklists=[str(ut1(folder / "ut1"))], categories=["adult"],
                    strict_words=str(folder / "strict"), hard_words=str(folder / "hard"),
                    soft_words=str(folder / "soft"))  # fmt: skip
    ready = prepare(cfg, folder / "cache")
    return open_lists(ready), ready


@pytest.mark.parametrize("reason, detail, url", CASES, ids=lambda value: str(value)[:40])
def test_cases(lists: tuple[UrlLists, UrlConfig], reason: str | None, detail: str | None, url: str) -> None:
    found = judge_url(url, *lists)
    assert (found and found.reason, found and found.detail) == (reason, detail)


def test_upper_case_changes_nothing(lists: tuple[UrlLists, UrlConfig]) -> None:
    for _, _, url in CASES:
        if "%" not in url:
            assert judge_url(url.upper(), *lists) == judge_url(url, *lists) == judge_url(url.lower(), *lists)


def test_soft_words_are_counted(lists: tuple[UrlLists, UrlConfig]) -> None:
    opened, cfg = lists
    assert judge_url("https://hot.red/shop", opened, cfg) == ("soft_words", 3, 2, "hot red shop")
    assert judge_url("https://hot.red/", opened, cfg.model_copy(update={"soft_limit": 3})) is None
    assert judge_url("https://blocked.example", opened, cfg.model_copy(update={"enabled": False})) is None


def test_our_own_words_spare_places() -> None:
    cfg = UrlConfig(enabled=True)
    opened = open_lists(cfg)
    for url in ("https://www.essex.ac.uk/", "https://experts.exchange.example/", "https://scunthorpe.example/sussex/middlesex",
                "https://sex-education.example/", "https://exxxample.org"):  # fmt: skip
        assert judge_url(url, opened, cfg) is None
    assert judge_url("https://a.example/XXX/", opened, cfg) == ("hard_word", 1, 1, "xxx")
    assert all(judge_url(f"https://{name.upper()}/x", opened, cfg) == ("curated_source", None, None, found)
               for name in CURATED for found in [next(up for up in domains_above(name) if up in CURATED)])  # fmt: skip


def test_categories_of_a_folder_and_a_tar(tmp_path: Path) -> None:
    folder = ut1(tmp_path / "ut1")
    every = build_blocklist(folder, tmp_path / "all")
    assert len(every) == 6 and "games.example" in every and "203.0.113.9" in every and every.made_from["refused"] == 1
    with tarfile.open(tmp_path / "ut1.tar.gz", "w:gz") as archive:
        archive.add(folder, "blacklists")
        link = tarfile.TarInfo("blacklists/porn")
        link.type, link.linkname = tarfile.SYMTYPE, "adult"
        archive.addfile(link)
    packed = build_blocklist(tmp_path / "ut1.tar.gz", tmp_path / "packed", ["porn"])
    assert len(packed) == 3 and "blocked.example" in packed and "games.example" not in packed
    for source in (folder, tmp_path / "ut1.tar.gz"):
        with pytest.raises(UserError, match=r"'cars'(.|\n)*adult, games"):
            build_blocklist(source, tmp_path / "none", ["cars"])
    assert not (tmp_path / "none").exists()


def test_a_prepared_list_is_used_until_its_source_changes(tmp_path: Path) -> None:
    source, out = tmp_path / "list.txt", tmp_path / "list.blocklist"
    source.write_text("b.example\nhttp://a.example/\nB.example\n")
    assert len(build_blocklist(source, out)) == 2
    first = out.stat().st_mtime_ns
    assert build_blocklist(source, out) and out.stat().st_mtime_ns == first
    source.write_text("c.example\n")
    assert "c.example" in build_blocklist(source, out) and out.stat().st_mtime_ns != first
    cfg = UrlConfig(enabled=True, blocklists=[str(source), str(out)])
    ready = prepare(cfg, tmp_path / "cache")
    assert all(is_prepared(Path(path)) for path in ready.blocklists) and ready.blocklists[1] == str(out)
    assert prepare(ready, tmp_path / "cache") == ready
    assert [path.name for path in tmp_path.glob("**/.*")] == []  # nothing half-written is left


def test_lists_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    good, broken, empty = tmp_path / "good", tmp_path / "broken", tmp_path / "empty"
    (tmp_path / "source").write_text("a.example\n")
    build_blocklist(tmp_path / "source", good)
    empty.write_text("# nothing\n")
    for data, what in ((good.read_bytes()[:-1], "cut off"), (good.read_bytes()[:30], "broken"), (b"x", "no prepared list")):
        broken.write_bytes(data)
        with pytest.raises(UserError, match=what):
            open_blocklist(broken)
    for source, what in ((tmp_path / "absent", "no such list"), (empty, "no domain")):
        with pytest.raises(UserError, match=what):
            build_blocklist(source, tmp_path / "out")
    for path, what in ((tmp_path / "absent", "cannot read"), (empty, "no words")):
        with pytest.raises(UserError, match=what):
            open_lists(UrlConfig(strict_words=str(path)))
    with tarfile.open(tmp_path / "cut.tar.gz", "w:gz") as archive:
        archive.add(ut1(tmp_path / "ut1"), "blacklists")
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "cut.tar.gz").read_bytes()[:-40])
    (tmp_path / "bad.tar.gz").write_bytes(b"\x1f\x8b broken")
    for name in ("bad.tar.gz", "cut.tar.gz"):
        with pytest.raises(UserError, match="broken"):
            build_blocklist(tmp_path / name, tmp_path / "out")


@given(st.sets(st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,5}){1,3}", fullmatch=True), min_size=1, max_size=60),
       st.lists(st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,5}){0,4}", fullmatch=True), max_size=20))  # fmt: skip
def test_a_host_is_blocked_if_it_or_a_parent_is_listed(tmp_path_factory: pytest.TempPathFactory, names: set[str],
                                                       hosts: list[str]) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("any")
    (folder / "list").write_text("\n".join(names))
    blocklist = build_blocklist(folder / "list", folder / "out")
    for host in [*hosts, *names, *(f"www.{name}" for name in names)]:
        parts = host.split(".")
        expected = any(".".join(parts[at:]) in names for at in range(len(parts)))
        assert (blocklist.match(host, "/x") is not None) == expected


@given(st.text(max_size=80) | st.from_regex(r"[a-z]{0,5}:?//[^\s]{0,20}@?\[?[^\s]{0,20}:?[0-9]{0,3}/.{0,20}", fullmatch=True))
def test_any_address_can_be_judged(url: str) -> None:
    cfg = UrlConfig(enabled=True)
    judge_url(url, OPENED, cfg)
    host, _ = split_url(url)
    assert host == host.lower() and not host.endswith(".")


OPENED: Any = open_lists(UrlConfig(enabled=True))


@pytest.mark.parametrize("piece", ["a.", "é.", "a/", "@", "%41", "[", "://", "xxx-"])
def test_no_address_takes_long(piece: str) -> None:
    began = time.process_time()
    judge_url("https://" + piece * 50_000, OPENED, UrlConfig(enabled=True))
    assert time.process_time() - began < 2
