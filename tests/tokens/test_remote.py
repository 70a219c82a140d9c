from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import fsspec
import numpy as np
import pytest

from herdbook import pedigree
from herdbook.errors import UserError
from herdbook.tokens import remote
from herdbook.tokens.loader import Mixture
from herdbook.tokens.remote import Remote, attach, open_tokens

from .made import shards

DOCUMENTS = {"a/b": [40] * 30, "code": [25] * 20}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and no waiting between attempts."""
    monkeypatch.setenv("HERDBOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE_S", 0.001)
    return tmp_path / "cache" / "shards"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Tokens as they lie on a server."""
    with shards(DOCUMENTS, shard_tokens=200) as made:
        shutil.copytree(made, tmp_path / "server" / "tokens")
    yield tmp_path / "server" / "tokens"


class Server(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; a path in `failures` fails so many times before it is handed out."""

    failures: dict[str, int]
    asked: list[str]

    def do_GET(self) -> None:
        name = unquote(self.path.rpartition("/")[2])
        self.asked.append(name)
        if self.failures.get(name, 0) > 0:
            self.failures[name] -= 1
            self.send_error(503)
            return
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def served(folder: Path) -> Iterator[tuple[str, type[Server]]]:
    """The address of the tokens on a server of this machine, and the server."""
    handler = type("Handler", (Server,), {"failures": {}, "asked": []})

    def make(*args: object) -> http.server.BaseHTTPRequestHandler:
        return handler(*args, directory=str(folder.parent))  # type: ignore[arg-type]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), make) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/tokens", handler
        server.shutdown()


def files(cache: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in cache.glob("[0-9a-f]*")}


def test_the_same_sequences_as_here(folder: Path, served: tuple[str, type[Server]], cache: Path) -> None:
    here, there = Mixture(folder, context=16, seed=2), Mixture(served[0], context=16, seed=2)
    assert not cache.exists(), "nothing is fetched before it is read"
    for step in range(5):
        assert (here.batch(step, 8).tokens_BT == there.batch(step, 8).tokens_BT).all()
    assert there.trace(7) == here.trace(7)
    for name in files(cache):
        assert hashlib.sha256((cache / name).read_bytes()).hexdigest() == name
    asked = len(served[1].asked)
    Mixture(served[0], context=16, seed=2, verify=True).batch(0, 8)
    wanted = served[1].asked[asked:]
    assert {"index.json", "pedigree.json"} <= set(wanted)
    assert len(served[1].asked) == len(set(served[1].asked)) + 2, "what is in the cache is not asked for again"


def test_best_fit_from_there(folder: Path, served: tuple[str, type[Server]], cache: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | {"mixture": {"packing": "best_fit"}}))
    here, there = Mixture(folder, context=64, seed=2), Mixture(served[0], context=64, seed=2)
    assert (here.batch(1, 9).tokens_BT == there.batch(1, 9).tokens_BT).all()


def test_other_addresses_by_fsspec(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket/tokens", recursive=True)
    there = Mixture("memory://bucket/tokens", context=16, seed=2)
    assert (Mixture(folder, context=16, seed=2).batch(0, 8).tokens_BT == there.batch(0, 8).tokens_BT).all()
    with pytest.raises(UserError, match="this cannot be had"):
        Mixture("memory://bucket/nowhere", context=16, seed=2)
    with pytest.raises(UserError, match="no way to read nonsense://"):
        Mixture("nonsense://bucket/tokens", context=16, seed=2)


def test_a_folder_stands_for_the_address(folder: Path, served: tuple[str, type[Server]]) -> None:
    (folder / "pedigree.json").write_text('{"schema": 1}')
    stand_in = attach(served[0] + "/")
    assert stand_in == attach(served[0])
    assert (stand_in / "pedigree.json").read_text() == '{"schema": 1}' and pedigree.exists(stand_in)
    assert isinstance(open_tokens(stand_in)[1], Remote)
    assert (Mixture(stand_in, context=16, seed=2).batch(0, 8).tokens_BT
            == Mixture(folder, context=16, seed=2).batch(0, 8).tokens_BT).all()  # fmt: skip


def test_failures_are_tried_again(served: tuple[str, type[Server]], monkeypatch: pytest.MonkeyPatch) -> None:
    served[1].failures.update({"index.json": 2, "code-00000.bin": 4})
    mixture = Mixture(served[0], context=16, seed=2, weights={"code": 1})
    mixture.batch(0, 40)
    served[1].failures.update({"code-00000.docs.parquet": 5})
    with pytest.raises(UserError, match=r"code-00000\.docs\.parquet: this cannot be had \(5 attempts\)"):
        for index in range(40):
            mixture.trace(index)


def test_what_is_not_as_the_index_says(folder: Path, served: tuple[str, type[Server]], cache: Path) -> None:
    shard = folder / "code-00000.bin"
    whole = shard.read_bytes()
    for wrong, says in ((whole[:-2], "bytes came"), (whole + b"x", "not the file"), (whole[::-1], "not the file")):
        shard.write_bytes(wrong)
        with pytest.raises(UserError, match=says):
            Mixture(served[0], context=16, seed=2, weights={"code": 1}).batch(0, 40)
        assert not list(cache.glob("*.partial")) and hashlib.sha256(whole).hexdigest() not in files(cache)
    shard.unlink()
    with pytest.raises(UserError, match="404"):
        Mixture(served[0], context=16, seed=2, weights={"code": 1}).batch(0, 40)
    index = json.loads((folder / "index.json").read_text())
    index["sources"]["code"]["shards"][0]["file"] = "../../../etc/passwd"
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="leads out of its folder"):
        Mixture(served[0], context=16, seed=2, weights={"code": 1}).batch(0, 40)


def test_the_cache_is_bounded(
    folder: Path, served: tuple[str, type[Server]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = json.loads((folder / "index.json").read_text())
    sizes = {name: 2 * row["tokens"] for name, row in index["sources"].items()}
    monkeypatch.setenv("HERDBOOK_CACHE_SIZE", str(max(sizes.values())))
    first = Mixture(served[0], context=16, seed=2, weights={"a/b": 1})
    before = first.batch(0, 200).tokens_BT
    old = set(files(cache))
    assert sum(files(cache).values()) == sizes["a/b"]
    Mixture(served[0], context=16, seed=2, weights={"code": 1}).batch(0, 200)
    assert sum(files(cache).values()) <= max(sizes.values())
    assert not old <= set(files(cache)), "what was not used for longest went"
    assert (first.batch(0, 200).tokens_BT == before).all(), "and is read on by who had it open"
    with pytest.raises(UserError, match="the cache may hold"):
        Mixture(served[0], context=16, seed=2)
    monkeypatch.setenv("HERDBOOK_CACHE_SIZE", "much")
    with pytest.raises(UserError, match="HERDBOOK_CACHE_SIZE"):
        Mixture(served[0], context=16, seed=2)


def test_several_processes_share_a_cache(folder: Path, served: tuple[str, type[Server]], cache: Path) -> None:
    code = (
        "import sys; from herdbook.tokens.loader import Mixture; "
        "print(Mixture(sys.argv[1], context=16, seed=2).batch(0, 200).tokens_BT.sum())"
    )
    children = [subprocess.Popen([sys.executable, "-c", code, served[0]], stdout=subprocess.PIPE) for _ in range(3)]
    answers = {int(child.communicate(timeout=60)[0]) for child in children}
    assert answers == {int(Mixture(folder, context=16, seed=2).batch(0, 200).tokens_BT.sum())}
    bins = [name for name in served[1].asked if name.endswith(".bin")]
    assert len(bins) == len(set(bins)), "each was fetched once"


def test_what_a_killed_process_left(folder: Path, served: tuple[str, type[Server]], cache: Path) -> None:
    row = json.loads((folder / "index.json").read_text())["sources"]["code"]["shards"][0]
    cache.mkdir(parents=True)
    leftover = cache / f".{row['sha256']}.4242.partial"
    leftover.write_bytes(b"half")
    (cache / row["sha256"]).write_bytes(b"of another size")
    os.utime(leftover, (0, 0))
    batch = Mixture(served[0], context=16, seed=2, weights={"code": 1}).batch(0, 40)
    assert not leftover.exists() and (cache / row["sha256"]).stat().st_size == row["tokens"] * 2
    assert np.isin(batch.tokens_BT, range(501)).all()
