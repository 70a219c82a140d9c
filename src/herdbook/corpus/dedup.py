"""Exact and near-duplicates.

Exact: 128-bit hash of the words, whatever case, punctuation and spacing. Near: MinHash over word n-grams (Broder 1997), cut
into bands; documents that agree in a band are joined, and of each joined cluster one stays. A pair of Jaccard similarity s is
found with probability 1 − (1 − s^rows)^bands; with FineWeb's 14 bands of 8 rows a half at s ≈ 0.72 and 0.92 at s = 0.8.

Signatures are made in `minhash.py`; here they become keys and clusters.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import xxhash

from herdbook.corpus.config import MinHashConfig
from herdbook.corpus.words import Array

_FOLD_SEED = 0x666F6C64


def exact_key(text: str, words: list[str]) -> bytes:
    """16 bytes that are the same for texts of the same words; a text without any word is compared as it is."""
    return xxhash.xxh3_128_digest((" ".join(words) if words else text).encode())


@cache
def _factors(count: int) -> Array:
    return np.random.default_rng([_FOLD_SEED, 0x4D696E48]).integers(0, 2**64, count, np.uint64)


def band_keys(values: npt.NDArray[np.uint32] | None, cfg: MinHashConfig) -> Array:
    """One 64-bit key a band, shape (bands,); 0 stands for a text without signature.

    A band's rows are folded by a random linear map modulo 2^64: different rows share a key with a probability around 2^-32
    at the very worst (when they differ by a multiple of a high power of two) and 2^-64 as a rule.
    """
    if values is None:
        return np.zeros(cfg.bands, np.uint64)
    keys: Array = (values.reshape(cfg.bands, cfg.rows).astype(np.uint64) * _factors(cfg.rows)).sum(axis=1, dtype=np.uint64)
    keys[keys == 0] = 1
    return keys


def exact_duplicates(keys: list[bytes]) -> npt.NDArray[np.int64]:
    """For each document the index of the first one with the same key (itself, if it is the first)."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(key, index) for index, key in enumerate(keys)], np.int64)


def clusters(keys: Array) -> npt.NDArray[np.int64]:
    """For each document (rows of `keys`, shape (documents, bands)) the smallest index in its cluster.

    Documents that share a band's key are in one cluster, and so is what is linked through others.
    """
    parent = np.arange(len(keys), dtype=np.int64)
    for band in range(keys.shape[1]):
        column = keys[:, band]
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        same = np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] != 0))
        for left, right in zip(order[same].tolist(), order[same + 1].tolist(), strict=True):
            _join(parent, left, right)
    for index in range(len(parent)):
        parent[index] = _root(parent, index)
    return parent


def _root(parent: npt.NDArray[np.int64], index: int) -> int:
    while (up := int(parent[index])) != index:
        parent[index] = parent[up]
        index = up
    return index


def _join(parent: npt.NDArray[np.int64], left: int, right: int) -> None:
    """The smaller index becomes the root, so that the result does not depend on the order of joins."""
    a, b = _root(parent, left), _root(parent, right)
    if a != b:
        parent[max(a, b)] = min(a, b)


def choose(
    roots: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], keep: Literal["first", "longest"]
) -> npt.NDArray[np.int64]:
    """For each document the index of the one of its cluster that stays: the first, or the longest (ties: the first)."""
    if keep == "first":
        return roots
    order = np.lexsort((np.arange(len(roots)), -sizes, roots))
    leaders = order[np.concatenate(([True], roots[order][1:] != roots[order][:-1]))] if len(order) else order
    chosen = roots.copy()
    chosen[roots[leaders]] = leaders
    return chosen[roots]
