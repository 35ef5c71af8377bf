"""The values of largest magnitude of each tensor; the others are taken for zeros.

    C(x)_i = x_i if |x_i| is among the k largest, else 0;   k = max(1, floor(share d))
    |C(x) - x|^2 <= (1 - k/d) |x|^2

Aji, Heafield, "Sparse Communication for Distributed Gradient Descent", EMNLP 2017, section 3, without its memory, which
`error_feedback` is; the contraction is from Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", NeurIPS 2018,
section 2. Deviations: k is chosen per tensor, not over the whole model; of equal magnitudes the first is kept.
Sends k positions and k values, which `values` codes. Remembers nothing.
Status: checked (the choice against a sort, the contraction).
"""

from __future__ import annotations

import numpy as np

from tierline.core.coding import codec_for
from tierline.core.errors import ConfigError
from tierline.core.rng import Key
from tierline.core.types import Array
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


class TopK(Stateless):
    """Compressor `topk`. `values` is the codec token of the values that are sent, e.g. `float16`; its range must
    hold them."""

    def __init__(self, *, share: float = 0.01, values: str = "raw") -> None:
        if not 0.0 < share <= 1.0:
            raise ConfigError(f"topk: share = {share} must be above 0 and at most 1")
        self._share, self._values = share, values
        codec_for(self._token(1))  # names a codec that cannot be used now, not with the first message
        # A value that a codec rounds may move away from its place by more than a dropped one would.
        self.promise = Promise(contracts=values == "raw")

    def compress(self, key: Key, update: Array | Factors) -> Compressed:
        x = checked(key, update)
        return seal(key, x.shape, {"top": coded(x.reshape(1, -1), self._token(x.size))})

    def expand(self, key: Key, message: Compressed, side: Array | None = None) -> Floats:
        (top,) = opened(key, message, "top")
        num_values = int(np.prod(message.shape))
        return restored(key, message, decoded(top, self._token(num_values), (1, num_values)))

    def expected_error(self, update: Array | Factors) -> float:
        if self._values != "raw":
            return float("inf")
        magnitudes = np.sort(np.abs(array(update)).reshape(-1))
        return squares(magnitudes[: magnitudes.size - self._count(magnitudes.size)])

    def max_bytes(self, update: Array | Factors) -> int:
        num_values = int(np.prod(update.shape))
        return message_bytes(coded_bytes(self._token(num_values), (1, num_values)))

    def _count(self, num_values: int) -> int:
        return max(1, int(self._share * num_values)) if num_values else 0

    def _token(self, num_values: int) -> str:
        return f"topk:count={max(1, self._count(num_values))}+{self._values}"
