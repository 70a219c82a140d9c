"""Documents to token shards: each document is the separator and its tokens, source by source, in the order of the corpus.

A task is one row group of one parquet file. Worker processes read and encode tasks by themselves, the parent only appends
what comes back in the order of the tasks; so the shards are the same bytes for any number of workers, and only a few row
groups are in memory. Processes, not the library's threads: with an encoder of its own a process shares nothing, and turning
ids into arrays is spread over the cores as well. `index.json` is written last: it says what is in the shards, and which
tokenizer made them.
"""

from __future__ import annotations

import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from herdbook import pedigree
from herdbook.console import Terminal
from herdbook.documents import document_files
from herdbook.errors import UserError
from herdbook.files import remove_partials, require_space, sha256_file, write_json
from herdbook.pool import Pool
from herdbook.tokens.config import TokensConfig
from herdbook.tokens.mixture import left_out, resolve
from herdbook.tokens.packing import PLANS
from herdbook.tokens.sample import check_sources
from herdbook.tokens.shards import DOCS_SUFFIX, INDEX, VERSION, Piece, SourceWriter
from herdbook.tokens.source import read_index
from herdbook.tokens.tokenizer import TOKENIZER, load_encoder, separator_id
from herdbook.units import human_bytes, human_count

BATCH_ROWS = 256
BYTES_PER_WORKER = 4_000_000  # a process takes about a second to start; less text than this is encoded sooner than that


@dataclass(frozen=True)
class Task:
    """One row group of one parquet file."""

    path: Path
    row_group: int
    bytes: int


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
        vocab_size = 1 + max(load_encoder(tokenizer).get_vocab(with_added_tokens=True).values())
        encode = Encode(tokenizer, separator_id(tokenizer), _dtype(cfg, vocab_size), _chosen(cfg, corpus, terminal))
        tasks = _tasks(corpus)
        total = sum(task.bytes for task in tasks)
        require_space(out, int(total * np.dtype(encode.dtype).itemsize / 2.5), purpose="the token shards")
        with ExitStack() as stack:
            writers: dict[str, SourceWriter] = {}
            progress = stack.enter_context(terminal.progress("encoding documents", total))
            for task, pieces in zip(tasks, _encode_all(encode, tasks, workers), strict=True):
                for piece in pieces:
                    if piece.source not in writers:
                        writer = SourceWriter(out, piece.source, encode.dtype, cfg.shard_tokens)
                        writers[piece.source] = stack.enter_context(writer)
                    writers[piece.source].add(piece)
                progress.advance(task.bytes)
        sources = {name: writers[name].as_dict() for name in sorted(writers)}
        _show(cfg, sources, terminal)
        index = {"version": VERSION, "dtype": encode.dtype, "vocab_size": vocab_size, "separator_id": encode.separator,
                 "tokenizer_sha256": sha256_file(tokenizer / TOKENIZER), "mixture": cfg.mixture(), "sources": sources}  # fmt: skip
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
        with _open(path) as file:
            present.update(file.read(columns=["source"]).column("source").to_pylist())
    if not present:
        raise UserError("the corpus holds no documents", where=corpus)
    names = cfg.names if cfg.names is not None else list(present)
    check_sources(names, present, key="tokens.sources")
    for stage in cfg.curriculum:
        check_sources(stage.sources, present, key="tokens.curriculum")
    without = sorted(set(present) - set(names))
    if without:
        terminal.say(f"left out, as tokens.sources does not name them: {', '.join(without)}")
    return frozenset(names)


def _open(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise UserError(f"this is not a whole parquet file ({error})", where=path, todo="write it again") from error
    missing = [name for name in ("id", "text", "url", "source", "license") if name not in file.schema_arrow.names]
    if missing:
        file.close()
        raise UserError(
            f"the column {missing[0]!r} is missing", where=path, todo="`herdbook curate` writes all that are needed"
        )
    return file


def _tasks(corpus: Path) -> list[Task]:
    tasks = []
    for path in document_files(corpus):
        with _open(path) as file:
            column = file.metadata.schema.names.index("text")
            for group in range(file.metadata.num_row_groups):
                size = file.metadata.row_group(group).column(column).total_uncompressed_size
                tasks.append(Task(path, group, int(size)))
    return tasks


class Encode:
    """Encodes one task. A small description of the work; the tokenizer itself is loaded where it is used."""

    def __init__(self, tokenizer: Path, separator: int, dtype: str, sources: frozenset[str]) -> None:
        self.tokenizer, self.separator, self.dtype, self.sources = tokenizer, separator, dtype, sources
        self._encoder: Any = None

    def __call__(self, task: Task) -> list[Piece]:
        """The documents of a task by source, in order of first appearance. Raises UserError when the file is broken."""
        if self._encoder is None:
            self._encoder = load_encoder(self.tokenizer)
        pieces: dict[str, Piece] = {}
        parts: dict[str, list[npt.NDArray[Any]]] = {}
        columns = ["id", "text", "url", "source", "license"]
        try:
            with _open(task.path) as file:
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[task.row_group], columns=columns):
                    rows = [row for row in batch.to_pylist() if row["source"] in self.sources]
                    self._encode(task, rows, pieces, parts)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"this is not a whole parquet file ({error})", where=task.path, todo="write it again") from error
        for name, piece in pieces.items():
            piece.tokens = np.concatenate(parts[name])
        return list(pieces.values())

    def _encode(
        self, task: Task, rows: list[dict[str, Any]], pieces: dict[str, Piece], parts: dict[str, list[npt.NDArray[Any]]]
    ) -> None:
        by_source: dict[str, array[int]] = {}
        encoded = self._encoder.encode_batch_fast([row["text"] for row in rows], add_special_tokens=False)
        for row, found in zip(rows, encoded, strict=True):
            ids, name = found.ids, row["source"]
            piece = pieces.setdefault(name, Piece(name, np.empty(0)))
            piece.lengths.append(len(ids) + 1)
            piece.ids.append(row["id"])
            piece.urls.append(row["url"])
            piece.licenses.append(row["license"])
            piece.bytes += len(row["text"].encode())
            flat = by_source.setdefault(name, array("I"))  # half the time of a list that becomes an array
            flat.append(self.separator)
            flat.extend(ids)
        for name, flat in by_source.items():
            tokens = np.frombuffer(flat, dtype=np.uintc).astype(self.dtype)
            documents = sum(row["source"] == name for row in rows)
            if int(np.count_nonzero(tokens == self.separator)) != documents:
                raise UserError(
                    f"this tokenizer turns some text into its own separator (id {self.separator})", where=self.tokenizer,
                    todo="mark that token as special in tokenizer.json",
                )  # fmt: skip
            parts.setdefault(name, []).append(tokens)


def _encode_all(encode: Encode, tasks: list[Task], workers: int | None) -> Iterator[list[Piece]]:
    """The encoded tasks in their order, with a few in flight."""
    useful = 1 + sum(task.bytes for task in tasks) // BYTES_PER_WORKER
    count = max(1, min(workers or pedigree.cores(), len(tasks), useful))
    args = (encode.tokenizer, encode.separator, encode.dtype, encode.sources)
    pool: Pool[Task, list[Piece]] = Pool(Encode, args, count, _worker_died)
    yield from pool.map(tasks)


def _worker_died(task: Task, worker: Callable[[Task], list[Piece]]) -> list[Piece]:
    raise UserError("a worker process was ended from outside, most likely for lack of memory", where=task.path,
                    todo="run again with fewer workers")  # fmt: skip


def _show(cfg: TokensConfig, sources: dict[str, Any], terminal: Terminal) -> None:
    """The sources, and what the mixture makes of them; raises UserError for a mixture that these sources cannot be."""
    available = {name: row["tokens"] for name, row in sources.items()}
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
