"""Documents to token shards: each document is the separator and its tokens, source by source, in the order of the corpus.

A task is a row group of a parquet file, or a part of one that holds more than a few megabytes, so that there is work for all.
Worker processes read and encode tasks by themselves, the parent only appends what comes back in the order of the tasks; so the
shards are the same bytes for any number of workers, and only a few tasks are in memory. Processes, not the library's threads:
with an encoder of its own a process shares nothing, and turning ids into arrays is spread over the cores as well. `index.json`
is written last: it says what is in the shards, and which tokenizer made them.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from herdbook import pedigree
from herdbook.console import Terminal
from herdbook.documents import document_files
from herdbook.errors import UserError
from herdbook.files import remove_partials, require_space, sha256_file, write_json
from herdbook.pool import Pool
from herdbook.tokens.config import TokensConfig
from herdbook.tokens.encode import Encode, Task, open_documents, tasks_of
from herdbook.tokens.mixture import left_out, require_sources, resolve
from herdbook.tokens.packing import PLANS
from herdbook.tokens.sample import check_sources
from herdbook.tokens.shards import DOCS_SUFFIX, INDEX, VERSION, Piece, SourceWriter
from herdbook.tokens.source import read_index
from herdbook.tokens.tokenizer import TOKENIZER, load_encoder, separator_id
from herdbook.units import human_bytes, human_count

BYTES_PER_WORKER = 4_000_000  # a process takes about a second to start; less text than this is encoded sooner than that


def build_tokens(
    cfg: TokensConfig, corpus: Path, tokenizer: Path, out: Path, terminal: Terminal, *, workers: int | None = None
) -> None:
    """Encode the training documents of a corpus into memory-mapped shards in `out`.

    Args:
        workers: how many processes encode (default: the cores this process may use); the shards are the same for any number.

    Raises UserError when the corpus lacks a source that is named, a file is broken, or `cfg.dtype` is too small.
    """
    with pedigree.record(out, "tokens", cfg.model_dump(mode="json")) as rec:
        rec.add_input(corpus, "corpus")
        rec.add_input(tokenizer, "tokenizer")
        _clear(out)
        encoder = load_encoder(tokenizer)
        vocab_size = 1 + max(encoder.get_vocab(with_added_tokens=True).values())
        separator, dtype = separator_id(tokenizer), _dtype(cfg, vocab_size)
        work = (encoder.to_str(), tokenizer, separator, dtype, _chosen(cfg, corpus, terminal))
        tasks = tasks_of(corpus)
        total = sum(task.bytes for task in tasks)
        require_space(out, int(total * np.dtype(dtype).itemsize / 2.5), purpose="the token shards")
        with ExitStack() as stack:
            writers: dict[str, SourceWriter] = {}
            progress = stack.enter_context(terminal.progress("encoding documents", total))
            for task, pieces in zip(tasks, _encode_all(work, tasks, workers), strict=True):
                for piece in pieces:
                    if piece.source not in writers:
                        writer = SourceWriter(out, piece.source, dtype, cfg.shard_tokens)
                        writers[piece.source] = stack.enter_context(writer)
                    writers[piece.source].add(piece)
                progress.advance(task.bytes)
        sources = {name: writers[name].as_dict() for name in sorted(writers)}
        _show(cfg, sources, terminal)
        index = {
            "version": VERSION, "dtype": dtype, "vocab_size": vocab_size, "separator_id": separator,
            "tokenizer_sha256": sha256_file(tokenizer / TOKENIZER), "mixture": cfg.mixture(), "sources": sources,
        }  # fmt: skip
        write_json(out / INDEX, index)
        for row in sources.values():
            rec.add_license(row["license"])
        if pedigree.exists(tokenizer):
            rec.inherit_licenses(tokenizer)
        for key in ("tokens", "documents", "bytes"):
            rec.counts[key] = sum(row[key] for row in sources.values())


def mix_again(cfg: TokensConfig, corpus: Path, tokenizer: Path, out: Path, terminal: Terminal) -> bool:
    """Put another mixture into a folder whose shards are what `cfg` would make; nothing is encoded again.

    Returns whether that is all there was to do; False leaves everything as it was. Raises UserError for a mixture that the
    shards are not enough for.
    """
    if not pedigree.exists(out):
        return False
    manifest = pedigree.read(out)
    try:
        before = TokensConfig.model_validate(manifest["config"])
    except ValidationError:
        return False
    inputs = [(corpus, "corpus"), (tokenizer, "tokenizer")]
    same = before.encoding() == cfg.encoding() and pedigree.is_current(out, manifest["config"], inputs, besides=[INDEX])
    if not same:
        return False
    index = read_index(out)
    _show(cfg, index["sources"], terminal)
    # The index first: with the pedigree still the old one, a next run finds that there is a mixture to be put in.
    write_json(out / INDEX, index | {"mixture": cfg.mixture()})
    pedigree.amend(out, cfg.model_dump(mode="json"), [out / INDEX])
    return True


def _clear(out: Path) -> None:
    """Take away what an earlier run left, the index first, so that no shard is ever read under an index that is not its own."""
    remove_partials(out)
    (out / INDEX).unlink(missing_ok=True)
    shutil.rmtree(out / PLANS, ignore_errors=True)
    for docs in out.glob(f"*-[0-9][0-9][0-9][0-9][0-9]{DOCS_SUFFIX}"):
        docs.with_name(docs.name.removesuffix(DOCS_SUFFIX) + ".bin").unlink(missing_ok=True)
        docs.unlink()


def _dtype(cfg: TokensConfig, vocab_size: int) -> str:
    if cfg.dtype == "uint16" and vocab_size > 2**16:
        raise UserError(f"uint16 holds ids up to 65,535 and this tokenizer has {vocab_size:,}", where="tokens.dtype",
                        todo="set tokens.dtype=auto")  # fmt: skip
    return ("uint16" if vocab_size <= 2**16 else "uint32") if cfg.dtype == "auto" else cfg.dtype


def _chosen(cfg: TokensConfig, corpus: Path, terminal: Terminal) -> frozenset[str]:
    """The sources that are encoded."""
    present: Counter[str] = Counter()
    for path in document_files(corpus):
        with open_documents(path) as file:
            present.update(file.read(columns=["source"]).column("source").to_pylist())
    if not present:
        raise UserError("the corpus holds no documents", where=corpus)
    names = cfg.names if cfg.names is not None else list(present)
    check_sources(names, present, key="tokens.sources")
    require_sources(cfg, present)
    without = sorted(set(present) - set(names))
    if without:
        terminal.say(f"left out, as tokens.sources does not name them: {', '.join(without)}")
    return frozenset(names)


def _encode_all(work: tuple[Any, ...], tasks: list[Task], workers: int | None) -> Iterator[list[Piece]]:
    """The encoded tasks in their order, with a few in flight."""
    useful = 1 + sum(task.bytes for task in tasks) // BYTES_PER_WORKER
    count = max(1, min(workers or pedigree.cores(), len(tasks), useful))
    pool: Pool[Task, list[Piece]] = Pool(Encode, work, count, _worker_died)
    yield from pool.map(tasks)


def _worker_died(task: Task, worker: Callable[[Task], list[Piece]]) -> list[Piece]:
    raise UserError("a worker process was ended from outside, most likely for lack of memory", where=task.path,
                    todo="run again with fewer workers")  # fmt: skip


def _show(cfg: TokensConfig, sources: dict[str, Any], terminal: Terminal) -> None:
    """The sources, and what the mixture makes of them; raises UserError for a mixture that these sources cannot be."""
    available = {name: row["tokens"] for name, row in sources.items()}
    require_sources(cfg, available)
    terminal.table(
        ["source", "documents", "text", "tokens", "bytes per token", "share of training", "licence"],
        [
            (
                name, f"{row['documents']:,}", human_bytes(row["bytes"]), human_count(row["tokens"]),
                f"{row['bytes'] / row['tokens']:.2f}", share, row["license"],
            )
            for (name, row), share in zip(sources.items(), _shares(cfg, available), strict=True)
        ],
    )  # fmt: skip
    if missing := left_out(cfg, available):
        terminal.say(f"of the mixture {cfg.preset} nothing stands for: {', '.join(missing)}")


def _shares(cfg: TokensConfig, available: dict[str, int]) -> list[str]:
    """The share of each source; as it was written where only the length of the run says what that is."""
    tables = [cfg.sources or {}, *(stage.sources for stage in cfg.curriculum)]
    if cfg.needs_length:
        return [" → ".join(str(table.get(name, "0")) for table in tables) for name in available]
    stages = resolve(cfg, available, None)
    return [" → ".join(f"{stage.shares.get(name, 0.0):.1%}" for stage in stages) for name in available]
