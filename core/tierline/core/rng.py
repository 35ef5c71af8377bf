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

from tierline.kernels.numpy import philox
from tierline.kernels.numpy.philox import Words, philox4x32

__all__ = ["Key", "philox4x32"]


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
        key, upper = self._seed
        return philox.words(n, key, upper)

    def uniform(self, n: int) -> npt.NDArray[np.float32]:
        """The first `n` values in [0, 1), each the upper 24 bits of a word times 2^-24: float32[n]."""
        return philox.uniform(self.bits(n))

    def permutation(self, n: int) -> npt.NDArray[np.int64]:
        """0..n-1 in the order of the first `n` words, equal words in the order of their place: int64[n]."""
        order: npt.NDArray[np.int64] = np.argsort(self.bits(n), kind="stable").astype(np.int64)
        return order

    def child(self, name: str) -> Key:
        """Another stream, named below this one."""
        return replace(self, tensor=f"{self.tensor}/{name}")

    @cached_property
    def _seed(self) -> tuple[int, int]:
        def text(value: str) -> bytes:
            raw = value.encode()
            return struct.pack("<I", len(raw)) + raw

        head = text(self.run) + struct.pack("<q", self.round)
        canonical = head + text(self.sender) + text(self.receiver) + text(self.tensor)
        key, upper = struct.unpack("<2Q", hashlib.blake2b(canonical, digest_size=16).digest())
        return key, upper
