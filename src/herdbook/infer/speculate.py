"""Guessing tokens ahead and checking them in one pass, so that a pass over the weights may give several tokens.

A guess is accepted with a probability that leaves the distribution of the text unchanged (Leviathan et al. 2023,
arXiv:2211.17192, section 2.3 and appendix A.1; Chen et al. 2023, arXiv:2302.01318): a token that a draft model drew from q is
kept with min(1, p/q), and else another is drawn from what p has above q. A token that was looked up in the text has q = 1, so
it is kept with probability p; that is done by drawing from p as ever and seeing whether the guess comes out, and so the seed's
text stays the same to the letter.

Looking up (Saxena 2023, "prompt lookup decoding"): what followed the last time the text had its last few tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from herdbook.infer.backend import Backend, Span
from herdbook.infer.blocks import BlockPool, Blocks
from herdbook.infer.config import Sampling
from herdbook.infer.sampling import Distribution, distribution, draw, uniform

LONGEST, SHORTEST = 3, 2  # tokens that must repeat for a look-up


@dataclass(frozen=True)
class Guess:
    """Tokens that may come next.

    Attributes:
        tokens: ids.
        drawn_from: the distribution that each was drawn from; None: they were not drawn.
    """

    tokens: list[int]
    drawn_from: list[Distribution] | None = None


@dataclass(frozen=True)
class Ahead:
    """A sequence to guess for.

    Attributes:
        key: which sequence it is; its ids only grow.
        ids: prompt and text.
        most: tokens to guess.
        sampling, generator: of the sequence.
    """

    key: Hashable
    ids: Sequence[int]
    most: int
    sampling: Sampling
    generator: torch.Generator


class Drafter(Protocol):
    """Guesses."""

    def guess(self, rows: Sequence[Ahead]) -> list[Guess]:
        """A guess for each sequence, perhaps empty."""

    def drop(self, key: Hashable) -> None:
        """A sequence is over."""


def verify(target: Distribution, guessed: int, source: Distribution | None, generator: torch.Generator) -> tuple[int, bool]:
    """The token at a guessed place, distributed as `target`, and whether the guess stood.

    Args:
        target: p.
        guessed: the guess.
        source: q, which it was drawn from; None: it was not drawn.
    """
    if source is None:
        token = draw(target, generator)
        return token, token == guessed
    if uniform(generator) * source.of(guessed) < target.of(guessed):
        return guessed, True
    return draw(_above(target, source), generator), False


def _above(target: Distribution, source: Distribution) -> Distribution:
    """What p has above q, scaled to a sum of 1; p itself where rounding leaves nothing."""
    places = np.searchsorted(source.ids, target.ids).clip(max=len(source.ids) - 1)
    theirs = np.where(source.ids[places] == target.ids, source.probabilities[places], 0.0)
    rest = (target.probabilities - theirs).clip(min=0)
    total = rest.sum()
    return Distribution(target.ids, rest / total) if total > 0 else target


class Lookup:
    """Guesses from the text itself."""

    def guess(self, rows: Sequence[Ahead]) -> list[Guess]:
        """See `Drafter`."""
        return [Guess(look_up(row.ids, row.most)) for row in rows]

    def drop(self, key: Hashable) -> None:
        """See `Drafter`; nothing is kept."""


def look_up(ids: Sequence[int], most: int) -> list[int]:
    """What followed the latest earlier place of the last three tokens, or of two; at most `most` tokens."""
    text = np.asarray(ids, dtype=np.int64)
    for size in range(LONGEST, SHORTEST - 1, -1):
        if len(text) <= size:
            continue
        same = np.ones(len(text) - size, dtype=bool)
        for place in range(size):
            same &= text[place : len(text) - size + place] == text[len(text) - size + place]
        found = np.flatnonzero(same)
        if len(found):
            after = int(found[-1]) + size
            return [int(token) for token in text[after : after + most]]
    return []


@dataclass
class _Read:
    """What the draft model has read of a sequence: tokens whose keys and values are in its blocks."""

    blocks: Blocks
    tokens: list[int] = field(default_factory=list)
    sure: int = 0


class DraftModel:
    """Guesses by a small model with keys and values of its own.

    Args:
        backend: what runs it.
        known: size of the tokenizer's vocabulary.
    """

    def __init__(self, backend: Backend, known: int | None = None) -> None:
        self._backend, self._known = backend, known
        self._pool = BlockPool(backend.blocks)
        self._read: OrderedDict[Hashable, _Read] = OrderedDict()

    def guess(self, rows: Sequence[Ahead]) -> list[Guess]:
        """See `Drafter`. Sequences for which there is not enough memory at once take turns."""
        guesses: dict[Hashable, Guess] = {row.key: Guess([]) for row in rows}
        waiting = [row for row in rows if row.most > 0]
        while waiting:
            part: list[Ahead] = []
            while waiting and self._reserve(waiting[0], [row.key for row in part]):
                part.append(waiting.pop(0))
            if part:
                guesses.update(zip((row.key for row in part), self._draw(part), strict=True))
            else:
                waiting.pop(0)  # too long for the memory as a whole
        return [guesses[row.key] for row in rows]

    def drop(self, key: Hashable) -> None:
        """See `Drafter`."""
        read = self._read.pop(key, None)
        if read is not None:
            read.blocks.release()

    def _reserve(self, row: Ahead, busy: list[Hashable]) -> bool:
        """Blocks for a sequence and its guess, if need be those of sequences that are not busy."""
        read = self._read.pop(row.key, None)
        if read is None:
            read = _Read(Blocks(self._pool))
            read.tokens = list(row.ids[: read.blocks.find(row.ids)])
            read.sure = len(read.tokens)
        self._read[row.key] = read
        same = min(read.sure, len(row.ids) - 1)
        while same < min(len(read.tokens), len(row.ids) - 1) and read.tokens[same] == row.ids[same]:
            same += 1
        del read.tokens[same:]
        while read.blocks.own(len(read.tokens), len(row.ids) + row.most - 1) is None:
            other = next((key for key in self._read if key != row.key and key not in busy), None)
            if other is None:
                self.drop(row.key)
                return False
            self.drop(other)
        return True

    def _draw(self, rows: list[Ahead]) -> list[Guess]:
        tokens: list[list[int]] = [[] for _ in rows]
        sources: list[list[Distribution]] = [[] for _ in rows]
        going = list(range(len(rows)))
        while going:
            spans = []
            for place in going:
                read, text = self._read[rows[place].key], [*rows[place].ids, *tokens[place]]
                new = text[len(read.tokens) :]
                spans.append(Span(new, len(read.tokens), read.blocks.table, (len(new) - 1,)))
                read.tokens, read.sure = text, len(rows[place].ids)
            logits_WV = self._backend.run(spans)[:, : self._known].cpu().numpy()
            for place, row_V in zip(going, logits_WV, strict=True):
                row = rows[place]
                choices = distribution(row_V, row.sampling)
                greedy = row.sampling.temperature == 0
                tokens[place].append(int(choices.ids[0]) if greedy else draw(choices, row.generator))
                sources[place].append(choices)
                self._read[row.key].blocks.tell(row.ids, len(row.ids))
            going = [place for place in going if len(tokens[place]) < rows[place].most]
        return [Guess(*pair) for pair in zip(tokens, sources, strict=True)]
