"""k values of each tensor chosen at random; their positions follow from the key and are not sent.

    C(x)_i = c x_i if i is chosen, else 0;   k = max(1, floor(share d))
    unbiased = false:  c = 1,    E |C(x) - x|^2 = (1 - k/d) |x|^2
    unbiased = true:   c = d/k,  E C(x) = x,  E |C(x) - x|^2 = (d/k - 1) |x|^2

Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", NeurIPS 2018, section 2 (biased); Wangni, Wang, Liu, Zhang,
"Gradient Sparsification for Communication-Efficient Distributed Optimization", NeurIPS 2018 (unbiased, here with equal
probabilities). Deviations: k per tensor. Sends k values. Remembers nothing.
Status: checked (both errors over many keys).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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


class RandomK(Stateless):
    """Compressor `randomk`. `values` is the codec token of the values that are sent; its range must hold them."""

    def __init__(self, *, share: float = 0.01, unbiased: bool = False, values: str = "raw") -> None:
        if not 0.0 < share <= 1.0:
            raise ConfigError(f"randomk: share = {share} must be above 0 and at most 1")
        self._share, self._unbiased, self._values = share, unbiased, values
        codec_for(values)
        exact = values == "raw"
        self.promise = Promise(unbiased=exact and unbiased, contracts=exact and not unbiased)

    def compress(self, key: Key, update: Array | Factors) -> Compressed:
        x = checked(key, update)
        chosen_1k = x.reshape(1, -1)[:, self._places(key, x.size)]
        return seal(key, x.shape, {"values": coded(chosen_1k, self._values)})

    def expand(self, key: Key, message: Compressed, side: Array | None = None) -> Floats:
        (values,) = opened(key, message, "values")
        flat = np.zeros(int(np.prod(message.shape)), np.float32)
        places = self._places(key, flat.size)
        factor = flat.size / len(places) if self._unbiased and flat.size else 1.0
        flat[places] = decoded(values, self._values, (1, len(places)))[0]
        with np.errstate(over="ignore", invalid="ignore"):
            return restored(key, message, flat * np.float32(factor))

    def expected_error(self, update: Array | Factors) -> float:
        x = array(update)
        if self._values != "raw":
            return float("inf")
        kept = self._count(x.size) / max(1, x.size)
        return squares(x) * ((1 / kept - 1) if self._unbiased and kept else 1 - kept)

    def max_bytes(self, update: Array | Factors) -> int:
        return message_bytes(coded_bytes(self._values, (1, self._count(int(np.prod(update.shape))))))

    def _count(self, num_values: int) -> int:
        return max(1, int(self._share * num_values)) if num_values else 0

    def _places(self, key: Key, num_values: int) -> npt.NDArray[np.int64]:
        """The first of a random permutation (`Key.permutation`), ascending; found without sorting all."""
        words = key.child("places").bits(num_values).astype(np.uint64) << np.uint64(32)
        count = self._count(num_values)
        ordered = words | np.arange(num_values, dtype=np.uint64)
        if count < num_values:
            ordered = np.partition(ordered, count)[:count]
        return np.sort((ordered & np.uint64(0xFFFFFFFF)).astype(np.int64))
