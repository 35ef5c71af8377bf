"""Philox4x32-10: random words by counter, so that word i of a stream needs no other word.

Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 5.1.
Status: checked (against the known-answer vectors of the authors' Random123 library).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

_ROUNDS = 10
_MULTIPLIER_0, _MULTIPLIER_2 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_LOW, _HIGH = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox4x32(counters_N4: Words, key: tuple[int, int]) -> Words:
    """Four random words for each 128-bit counter under a 64-bit key: uint32[N, 4]; least significant words first."""
    c0, c1, c2, c3 = counters_N4.astype(np.uint64).T
    k0, k1 = key
    for _ in range(_ROUNDS):
        product_0, product_2 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_2
        c0, c1, c2, c3 = (
            (product_2 >> _HIGH) ^ c1 ^ np.uint64(k0),
            product_2 & _LOW,
            (product_0 >> _HIGH) ^ c3 ^ np.uint64(k1),
            product_0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL_0) & 0xFFFFFFFF, (k1 + _WEYL_1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def words(num_words: int, key: int, upper: int = 0) -> Words:
    """The first words of the stream of a 64-bit key: word i is word i % 4 of counter i // 4 + upper * 2^64."""
    block = np.arange((num_words + 3) // 4, dtype=np.uint64)
    counters = np.empty((len(block), 4), np.uint32)
    counters[:, 0], counters[:, 1] = block & _LOW, block >> _HIGH
    counters[:, 2], counters[:, 3] = _halves(upper)
    return philox4x32(counters, _halves(key)).reshape(-1)[:num_words]


def uniform(word: Words) -> npt.NDArray[np.float32]:
    """Values in [0, 1): the upper 24 bits of each word times 2^-24."""
    value: npt.NDArray[np.float32] = (word >> np.uint32(8)).astype(np.float32)
    value *= np.float32(2.0**-24)
    return value


def _halves(word: int) -> tuple[int, int]:
    return word & 0xFFFFFFFF, word >> 32 & 0xFFFFFFFF
