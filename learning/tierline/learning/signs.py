"""Random signs that both ends of a message draw alike."""

from __future__ import annotations

import numpy as np

from tierline.core.rng import Key
from tierline.learning.compressor import Floats


def random_signs(key: Key, num_values: int) -> Floats:
    """+1 or -1, float32: sign i is bit i % 32 of word i // 32 of the stream, least significant first, 1 for -1."""
    words = key.bits((num_values + 31) // 32).astype("<u4")
    bits = np.unpackbits(words.view(np.uint8), count=num_values, bitorder="little")
    signs: Floats = np.float32(1) - np.float32(2) * bits.astype(np.float32)
    return signs
