"""Samples into rows of one length: best-fit, so that little is padding, and each sample whole in its row.

Samples of an epoch are shuffled, taken by the thousand, sorted by length and put into the fullest row that still has room
(best-fit decreasing, as in Ding et al. 2024, "Fewer Truncations Improve Language Modeling"); the rows are shuffled again.
Each epoch is another order, all from the seed.

Shapes: R rows, T tokens a row that are inputs (a row holds T+1, the last only as a target).
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from herdbook.align.chat import Sample
from herdbook.train.losses import IGNORED

GROUP = 1024


def pack(lengths: Sequence[int], width: int, *, seed: int) -> list[list[int]]:
    """Rows of sample numbers, the lengths in a row adding up to at most `width`, every sample in exactly one row.

    Raises ValueError when a sample is longer than a row.
    """
    if any(length > width for length in lengths):
        raise ValueError(f"a sample is longer than a row of {width}")
    random = np.random.default_rng(seed)
    order = random.permutation(len(lengths)).tolist()
    rows: list[list[int]] = []
    for start in range(0, len(order), GROUP):
        rows += _best_fit(sorted(order[start : start + GROUP], key=lambda number: -lengths[number]), lengths, width)
    return [rows[number] for number in random.permutation(len(rows))]


def _best_fit(numbers: list[int], lengths: Sequence[int], width: int) -> list[list[int]]:
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (what is left, row), sorted
    for number in numbers:
        place = bisect.bisect_left(room, (lengths[number], -1))
        if place == len(room):
            rows.append([number])
            left, row = width - lengths[number], len(rows) - 1
        else:
            free, row = room.pop(place)
            rows[row].append(number)
            left = free - lengths[number]
        bisect.insort(room, (left, row))
    return rows


def collate(rows: Sequence[Sequence[Sample]], width: int, *, pad_id: int) -> dict[str, Tensor]:
    """Rows of samples as tensors (R, T) with T = width - 1: `tokens`, `documents` (numbers within the row) and `targets`.

    A target is `IGNORED` where the next token is not trained, belongs to another sample, or is padding.
    """
    tokens_RT = np.full((len(rows), width), pad_id, dtype=np.int64)
    documents_RT = np.zeros((len(rows), width), dtype=np.int32)
    targets_RT = np.full((len(rows), width), IGNORED, dtype=np.int64)
    for index, row in enumerate(rows):
        start = 0
        for number, sample in enumerate(row):
            end = start + len(sample.tokens)
            tokens_RT[index, start:end] = sample.tokens
            documents_RT[index, start:end] = number
            # The first token of a sample follows nothing, so nothing predicts it.
            learned = [token if trained else IGNORED for token, trained in zip(sample.tokens, sample.trained, strict=True)]
            targets_RT[index, start : end - 1] = learned[1:]
            start = end
        documents_RT[index, start:] = len(row)
    return {
        "tokens": torch.from_numpy(tokens_RT[:, :-1].copy()),
        "documents": torch.from_numpy(documents_RT[:, :-1].copy()),
        "targets": torch.from_numpy(targets_RT[:, :-1].copy()),
    }
