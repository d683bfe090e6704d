"""MinHash signatures of the word 3-shingles of texts, for a whole batch at a time.

A word is hashed once (BLAKE2b-64), a shingle is a sum of three multiplied words put through the finisher of
MurmurHash3, and its 128 values are upper halves of products with odd numbers (M. Dietzfelbinger et al., "A
reliable randomized algorithm for the closest-pair problem", 1997).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np

from vecferry.records.vectors import Array

PERMUTATIONS = 128
_SHINGLE = 3
_WORDS_AT_ONCE = 4096
_WORDS_KNOWN = 1 << 18

_random = np.random.default_rng(1)
_BY_PLACE, _FACTORS, _ADDENDS = (
    _random.integers(0, 2**64, size, dtype=np.uint64) | np.uint64(1)
    for size in (_SHINGLE, PERMUTATIONS, PERMUTATIONS)
)


def signatures(texts: Sequence[Sequence[str]]) -> Array:
    """uint32 ``(n, 128)`` of texts given as their words; zeros where there are none.

    A text of one or two words is one shingle.
    """
    made = np.zeros((len(texts), PERMUTATIONS), dtype=np.uint32)
    rows = [row for row, words in enumerate(texts) if words]
    start = 0
    while start < len(rows):
        stop, size = start, 0
        while stop < len(rows) and (stop == start or size < _WORDS_AT_ONCE):
            size += len(texts[rows[stop]])
            stop += 1
        made[rows[start:stop]] = _least([texts[row] for row in rows[start:stop]])
        start = stop
    return made


def scrambled(keys: Array) -> Array:
    """Every bit of a uint64 spread over all: the finisher of MurmurHash3 (A. Appleby, public domain)."""
    keys = (keys ^ (keys >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    keys = (keys ^ (keys >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    spread: Array = keys ^ (keys >> np.uint64(33))
    return spread


def _least(texts: list[Sequence[str]]) -> Array:
    """The least value of each text's shingles under each of the 128 functions."""
    lengths = np.array([len(words) for words in texts])
    hashes = np.fromiter((_word(word) for words in texts for word in words), np.uint64, int(lengths.sum()))
    ends = np.cumsum(lengths)
    left = np.repeat(ends, lengths) - np.arange(len(hashes))  # words from here to the text's end
    keys = hashes * _BY_PLACE[0]
    for place in range(1, _SHINGLE):
        later = np.where(left[:-place] > place, hashes[place:], 0) if len(hashes) > place else hashes[:0]
        keys[: len(later)] += later * _BY_PLACE[place]
    whole = (left >= _SHINGLE) | (np.repeat(lengths, lengths) == left)  # the first one always counts
    counts = np.maximum(lengths - _SHINGLE + 1, 1)
    values = (scrambled(keys[whole])[:, None] * _FACTORS + _ADDENDS) >> np.uint64(32)
    return np.minimum.reduceat(values, np.cumsum(counts) - counts, axis=0).astype(np.uint32)


@lru_cache(maxsize=_WORDS_KNOWN)
def _word(word: str) -> int:
    return int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
