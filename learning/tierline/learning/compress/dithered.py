"""Values on an even scale with subtractive dither: the error is uniform and does not depend on them (DQSG).

    q = round(x / s + u),   C(x) = s (q - u),   s = max_i |x_i| / M,   u uniform in [-1/2, 1/2), known to both ends
    E C(x) = x,   E |C(x) - x|^2 = d s^2 / 12, whatever x is

Abdi, Fekri, "Nested Dithered Quantization for Communication Reduction in Distributed Training", arXiv 1904.01197, and
"Reducing Communication Overhead via CEO in Distributed Training", SPAWC 2019. Deviations: blocks of `block` values
have scales of their own but share the dither: errors at equal places of two blocks are not independent of each other.
No clipping. Sends 2 M + 1 levels, and per block one number. Remembers nothing.
Status: checked (error s^2 / 12 and uncorrelated with the input, half of QSGD's on uniform data).
"""

from __future__ import annotations

import numpy as np

from tierline.core.errors import ConfigError
from tierline.core.rng import Key
from tierline.core.types import Array
from tierline.learning.compress._blocks import blocks
from tierline.learning.compress._message import (
    Stateless,
    array,
    checked,
    coded,
    coded_bytes,
    decoded,
    message_bytes,
    opened,
    seal,
)
from tierline.learning.compressor import Compressed, Factors, Floats, Promise


class DQSG(Stateless):
    """Compressor `dithered`. `steps` is M; `block` how many values share a scale, 0 for the whole tensor."""

    promise = Promise(unbiased=True)

    def __init__(self, *, steps: int = 1, block: int = 0) -> None:
        if not 1 <= steps <= 127 or block < 0:
            raise ConfigError(f"dithered: steps = {steps}, from 1 to 127; block = {block}, at least 0")
        self._steps, self._block = steps, block
        self._token = f"dithered:{2 * steps + 1}"

    def compress(self, key: Key, update: Array | Factors) -> Compressed:
        x = checked(key, update)
        flat = x.reshape(-1)
        payloads = {
            block.name: coded(
                flat[block.start : block.stop].reshape(block.num_rows, block.width),
                self._token,
                key=key.child(block.name),
            )
            for block in blocks(flat.size, self._block)
        }
        return seal(key, x.shape, payloads)

    def expand(self, key: Key, message: Compressed, side: Array | None = None) -> Floats:
        flat = np.empty(int(np.prod(message.shape)), np.float32)
        parts = blocks(flat.size, self._block)
        for block, payload in zip(parts, opened(key, message, *(block.name for block in parts)), strict=True):
            rows = decoded(payload, self._token, (block.num_rows, block.width), key=key.child(block.name))
            flat[block.start : block.stop] = rows.reshape(-1)
        return flat.reshape(message.shape)

    def expected_error(self, update: Array | Factors) -> float:
        flat = np.abs(array(update)).reshape(-1)
        total = 0.0
        for block in blocks(flat.size, self._block):
            largest = flat[block.start : block.stop].reshape(block.num_rows, block.width).max(axis=1, initial=0.0)
            total += block.width * float(((largest.astype(np.float64) / self._steps) ** 2).sum()) / 12
        return total

    def max_bytes(self, update: Array | Factors) -> int:
        parts = blocks(int(np.prod(update.shape)), self._block)
        return message_bytes(sum(coded_bytes(self._token, (part.num_rows, part.width)) for part in parts))
