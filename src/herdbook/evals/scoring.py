"""What every task needs: a model behind a small interface, requests scored with progress, and standard errors.

A task turns documents or questions into requests `(context, continuation)` of token ids; the answer to a request is the sum of
log p of the continuation in nats and whether greedy decoding would have written it. How requests are batched is the engine's
affair and does not change the scores. Tasks see a model only as a `Subject`, so a test can hand them any scorer.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from herdbook.console import Terminal

Request = tuple[list[int], list[int]]
_CHUNK_TOKENS = 16_384  # requests handed to the engine at once, so that progress moves every few seconds


class Scorer(Protocol):
    """The part of an inference engine that tasks use to score text."""

    def loglikelihoods(self, requests: list[Request], /) -> list[tuple[float, bool]]:
        """The sum of log p (nats) of each continuation after its context, and whether it is what greedy decoding gives."""


class Writer(Protocol):
    """The part of an inference engine that writes texts."""

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sequence[Any], /) -> Sequence[Any]:
        """A completion for each prompt, each with its own settings."""


class TextCoder(Protocol):
    """The part of a tokenizer that tasks use."""

    @property
    def bos_id(self) -> int | None:
        """The id that stands before a document, if there is one."""

    @property
    def eos_id(self) -> int | None:
        """The id that ends a document, if there is one."""

    @property
    def chat_template(self) -> str | None:
        """The chat template of the model, if it has one."""

    def encode(self, text: str, /) -> list[int]:
        """The ids of a text, without special tokens added."""

    def encode_document(self, text: str, /) -> list[int]:
        """The ids of a document, as training shards hold it."""


@dataclass(frozen=True)
class Subject:
    """A model under evaluation.

    Attributes:
        name: what the results call it.
        scorer: gives log-likelihoods.
        tokenizer: turns text into the model's ids.
        context: the most tokens the model reads at once.
        chat: whether questions are put in the chat format.
        writer: writes texts; None where only scores are wanted.
        identity: what tells the model from another of the same name, as the hash of its weights.
    """

    name: str
    scorer: Scorer
    tokenizer: TextCoder
    context: int
    chat: bool
    writer: Writer | None = None
    identity: str = ""

    @property
    def separator(self) -> list[int]:
        """The id that stands before every document in training: begin-of-sequence, else end-of-sequence, else none."""
        tokenizer = self.tokenizer
        found = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
        return [] if found is None else [found]


def score(subject: Subject, requests: Sequence[Request], terminal: Terminal, title: str) -> list[tuple[float, bool]]:
    """Answer all requests, in their order.

    They go to the engine longest first, so that padding is small and memory peaks early, and those with the same context
    together, so that it can read that once.
    """
    longest: dict[tuple[int, ...], int] = {}
    for request in requests:
        context = tuple(request[0])
        longest[context] = max(longest.get(context, 0), _length(request))

    def place(index: int) -> tuple[int, tuple[int, ...], int, int]:
        context = tuple(requests[index][0])
        return -longest[context], context, -_length(requests[index]), index

    order = sorted(range(len(requests)), key=place)
    answers: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
    with terminal.progress(f"{subject.name}: {title}", sum(map(_length, requests))) as progress:
        for chunk in _chunks(order, requests):
            batch = [requests[index] for index in chunk]
            for index, answer in zip(chunk, subject.scorer.loglikelihoods(batch), strict=True):
                answers[index] = (float(answer[0]), bool(answer[1]))
            progress.advance(sum(map(_length, batch)), "tokens")
    return answers


def _length(request: Request) -> int:
    return len(request[0]) + len(request[1])


def _chunks(order: Sequence[int], requests: Sequence[Request]) -> list[list[int]]:
    chunks: list[list[int]] = []
    room = 0
    for index in order:
        if not chunks or room <= 0:
            chunks.append([])
            room = _CHUNK_TOKENS
        chunks[-1].append(index)
        room -= _length(requests[index])
    return chunks


def draw_key(seed: int, *parts: str) -> bytes:
    """A key to sort by that draws the same things on every machine, whatever the order they come in."""
    return hashlib.blake2b("\0".join((str(seed), *parts)).encode(), digest_size=12).digest()


def accuracy(correct: Sequence[bool]) -> dict[str, float]:
    """The share that is correct, and its standard error sqrt(p(1 − p)/(n − 1)), left out for fewer than two answers."""
    share = sum(correct) / len(correct)
    if len(correct) < 2:
        return {"value": share}
    return {"value": share, "stderr": math.sqrt(share * (1 - share) / (len(correct) - 1))}


def ratio_stderr(
    numerators: Sequence[float], denominators: Sequence[float], seed: int, *, resamples: int = 1000
) -> float | None:
    """The standard error of sum(numerators) / sum(denominators) over documents, by bootstrap; None for fewer than two.

    The draw depends on `seed` alone, so the figure is the same on every run.
    """
    if len(numerators) < 2:
        return None
    rng = np.random.default_rng(seed)
    weights_RN = rng.multinomial(len(numerators), np.full(len(numerators), 1 / len(numerators)), size=resamples)
    ratios_R: Any = (weights_RN @ np.asarray(numerators)) / (weights_RN @ np.asarray(denominators))
    return float(ratios_R.std(ddof=1))
