"""MinHash signatures of thousands of hashes for the price of some dozens.

RefinedWeb compares documents by 9,000 hashes of their word 5-grams. Evaluated one by one that is ten million multiplications a
document, 70 documents a second in numpy. Here a multiplier serves many hash functions. Function (g, j) on a 32-bit n-gram x is

    h(x) = v_g(x) − s_j mod 2^32,    v_g(x) = (a_g·x + c_g mod 2^64) >> 32,    s_j = ⌈j·2^32 / m⌉,  j = 0 … m−1

with random 64-bit a_g (odd) and c_g. v_g is multiply-shift (Dietzfelbinger 1996), strongly universal exactly and in wrapping
64-bit arithmetic: of the product of an odd a_g with x − y, which is not 0 and below 2^32, the bits 32 to 63 are uniform.
Subtracting a constant keeps that, so each of the functions is strongly universal. The minimum of h over a document is the
distance from s_j to the next v_g on the circle of 2^32: put every v_g into the bin [s_j, s_j+1), take the lowest of each bin,
and for an empty bin that of the next one. This is one permutation hashing (Li, Owen and Zhang 2012) with rotation (Shrivastava
and Li 2014), repeated for each multiplier, and gives the minima themselves, not approximations of them.

What is shared shows in the spread of the estimate only, see `estimate_error`. The rows of a band never share a multiplier, so
two texts agree in a band with a probability of J^rows. Bands share some, and in very short texts tend to agree together: of
pairs of 60 n-grams and J = 0.8, 0.96 were found, where 1 − (1 − J^rows)^bands is 0.98; from 1,000 n-grams on there is no
difference to be seen. With `multipliers: null` nothing is shared.

Random numbers come from xxh3, whose values are fixed by its specification: signatures are the same on every machine.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from herdbook.corpus.config import MinHashConfig
from herdbook.corpus.words import Array, ngram_hashes, word_hashes

Signature = npt.NDArray[np.uint32]

_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_WORD_CHARACTER = re.compile(r"\w")
# What is no letter, digit or underscore becomes a space; bytes above 127 are parts of characters that were looked at before.
_SPACED = bytes(code if code > 127 or _WORD_CHARACTER.match(chr(code)) else 32 for code in range(256))
_U32 = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_EMPTY = np.uint64(1 << 34)  # above all values, and above them once around the circle
_CELLS = 1 << 14  # values at a time: 128 KiB of them stay in a core's cache


def normalize(text: str) -> list[str]:
    r"""The words that n-grams are made of: `\w+` of the text in lower case, found three times as fast.

    Punctuation beyond ASCII is replaced character by character, of which a text has few different ones.
    """
    text = text.lower()
    for character in set(_NOT_ASCII.findall(text)):
        if not _WORD_CHARACTER.match(character):
            text = text.replace(character, " ")
    return text.encode("utf-8", "surrogatepass").translate(_SPACED).decode("utf-8", "surrogatepass").split()


def shingles(words: list[str], ngram: int) -> Array:
    """The n-grams of a text as 32-bit numbers (in 64-bit places); a shorter text is one n-gram of all its words."""
    grams = ngram_hashes(word_hashes(words), ngram)
    return (grams ^ (grams >> _U32)) & _LOW


class _Functions(NamedTuple):
    """a and c of shape (multipliers, 1), the starts s_j, and where the bins of each multiplier begin in a table of all."""

    a: Array
    c: Array
    starts: Array
    first_bins: npt.NDArray[np.int64]


def _random(purpose: str, seed: int, count: int) -> Array:
    return np.array([xxhash.xxh3_64_intdigest(f"{purpose}:{seed}:{index}".encode()) for index in range(count)], np.uint64)


@cache
def _functions(count: int, multipliers: int, seed: int) -> _Functions:
    shared = count // multipliers
    return _Functions(
        a=(_random("multiplier", seed, multipliers) | np.uint64(1))[:, None],
        c=_random("increment", seed, multipliers)[:, None],
        starts=np.array([-(-(j << 32) // shared) for j in range(shared)], np.uint64),
        first_bins=np.arange(multipliers, dtype=np.int64)[:, None] * shared,
    )


def signature(words: list[str], cfg: MinHashConfig, seed: int = 0) -> Signature | None:
    """The MinHash signature of a text's words, shape (bands × rows,); None for a text without words.

    Hash f is function (g, j) = (f mod multipliers, f div multipliers).
    """
    if not words:
        return None
    x = shingles(words, cfg.ngram)
    functions = _functions(cfg.num_perm, cfg.multipliers or cfg.num_perm, seed)
    shared = len(functions.starts)
    lowest = np.full(cfg.num_perm, _EMPTY, np.uint64)
    rows = max(1, _CELLS // len(x))
    for first in range(0, len(functions.a), rows):
        block = slice(first, first + rows)
        values = x * functions.a[block]
        values += functions.c[block]
        values >>= _U32
        bins = values * np.uint64(shared)
        bins >>= _U32
        places = bins.view(np.int64)
        places += functions.first_bins[block]
        np.minimum.at(lowest, places.ravel(), values.ravel())
    table = lowest.reshape(-1, shared)
    if (table == _EMPTY).any():
        table = _from_next_bins(table)
    return (table - functions.starts).astype(np.uint32).T.ravel()


def _from_next_bins(table: Array) -> Array:
    """What an empty bin lacks is the lowest value of the next full one, which may lie beyond the end of the circle."""
    twice = np.concatenate([table, table + (np.uint64(1) << _U32)], axis=1)
    nearest: Array = np.minimum.accumulate(twice[:, ::-1], axis=1)[:, ::-1]
    return nearest[:, : table.shape[1]]


def estimate_jaccard(left: Signature, right: Signature) -> float:
    """The share of hashes that two documents agree in."""
    return float((left == right).mean())


def estimate_error(similarity: float, cfg: MinHashConfig, ngrams: int) -> float:
    """The largest standard deviation of `estimate_jaccard` at a true similarity, for `ngrams` different ones in both documents.

    Of k independent functions it is sqrt(J(1−J)/k). Two of the m functions of a multiplier choose the same n-gram with a
    probability of at most 2/(ngrams + 1), and are otherwise correlated negatively: long texts have a smaller error than
    independent functions would give, texts of fewer n-grams than m a larger one.
    """
    shared = cfg.num_perm // (cfg.multipliers or cfg.num_perm)
    return float((similarity * (1 - similarity) / cfg.num_perm * (1 + 2 * (shared - 1) / (ngrams + 1))) ** 0.5)


def detection_probability(similarity: float, cfg: MinHashConfig) -> float:
    """How likely two documents of a Jaccard similarity share a band: 1 − (1 − similarity^rows)^bands."""
    return float(1 - (1 - similarity**cfg.rows) ** cfg.bands)
