"""Randomness that every node and every language can reproduce: Philox4x32-10, a counter-based generator.

Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011, section 5.1. Counter-based means
that word i of a stream needs no other word, so NumPy, C and CUDA make the same stream in any order.
Status: checked (against the known-answer vectors of the authors' Random123 library).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, replace
from functools import cached_property

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


@dataclass(frozen=True)
class Key:
    """Names one stream of random words; equal keys give equal streams on every node.

    Canonical encoding: run, round, sender, receiver, tensor in this order; a string as its UTF-8 length (uint32) and
    bytes, the round as int64, all little-endian. BLAKE2b of it, 16 bytes, read as four little-endian uint32 words: the
    first two are the Philox key, the last two counter words 2 and 3. Counter words 0 and 1 count blocks of four words.
    """

    run: str
    round: int
    sender: str
    receiver: str
    tensor: str

    def bits(self, n: int) -> Words:
        """The first `n` words of the stream: uint32[n]."""
        k0, k1, c2, c3 = self._seed
        block = np.arange((n + 3) // 4, dtype=np.uint64)
        counters = np.empty((len(block), 4), np.uint32)
        counters[:, 0], counters[:, 1] = block & _LOW, block >> _HIGH
        counters[:, 2], counters[:, 3] = c2, c3
        return philox4x32(counters, (k0, k1)).reshape(-1)[:n]

    def uniform(self, n: int) -> npt.NDArray[np.float32]:
        """The first `n` values in [0, 1), each the upper 24 bits of a word times 2^-24: float32[n]."""
        value: npt.NDArray[np.float32] = (self.bits(n) >> np.uint32(8)).astype(np.float32)
        value *= np.float32(2.0**-24)
        return value

    def permutation(self, n: int) -> npt.NDArray[np.int64]:
        """0..n-1 in the order of the first `n` words, equal words in the order of their place: int64[n]."""
        order: npt.NDArray[np.int64] = np.argsort(self.bits(n), kind="stable").astype(np.int64)
        return order

    def child(self, name: str) -> Key:
        """Another stream, named below this one."""
        return replace(self, tensor=f"{self.tensor}/{name}")

    @cached_property
    def _seed(self) -> tuple[int, int, int, int]:
        def text(value: str) -> bytes:
            raw = value.encode()
            return struct.pack("<I", len(raw)) + raw

        head = text(self.run) + struct.pack("<q", self.round)
        canonical = head + text(self.sender) + text(self.receiver) + text(self.tensor)
        k0, k1, c2, c3 = struct.unpack("<4I", hashlib.blake2b(canonical, digest_size=16).digest())
        return k0, k1, c2, c3
