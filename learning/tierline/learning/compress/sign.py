"""The sign of each value, and the mean magnitude of the tensor.

    C(x) = (|x|_1 / d) sign(x);   |C(x) - x|^2 = |x|^2 - |x|_1^2 / d

Bernstein, Wang, Azizzadenesheli, Anandkumar, "signSGD: Compressed Optimisation for Non-Convex Problems", ICML 2018;
scaled as in Karimireddy, Rebjock, Stich, Jaggi, "Error Feedback Fixes SignSGD and other Gradient Compression Schemes",
ICML 2019, section 4. Deviations: zeros count as positive, which changes no error; the scale is per tensor.
Sends one bit per value and one number. Remembers nothing.
Status: checked (the error against the formula).
"""

from __future__ import annotations

import numpy as np

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
    scalar,
    seal,
    squares,
)
from tierline.learning.compressor import Compressed, Factors, Floats, Promise


class Sign(Stateless):
    """Compressor `sign`."""

    promise = Promise(contracts=True)

    def compress(self, key: Key, update: Array | Factors) -> Compressed:
        x = checked(key, update)
        scale = float(np.abs(x).mean(dtype=np.float64)) if x.size else 0.0
        return seal(key, x.shape, {"signs": coded(x.reshape(1, -1), "bitplane")}, scale=scale)

    def expand(self, key: Key, message: Compressed, side: Array | None = None) -> Floats:
        (signs,) = opened(key, message, "signs")
        signs_1V = decoded(signs, "bitplane", (1, int(np.prod(message.shape))))
        return restored(key, message, signs_1V * np.float32(scalar(message, "scale")))

    def expected_error(self, update: Array | Factors) -> float:
        x = array(update)
        return squares(x) - float(np.abs(x).sum(dtype=np.float64)) ** 2 / max(1, x.size)

    def max_bytes(self, update: Array | Factors) -> int:
        return message_bytes(coded_bytes("bitplane", (1, int(np.prod(update.shape)))), num_scalars=1)
