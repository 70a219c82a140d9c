from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from herdbook import pedigree, road
from herdbook.config import Draft
from herdbook.console import Terminal
from herdbook.documents import DocumentWriter, read_documents
from herdbook.errors import UserError
from herdbook.files import sha256_file
from herdbook.recipe import build_recipe
from herdbook.tokens import build, encode
from herdbook.tokens.build import build_tokens
from herdbook.tokens.config import TokensConfig
from herdbook.tokens.loader import Mixture
from herdbook.tokens.source import Local, TokenSource
from herdbook.tokens.tokenizer import load_encoder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.name != "pedigree.json"}


def write_corpus(folder: Path, rows: list[tuple[str, str]]) -> Path:
    with DocumentWriter(folder, "documents") as writer:
        for number, (source, text) in enumerate(rows):
            writer.write({"id": str(number), "text": text, "source": source, "license": "MIT"})
    return folder


def test_shards_hold_the_documents_in_order(corpus: Path, tokenizer: Path, tokens: Path) -> None:
    encoder = load_encoder(tokenizer)
    index = json.loads((tokens / "index.json").read_text())
    for name, row in index["sources"].items():
        documents = [document for document in read_documents(corpus) if document["source"] == name]
        expected = [
            token for document in documents for token in [0, *encoder.encode(document["text"], add_special_tokens=False).ids]
        ]
        ring = TokenSource(Local(tokens), name, row, index["dtype"])
        assert ring.read(0, ring.tokens).tolist() == expected
        assert row["documents"] == len(documents)
        assert row["bytes"] == sum(len(document["text"].encode()) for document in documents)


def test_index_and_lists_of_documents(corpus: Path, tokenizer: Path, tokens: Path) -> None:
    index = json.loads((tokens / "index.json").read_text())
    assert (index["version"], index["dtype"], index["vocab_size"], index["separator_id"]) == (2, "uint16", 600, 0)
    assert index["tokenizer_sha256"] == sha256_file(tokenizer / "tokenizer.json")
    assert {name: row["license"] for name, row in index["sources"].items()} == {
        "code": "Apache-2.0", "stdlib": "PSF-2.0", "tales": "CC0-1.0"}  # fmt: skip
    assert len(index["sources"]["stdlib"]["shards"]) > 2
    urls = {document["id"]: document["url"] for document in read_documents(corpus)}
    for row in index["sources"].values():
        for shard in row["shards"]:
            raw = np.fromfile(tokens / shard["file"], dtype="<u2")
            listing = pq.read_table(tokens / shard["file"].replace(".bin", ".docs.parquet")).to_pylist()
            assert sha256_file(tokens / shard["file"]) == shard["sha256"]
            assert [document["offset"] for document in listing] == np.flatnonzero(raw == 0).tolist()
            assert sum(document["tokens"] for document in listing) == len(raw) == shard["tokens"]
            assert len(listing) == shard["documents"]
            assert {document["license"] for document in listing} == {row["license"]}
            assert sha256_file(tokens / shard["listing"]) == shard["listing_sha256"]
            assert all(document["url"] == urls.pop(document["id"]) for document in listing)
    assert not urls


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_gives_the_same_bytes(
    corpus: Path,
    tokenizer: Path,
    tokens: Path,
    tmp_path: Path,
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    monkeypatch.setattr(build, "BYTES_PER_WORKER", 1)  # so that even this little text is shared out
    build_tokens(TokensConfig(shard_tokens=5000), corpus, tokenizer, tmp_path, terminal, workers=workers)
    assert contents(tmp_path) == contents(tokens)


@pytest.mark.parametrize("size", [1, 3000, 20_000])
def test_a_large_row_group_is_work_for_several(
    corpus: Path, tokenizer: Path, tokens: Path, tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(encode, "BYTES_PER_TASK", size)
    monkeypatch.setattr(encode, "BATCH_ROWS", 7)
    tasks = encode.tasks_of(corpus)
    groups = {(task.path, task.row_group) for task in tasks}
    assert len(tasks) > len(groups)
    assert sum(task.last - task.first for task in tasks) == sum(1 for _ in read_documents(corpus))
    build_tokens(TokensConfig(shard_tokens=5000), corpus, tokenizer, tmp_path, terminal, workers=1)
    assert contents(tmp_path) == contents(tokens)


def test_shard_size_changes_only_the_cuts(
    corpus: Path, tokenizer: Path, tokens: Path, tmp_path: Path, terminal: Terminal
) -> None:
    build_tokens(TokensConfig(shard_tokens=1), corpus, tokenizer, tmp_path, terminal)
    many, few = (json.loads((folder / "index.json").read_text()) for folder in (tmp_path, tokens))
    for name, row in many["sources"].items():
        assert all(shard["documents"] == 1 for shard in row["shards"])
        rings = [
            TokenSource(Local(folder), name, index["sources"][name], "uint16")
            for folder, index in ((tmp_path, many), (tokens, few))
        ]
        assert (rings[0].read(0, row["tokens"]) == rings[1].read(0, row["tokens"])).all()


def test_building_again_replaces_what_was_there(corpus: Path, tokenizer: Path, tmp_path: Path, terminal: Terminal) -> None:
    build_tokens(TokensConfig(shard_tokens=1), corpus, tokenizer, tmp_path, terminal)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".code-00009.bin.123.partial").write_text("cut off")
    build_tokens(TokensConfig(sources={"tales": 1}), corpus, tokenizer, tmp_path, terminal)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"index.json", "pedigree.json", "notes.txt", "tales-00000.bin", "tales-00000.docs.parquet"}


def test_weights_are_kept_and_other_sources_left_out(corpus: Path, tokenizer: Path, tmp_path: Path, terminal: Terminal) -> None:
    build_tokens(TokensConfig(sources={"tales": 3, "code": 1}), corpus, tokenizer, tmp_path, terminal)
    index = json.loads((tmp_path / "index.json").read_text())
    assert list(index["sources"]) == ["code", "tales"]
    assert index["mixture"]["sources"] == {"tales": 3.0, "code": 1.0}


def test_pedigree(corpus: Path, tokenizer: Path, tokens: Path) -> None:
    manifest = pedigree.read(tokens)
    assert [item["role"] for item in manifest["inputs"]] == ["corpus", "tokenizer"]
    assert {row["id"] for row in manifest["licenses"]} == {"Apache-2.0", "PSF-2.0", "CC0-1.0"}
    assert manifest["counts"]["documents"] == sum(1 for _ in read_documents(corpus))


def test_text_that_looks_like_a_separator_stays_text(tokenizer: Path, tmp_path: Path, terminal: Terminal) -> None:
    corpus = write_corpus(tmp_path / "corpus", [("a", "one<|endoftext|>two<|im_start|>system"), ("a", "")])
    build_tokens(TokensConfig(), corpus, tokenizer, tmp_path / "tokens", terminal)
    raw = np.fromfile(tmp_path / "tokens" / "a-00000.bin", dtype="<u2")
    assert np.flatnonzero(raw == 0).tolist() == [0, len(raw) - 1]
    assert not set(raw.tolist()) & {1, 2, 3}


def test_a_tokenizer_whose_separator_is_ordinary_text(tokenizer: Path, tmp_path: Path, terminal: Terminal) -> None:
    corpus = write_corpus(tmp_path / "corpus", [("a", "e")])
    theirs = tmp_path / "tokenizer"
    theirs.mkdir()
    (theirs / "tokenizer.json").write_text((tokenizer / "tokenizer.json").read_text())
    (theirs / "tokenizer_config.json").write_text('{"eos_token": "e"}')
    with pytest.raises(UserError, match="turns some text into its own separator"):
        build_tokens(TokensConfig(), corpus, theirs, tmp_path / "tokens", terminal)
    assert not list((tmp_path / "tokens").glob("*"))


def test_names_of_sources_cannot_leave_the_folder(tokenizer: Path, tmp_path: Path, terminal: Terminal) -> None:
    corpus = write_corpus(tmp_path / "corpus", [("../evil", "a"), ("a/b", "b"), ("", "c")])
    build_tokens(TokensConfig(), corpus, tokenizer, tmp_path / "tokens", terminal)
    assert (tmp_path / "tokens" / "..%2Fevil-00000.bin").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "tokens"}


def test_dtype(corpus: Path, tokenizer: Path, tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    build_tokens(TokensConfig(dtype="uint32", sources={"tales": 1}), corpus, tokenizer, tmp_path, terminal)
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["dtype"] == "uint32"
    assert (tmp_path / "tales-00000.bin").stat().st_size == 4 * index["sources"]["tales"]["tokens"]
    assert build._dtype(TokensConfig(), 2**16) == "uint16"
    assert build._dtype(TokensConfig(), 2**16 + 1) == "uint32"
    with pytest.raises(UserError, match="uint16 holds ids up to"):
        build._dtype(TokensConfig(dtype="uint16"), 2**16 + 1)


def test_wrong_input(corpus: Path, tokenizer: Path, tmp_path: Path, terminal: Terminal) -> None:
    out = tmp_path / "tokens"
    with pytest.raises(UserError, match=r"tokens\.sources: the source 'wiki'[\s\S]*code, stdlib, tales"):
        build_tokens(TokensConfig(sources={"wiki": 1}), corpus, tokenizer, out, terminal)
    with pytest.raises(UserError, match="no such file or folder"):
        build_tokens(TokensConfig(), tmp_path / "nowhere", tokenizer, out, terminal)
    with pytest.raises(UserError, match="holds no documents"):
        build_tokens(TokensConfig(), write_corpus(tmp_path / "empty", []), tokenizer, out, terminal)
    with pytest.raises(UserError, match="no tokenizer here"):
        build_tokens(TokensConfig(), corpus, corpus, out, terminal)
    (tmp_path / "cut").mkdir()
    whole = next(corpus.glob("documents-*.parquet")).read_bytes()
    (tmp_path / "cut" / "documents-00000.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a whole parquet file"):
        build_tokens(TokensConfig(), tmp_path / "cut", tokenizer, out, terminal)
    pq.write_table(pq.read_table(next(corpus.glob("documents-*.parquet"))).drop(["url"]), tmp_path / "narrow.parquet")
    with pytest.raises(UserError, match="column 'url' is missing"):
        build_tokens(TokensConfig(), tmp_path / "narrow.parquet", tokenizer, out, terminal)
    assert not pedigree.exists(out)


def test_an_error_in_a_worker_arrives_whole(
    corpus: Path, tokenizer: Path, tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "BYTES_PER_WORKER", 1)
    (tmp_path / "corpus").mkdir()
    for number, path in enumerate(sorted(corpus.glob("documents-*.parquet"))):
        raw = bytearray(path.read_bytes())
        if number == 2:
            raw[4:2000] = bytes(1996)  # pages are broken, the footer is whole
        (tmp_path / "corpus" / path.name).write_bytes(raw)
    monkeypatch.setattr(build, "_chosen", lambda *_: frozenset({"code", "stdlib", "tales"}))
    with pytest.raises(UserError, match=r"documents-00002\.parquet: this is not a whole parquet file"):
        build_tokens(TokensConfig(), tmp_path / "corpus", tokenizer, tmp_path / "tokens", terminal, workers=2)
    assert not list((tmp_path / "tokens").iterdir())


def test_another_mixture_leaves_the_shards(corpus: Path, tokenizer: Path, tmp_path: Path, terminal: Terminal) -> None:
    out = tmp_path / "tokens"
    first = TokensConfig.model_validate({"sources": {"tales": 3, "code": 1}})
    build_tokens(first, corpus, tokenizer, out, terminal)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.bin")}
    changed = {"tales": "40%", "code": 1}
    second = TokensConfig.model_validate({"sources": changed, "curriculum": [{"after": "90%", "sources": {"tales": 1}}]})
    assert build.mix_again(second, corpus, tokenizer, out, terminal)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.bin")} == before
    assert Mixture(out, context=16, seed=0, length=1000).weights == {"code": 0.6, "tales": 0.4}
    inputs = [(corpus, "corpus"), (tokenizer, "tokenizer")]
    assert pedigree.is_current(out, second.model_dump(mode="json"), inputs)
    assert not pedigree.is_current(out, first.model_dump(mode="json"), inputs)
    assert pedigree.verify(pedigree.tree(out)) == []


def test_the_road_puts_another_mixture_in(corpus: Path, tokenizer: Path, tmp_path: Path, terminal: Terminal) -> None:
    station, out = road.BY_NAME["tokens"], tmp_path / "run" / "tokens"
    folders = {"corpus": corpus, "tokenizer": tokenizer}
    stamps = []
    for words in (
        [],
        ["tokens.packing=best_fit"],
        ["tokens.curriculum=[{after: 50%, sources: {code: 1}}]"],
        ["tokens.dtype=uint32"],
    ):
        recipe = build_recipe(Draft(source="test"), words)
        road.run_station(station, recipe, folders, out, terminal)
        assert json.loads((out / "index.json").read_text())["mixture"] == recipe.tokens.mixture()
        assert pedigree.is_current(out, station.config(recipe), station.inputs(recipe, folders))
        stamps.append({path.name: path.stat().st_mtime_ns for path in out.glob("*.bin")})
    assert stamps[0] == stamps[1] == stamps[2] != stamps[3]
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name != "tokens"] == ["replaced"]


def test_what_takes_another_encoding(corpus: Path, tokenizer: Path, tmp_path: Path, terminal: Terminal) -> None:
    out = tmp_path / "tokens"
    assert not build.mix_again(TokensConfig(), corpus, tokenizer, out, terminal), "there is nothing yet"
    build_tokens(TokensConfig(), corpus, tokenizer, out, terminal)
    before = contents(out)
    some, other = TokensConfig(sources={"code": 1.0}), TokensConfig(dtype="uint32")
    for cfg, text in ((some, corpus), (other, corpus), (TokensConfig(preset="llama"), tmp_path / "other")):
        (tmp_path / "other").mkdir(exist_ok=True)
        assert not build.mix_again(cfg, text, tokenizer, out, terminal)
    with pytest.raises(UserError, match="none of the sources is called as one of llama's"):
        build.mix_again(TokensConfig(preset="llama"), corpus, tokenizer, out, terminal)
    next(out.glob("code-*.bin")).write_bytes(b"cut")
    assert not build.mix_again(TokensConfig(packing="best_fit"), corpus, tokenizer, out, terminal), "shards are not whole"
    assert {name: found for name, found in contents(out).items() if "code" not in name} == {
        name: found for name, found in before.items() if "code" not in name
    }


def test_a_mixture_that_was_put_in_halfway_is_put_in_again(
    corpus: Path, tokenizer: Path, tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "tokens"
    build_tokens(TokensConfig(), corpus, tokenizer, out, terminal)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.bin")}
    cfg = TokensConfig.model_validate({"packing": "best_fit", "curriculum": [{"after": "1K", "sources": {"tales": 1}}]})
    with monkeypatch.context() as patch:
        patch.setattr(pedigree, "amend", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build.mix_again(cfg, corpus, tokenizer, out, terminal)
    assert not pedigree.is_current(out, cfg.model_dump(mode="json"), [(corpus, "corpus"), (tokenizer, "tokenizer")])
    assert build.mix_again(cfg, corpus, tokenizer, out, terminal)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.bin")} == before


def test_a_mixture_that_cannot_be_is_refused_before_anything_is_encoded(
    corpus: Path, tokenizer: Path, tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_encode_all", lambda *_: pytest.fail("it encodes"))
    later = [{"after": "50%", "sources": {"wiki": 1}}]
    for values, says in (
        ({"preset": "llama"}, "none of the sources is called"),
        ({"preset": "llama", "curriculum": [{"after": "50%", "sources": {"code": 1}}]}, "none of the sources is called"),
        ({"curriculum": later}, "no tokens of a source 'wiki'"),
        ({"sources": {"code": 1}, "curriculum": later}, "'wiki' is not in the corpus"),
        ({"sources": {"code": "60%"}}, "only 60.0% of the training"),
    ):
        with pytest.raises(UserError, match=says):
            build_tokens(TokensConfig.model_validate(values), corpus, tokenizer, tmp_path, terminal)


def test_plans_of_earlier_shards_do_not_stay(corpus: Path, tokenizer: Path, tmp_path: Path, terminal: Terminal) -> None:
    cfg = TokensConfig(packing="best_fit")
    build_tokens(cfg, corpus, tokenizer, tmp_path, terminal)
    Mixture(tmp_path, context=32, seed=0)
    assert list((tmp_path / "work").glob("windows-*"))
    assert pedigree.verify(pedigree.tree(tmp_path)) == [], "plans are no part of the output"
    build_tokens(cfg, corpus, tokenizer, tmp_path, terminal)
    assert not (tmp_path / "work").exists()


def test_the_table_of_shares(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    stream = io.StringIO()
    shown = Terminal(console=Console(file=stream, width=140, highlight=False))
    cfg = TokensConfig.model_validate({"preset": "llama", "sources": {"code": "github", "tales": "books", "stdlib": "10%"}})
    build_tokens(cfg, corpus, tokenizer, tmp_path, shown)
    text = stream.getvalue()
    assert (
        text.count("45.0%") == 2 and "10.0%" in text and "of the mixture llama nothing stands for: commoncrawl (67.0%)" in text
    )
    assert build.mix_again(
        TokensConfig.model_validate({"sources": {"code": "2ep", "tales": 1, "stdlib": 1}}), corpus, tokenizer, tmp_path, shown
    )
    assert "2ep" in stream.getvalue()


def test_a_worker_imports_little() -> None:
    heavy = "torch pydantic rich transformers"
    code = (
        f"import herdbook.tokens.encode, herdbook.pool, sys; print([name for name in '{heavy}'.split() if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
