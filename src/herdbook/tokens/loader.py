"""The loader: sequences from memory-mapped shards, in an order that is a pure function of (seed, number of the sequence).

There is no state: sequence 1,000,000 is found by arithmetic, so a run resumes exactly, and any number of ranks or workers,
each asking for its own sequences, sees the same global order. Which source a sequence is from follows from the mixture
(`mixture.py`, `order.py`), what lies in its window from the packing (`packing.py`), and the tokens from the shards
(`source.py`).

Legend: B sequences of a batch, T tokens of a sequence that go in, T1 = T + 1 with the one behind them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from herdbook.console import Terminal
from herdbook.errors import UserError
from herdbook.files import sha256_file
from herdbook.tokens.mixture import MixtureConfig, SourceRow, resolve, show_rows
from herdbook.tokens.order import Schedule
from herdbook.tokens.packing import BestFit, Concatenated, Packing, plans_folder
from herdbook.tokens.remote import cache_folder, open_tokens
from herdbook.tokens.shards import INDEX
from herdbook.tokens.source import AGAIN, Document, TokenSource
from herdbook.tokens.source import read_index as read_index

IGNORED = -100  # the target of a position that nothing is learned on, as torch's cross-entropy has it


@dataclass(frozen=True)
class Batch:
    """Sequences side by side.

    Attributes:
        tokens_BT: (B, T+1) int64; inputs are [:, :-1].
        targets_BT: (B, T) int64, the token to be predicted after each input; IGNORED (-100) where a sequence is filled up.
        documents_BT: (B, T+1) int32, which document of its row a token belongs to: 0, 1, 2, …
        sources_B: (B,) int16, index into `Mixture.sources`.
    """

    tokens_BT: npt.NDArray[np.int64]
    targets_BT: npt.NDArray[np.int64]
    documents_BT: npt.NDArray[np.int32]
    sources_B: npt.NDArray[np.int16]


@dataclass(frozen=True)
class Origin:
    """Where a sequence comes from.

    Attributes:
        number: of the sequence, counted from 0 through the run.
        documents: in the order of the sequence, one entry for each time one is entered.
    """

    number: int
    source: str
    documents: list[Document]


class Mixture:
    """All sources of a tokens folder, mixed.

    Args:
        folder: a tokens folder, or the address of one (`s3://…`, `https://…`), which is read through a cache.
        context: T, the tokens a model sees at once; a sequence has one more.
        seed: chooses the order.
        weights: amounts by source in place of the mixture that the folder names; sources that are not named are left out.
        tokenizer: a tokenizer's folder; refused when the shards were made with another one.
        length: tokens the run trains on; needed where epochs, or milestones in per cent, are given.
        verify: hash every shard and compare with the index.

    Attributes:
        sources: names, in the order of `Batch.sources_B`.
        weights: share of each source at the beginning; `stages` has all, with the tokens after which they begin.

    Raises UserError when the folder, its index, a shard or a weight is wrong.
    """

    def __init__(
        self, folder: Path | str, *, context: int, seed: int, weights: Mapping[str, float | str] | None = None,
        tokenizer: Path | None = None, length: int | None = None, verify: bool = False,
    ) -> None:  # fmt: skip
        if context < 1:
            raise ValueError(f"context must be positive, not {context}")
        folder, files = open_tokens(folder)
        index = read_index(folder)
        if tokenizer is not None:
            _same_tokenizer(index, folder, tokenizer)
        self.context, self.seed = context, seed
        self.separator, self.vocab_size = int(index["separator_id"]), int(index["vocab_size"])
        cfg = _config(index, weights, folder)
        tokens = {name: int(row["tokens"]) for name, row in index["sources"].items() if row["tokens"]}
        chosen = [name for name in tokens if cfg.names is None or name in cfg.names]
        files.require(sum(tokens[name] for name in chosen) * np.dtype(index["dtype"]).itemsize)
        rings = {name: TokenSource(files, name, index["sources"][name], index["dtype"]) for name in chosen}
        if verify:
            for ring in rings.values():
                ring.verify()
        plans = plans_folder(folder, cache_folder())
        packings = {name: _pack(cfg.packing, ring, context, seed, plans) for name, ring in rings.items()}
        self.stages = resolve(cfg, tokens | {name: packing.room for name, packing in packings.items()}, length)
        self.sources = [name for name in chosen if any(name in stage.shares for stage in self.stages)]
        self.weights = self.stages[0].shares
        self._rings = [rings[name] for name in self.sources]
        self._packings = [packings[name] for name in self.sources]
        self.tokens = sum(ring.tokens for ring in self._rings)
        self._schedule = Schedule(self._stage_weights(), seed)

    def _stage_weights(self) -> list[tuple[int, list[float]]]:
        """By number of the first sequence; a stage shorter than a sequence is none."""
        stages: dict[int, list[float]] = {}
        for stage in self.stages:
            stages[-(-stage.start // self.context)] = [stage.shares.get(name, 0.0) for name in self.sources]
        return list(stages.items())

    def sequence(self, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], int]:
        """Sequence number `index`: tokens (T+1,) int64, document numbers (T+1,) int32, and the index of its source."""
        batch = self.sequences([index])
        return batch.tokens_BT[0], batch.documents_BT[0], int(batch.sources_B[0])

    def batch(self, step: int, batch_size: int) -> Batch:
        """The `batch_size` sequences of a step, counted from 0."""
        return self.sequences(self._of_step(step, batch_size))

    def sequences(self, indices: Iterable[int]) -> Batch:
        """Any sequences by their numbers, side by side: what a rank or a micro-batch takes of a step."""
        numbers = list(indices)
        tokens_BT = np.full((len(numbers), self.context + 1), self.separator, dtype=np.int64)
        targets_BT = np.full((len(numbers), self.context), IGNORED, dtype=np.int64)
        begins_BT = np.zeros((len(numbers), self.context + 1), dtype=np.bool_)
        sources_B = np.empty(len(numbers), dtype=np.int16)
        for row, index in enumerate(numbers):
            source, epoch, turn = self._locate(index)
            end = 0
            for start, length in self._packings[source].pieces(epoch, turn):
                begin, end = end, end + length
                part = self._rings[source].read(start, length + 1)
                tokens_BT[row, begin : end + 1] = part
                targets_BT[row, begin:end] = part[1:]
                begins_BT[row, begin] = True
            begins_BT[row, : end + 1] |= tokens_BT[row, : end + 1] == self.separator
            sources_B[row] = source
        if tokens_BT.size and tokens_BT.max() >= self.vocab_size:
            raise UserError(f"the shards hold the id {tokens_BT.max()}, and the vocabulary has {self.vocab_size}", todo=AGAIN)
        begins_BT[:, 0] = False
        return Batch(tokens_BT, targets_BT, np.cumsum(begins_BT, axis=1, dtype=np.int32), sources_B)

    def trace(self, index: int) -> list[tuple[str, str | None]]:
        """(id, url) of the documents in a sequence; entry d is the document that the sequence numbers d."""
        return [(document.id, document.url) for document in self.origin(index).documents]

    def origin(self, index: int) -> Origin:
        """The source and the documents of a sequence, with their licences and how many tokens are from each."""
        source, epoch, turn = self._locate(index)
        ring, pieces = self._rings[source], self._packings[source].pieces(epoch, turn)
        # A window that was cut from a row of documents is followed by one token more, which may be the first of the next.
        more = isinstance(self._packings[source], Concatenated)
        documents = [document for start, length in pieces for document in ring.documents(start, length + more)]
        return Origin(index, ring.name, documents)

    def documents_of(self, step: int, batch_size: int) -> list[Origin]:
        """Where the sequences of a step come from."""
        return [self.origin(index) for index in self._of_step(step, batch_size)]

    def counts(self, sequences: int) -> dict[str, int]:
        """How many of the first `sequences` sequences come from each source."""
        return dict(zip(self.sources, self._schedule.counts(sequences).tolist(), strict=True))

    def epochs(self, sequences: int) -> dict[str, float]:
        """How often the first `sequences` sequences go through each source."""
        counts = self.counts(sequences)
        rooms = zip(self.sources, self._packings, strict=True)
        return {name: counts[name] * self.context / packing.room for name, packing in rooms}

    @property
    def padding(self) -> dict[str, float]:
        """Share of each source's windows that is filled up, and nothing is learned on."""
        return {name: packing.padding for name, packing in zip(self.sources, self._packings, strict=True)}

    def rows(self, sequences: int) -> list[SourceRow]:
        """What the first `sequences` sequences take of each source."""
        counts, epochs = self.counts(sequences), self.epochs(sequences)
        return [
            SourceRow(
                ring.name, tuple(stage.shares.get(ring.name, 0.0) for stage in self.stages), ring.tokens,
                counts[ring.name] * self.context, epochs[ring.name],
            )
            for ring in self._rings
        ]  # fmt: skip

    def show(self, sequences: int, terminal: Terminal) -> None:
        """Print what the first `sequences` sequences take of each source, and warn of too many repeats."""
        show_rows(self.rows(sequences), terminal)
        padding = [f"{name} {share:.2%}" for name, share in self.padding.items() if share > 0]
        if padding:
            terminal.say(f"padding, on which nothing is learned: {', '.join(padding)}", style="dim")

    def _of_step(self, step: int, batch_size: int) -> range:
        if step < 0 or batch_size < 1:
            raise ValueError(f"no such batch: step {step}, batch_size {batch_size}")
        return range(step * batch_size, (step + 1) * batch_size)

    def _locate(self, index: int) -> tuple[int, int, int]:
        """The source of a sequence, its epoch there, and the turn within that."""
        if index < 0:
            raise ValueError(f"sequences are counted from 0, not {index}")
        source, turn = self._schedule.turn(index)
        epoch, turn = divmod(turn, self._packings[source].windows)
        return source, epoch, turn


def _config(index: Mapping[str, Any], weights: Mapping[str, float | str] | None, folder: Path) -> MixtureConfig:
    """The mixture that a folder names, or with its packing the amounts in place of it."""
    stored = index["mixture"]
    try:
        if weights is None:
            return MixtureConfig.model_validate(stored)
        kept = {"preset": stored.get("preset"), "packing": stored.get("packing", "concat")}
        return MixtureConfig.model_validate({**kept, "sources": dict(weights)})
    except ValidationError as error:
        words = "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
        raise UserError(f"the mixture is wrong: {words}", where=folder / INDEX if weights is None else "weights") from error


def _pack(packing: str, source: TokenSource, context: int, seed: int, plans: Path) -> Packing:
    if packing == "best_fit":
        return BestFit(source, context, seed, plans)
    return Concatenated(source, context, seed)


def _same_tokenizer(index: Mapping[str, Any], folder: Path, tokenizer: Path) -> None:
    path = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    if not path.is_file():
        raise UserError("there is no tokenizer here", where=path)
    if sha256_file(path) != index["tokenizer_sha256"]:
        raise UserError("these shards were made with another tokenizer", where=folder,
                        todo=f"`herdbook tokens` makes them again with {path}")  # fmt: skip
