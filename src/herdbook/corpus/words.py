"""Words as 64-bit hashes, so that n-grams are integer arithmetic on arrays.

Filters and deduplication both ask about n-grams of words. A word is hashed once (xxh3, 64 bits); the hash of an n-gram is
made from the hashes of its words, h ← h·M + w modulo 2^64 with odd M, for all positions at once. Two different n-grams of one
document collide with a probability around n²/2^64, which is none.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xxhash

Array = npt.NDArray[np.uint64]
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_CACHE_LIMIT = 1 << 20


class _Hashes(dict[str, int]):
    def __missing__(self, word: str) -> int:
        value = self[word] = xxhash.xxh3_64_intdigest(word.encode("utf-8", "replace"))
        return value


_hashes = _Hashes()


def word_hashes(words: list[str]) -> Array:
    """A 64-bit hash a word, shape (len(words),)."""
    if len(_hashes) > _CACHE_LIMIT:
        _hashes.clear()
    return np.fromiter(map(_hashes.__getitem__, words), np.uint64, len(words))


def extend(ngrams: Array, words: Array) -> Array:
    """From the hashes of all n-grams (n−1 fewer than words) those of all (n+1)-grams, one fewer."""
    return ngrams[:-1] * _MULTIPLIER + words[len(words) - len(ngrams) + 1 :]


def ngram_hashes(words: Array, size: int) -> Array:
    """The hashes of all n-grams of `size` words; a shorter text is one n-gram of all its words."""
    grams = words
    for _ in range(min(size, len(words)) - 1):
        grams = extend(grams, words)
    return grams
