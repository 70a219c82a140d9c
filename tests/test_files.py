from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdbook.errors import UserError
from herdbook.files import (
    atomic_folder,
    atomic_path,
    inside,
    read_json,
    remove_partials,
    require_space,
    sha256_file,
    sha256_json,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_takes_the_place_of_the_old_one_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with atomic_folder(path) as aside:
        (aside / "one").write_text("1")
    with pytest.raises(RuntimeError), atomic_folder(path) as aside:
        (aside / "two").write_text("2")
        raise RuntimeError
    assert names(path) == ["one"]
    with atomic_folder(path) as aside:
        (aside / "three").write_text("3")
    assert names(path) == ["three"]
    assert names(tmp_path) == ["folder"]


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.123.partial").write_text("half")
    (tmp_path / ".folder.123.partial").mkdir()
    (tmp_path / "kept").write_text("whole")
    remove_partials(tmp_path)
    assert names(tmp_path) == ["kept"]


def test_json_that_is_broken_or_absent_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no index here"):
        read_json(tmp_path / "index.json", what="index")
    (tmp_path / "index.json").write_text('{"a": ')
    with pytest.raises(UserError, match=r"index\.json: this index is not valid JSON"):
        read_json(tmp_path / "index.json", what="index")
    write_json(tmp_path / "index.json", {"ü": [1, None]})
    assert read_json(tmp_path / "index.json") == {"ü": [1, None]}


@given(st.dictionaries(st.text(max_size=5), st.integers(), max_size=6), st.randoms())
def test_the_hash_of_json_does_not_depend_on_the_order_of_keys(value: dict[str, int], random: object) -> None:
    keys = list(value)
    random.shuffle(keys)  # type: ignore[attr-defined]
    assert sha256_json({key: value[key] for key in keys}) == sha256_json(value)


def test_file_hash(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert sha256_file(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x"])
def test_names_that_leave_their_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="leads out of its folder"):
        inside(tmp_path, name)
    assert inside(tmp_path, "a/b") == (tmp_path / "a/b").resolve()


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "there", 1, purpose="this")
    with pytest.raises(UserError, match="a checkpoint needs about"):
        require_space(tmp_path, 10**18, purpose="a checkpoint")
