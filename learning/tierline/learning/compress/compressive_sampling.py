"""Random mixtures of the values, fewer of them or coarser, and back (QCS).

    v = T x,  T = H R / sqrt(k);   q = round(v / s + u),  s = max_i |v_i| / Q;   C(x) = a T' s (q - u)

R has random signs on its diagonal, anew for each message, H the first k rows of the n x n Hadamard matrix, u uniform
in [-1/2, 1/2); both ends know R and u. E T'T = I, T T' = (n / k) I.
    decoder = "unbiased":  a = 1,            E C(x) = x,  E |C(x) - x|^2 <= w |x|^2
    decoder = "mmse":      a = 1 / (1 + w),  E |C(x) - x|^2 <= (1 - a) |x|^2
    w = n/k - 1 + n log(k) / (4 Q^2 (k - 1)),  for k = 1: n - 1
At equal bits, 32 n / (k log2(2 Q + 1)) times fewer than float32, the bound w is least at Q = 2.
Abdi, Fekri, "Quantized Compressive Sampling of Stochastic Gradients for Efficient Communication in Distributed Deep
Learning", AAAI 2020. Deviations: n is `block`, a power of two, and the last, shorter block is filled up with zeros to
the next one; blocks share u but not R, nor the scale. For k = 1 the paper's w leaves out the error of rounding, which
is s^2 n / 12 more; it is added here. The authors' one-bit quantiser, biased by half a step, is not here.
Sends k levels of 2 Q + 1 and one number per block. Remembers nothing.
Status: checked (both errors under their bounds, the mean over many keys, Q = 2).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from tierline.core.errors import ConfigError
from tierline.core.rng import Key
from tierline.core.types import Array
from tierline.kernels import hadamard
from tierline.learning.compress._blocks import Block, blocks
from tierline.learning.compress._message import (
    Stateless,
    array,
    checked,
    coded,
    coded_bytes,
    decoded,
    message_bytes,
    opened,
    restored,
    seal,
    squares,
)
from tierline.learning.compressor import Compressed, Factors, Floats, Promise
from tierline.learning.signs import random_signs


class QCS(Stateless):
    """Compressor `compressive_sampling`. `share` is k / n, `steps` is Q."""

    def __init__(
        self,
        *,
        block: int = 256,
        share: float = 0.5,
        steps: int = 2,
        decoder: Literal["unbiased", "mmse"] = "unbiased",
    ) -> None:
        if block < 1 or block & (block - 1):
            raise ConfigError(f"compressive_sampling: block = {block} must be a power of two")
        if not 0.0 < share <= 1.0 or not 1 <= steps <= 127:
            raise ConfigError(
                f"compressive_sampling: share = {share} must be above 0 and at most 1, steps = {steps} from 1 to 127"
            )
        if decoder not in ("unbiased", "mmse"):
            raise ConfigError(f'compressive_sampling: decoder = {decoder!r}; valid: "unbiased", "mmse"')
        self._block, self._share, self._steps, self._mmse = block, share, steps, decoder == "mmse"
        self._token = f"dithered:{2 * steps + 1}"
        self.promise = Promise(unbiased=not self._mmse, contracts=self._mmse)

    def compress(self, key: Key, update: Array | Factors) -> Compressed:
        x = checked(key, update)
        flat = x.reshape(-1)
        payloads = {}
        for block in blocks(flat.size, self._block):
            n, k = self._sizes(block)
            x_Bn = np.zeros((block.num_rows, n), np.float32)
            x_Bn[:, : block.width] = flat[block.start : block.stop].reshape(block.num_rows, block.width)
            # Divided before it is added up: sums of large values stay below float32's end.
            v_Bk = hadamard.transform(x_Bn * self._signs(key, block) / np.float32(math.sqrt(k)))[:, :k]
            payloads[block.name] = coded(v_Bk, self._token, key=key.child(block.name))
        return seal(key, x.shape, payloads)

    def expand(self, key: Key, message: Compressed, side: Array | None = None) -> Floats:
        flat = np.empty(int(np.prod(message.shape)), np.float32)
        parts = blocks(flat.size, self._block)
        for block, payload in zip(parts, opened(key, message, *(block.name for block in parts)), strict=True):
            n, k = self._sizes(block)
            v_Bn = np.zeros((block.num_rows, n), np.float32)
            v_Bk = decoded(payload, self._token, (block.num_rows, k), key=key.child(block.name))
            v_Bn[:, :k] = v_Bk / np.float32(math.sqrt(k))
            with np.errstate(over="ignore", invalid="ignore"):
                x_Bn = hadamard.transform(v_Bn) * self._signs(key, block)
            flat[block.start : block.stop] = x_Bn[:, : block.width].reshape(-1)
            if self._mmse:
                flat[block.start : block.stop] /= np.float32(1 + self._relative(block))
        return restored(key, message, flat)

    def expected_error(self, update: Array | Factors) -> float:
        flat = array(update).reshape(-1)
        total = 0.0
        for block in blocks(flat.size, self._block):
            w = self._relative(block)
            total += squares(flat[block.start : block.stop]) * (w / (1 + w) if self._mmse else w)
        return total

    def max_bytes(self, update: Array | Factors) -> int:
        parts = blocks(int(np.prod(update.shape)), self._block)
        return message_bytes(sum(coded_bytes(self._token, (part.num_rows, self._sizes(part)[1])) for part in parts))

    def _sizes(self, block: Block) -> tuple[int, int]:
        """n and k of these blocks."""
        n = hadamard.padded(block.width)
        return n, min(n, max(1, round(self._share * n)))

    def _relative(self, block: Block) -> float:
        """w of the formula."""
        n, k = self._sizes(block)
        rounding = math.log(k) / (4 * (k - 1)) if k > 1 else 1 / 12
        return n / k - 1 + n * rounding / self._steps**2

    def _signs(self, key: Key, block: Block) -> Floats:
        n, _ = self._sizes(block)
        return random_signs(key.child(f"signs/{block.name}"), block.num_rows * n).reshape(block.num_rows, n)
