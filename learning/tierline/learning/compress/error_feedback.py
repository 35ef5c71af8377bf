"""What a message lost is remembered and added to the next one.

    z = g + beta r;   send C(z);   r <- (1 - beta) r + z - C(z)

so that what was sent plus what is remembered is the sum of all updates, for every beta. Seide et al., "1-Bit Stochastic
Gradient Descent", Interspeech 2014; Karimireddy, Rebjock, Stich, Jaggi, "Error Feedback Fixes SignSGD and other
Gradient Compression Schemes", ICML 2019, Algorithm 2 (beta = 1). Weighted as in Abdi, Fekri, "Quantized Compressive
Sampling of Stochastic Gradients for Efficient Communication in Distributed Deep Learning", AAAI 2020: an unbiased C of
relative error w needs beta < min(1, 2 / (1 + w)) and does best at 1 / (1 + w); a contraction does best at 1.
Deviations: from the authors' code, which leaves the term (1 - beta) r out and so loses updates. The update, not the
update times the learning rate, is fed back: with a learning rate that changes, feed steps.
Sends what C sends. Remembers one array per (receiver, tensor), and what C remembers.
Status: checked (conservation; descent where a bare compressor stalls).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tierline.core import catalog
from tierline.core.errors import ConfigError
from tierline.core.rng import Key
from tierline.core.types import Array
from tierline.learning.compress._message import Memory, checked
from tierline.learning.compressor import Compressed, Compressor, Factors, Floats
from tierline.learning.rule import State

_MEMORY, _INNER = "memory:", "inner:"


class ErrorFeedback:
    """Compressor `error_feedback`: the one named `inner`, built with `options`, and a memory."""

    def __init__(self, *, inner: str = "topk", options: Mapping[str, object] | None = None, beta: float = 1.0) -> None:
        if not 0.0 < beta <= 1.0:
            raise ConfigError(f"error_feedback: beta = {beta} must be above 0 and at most 1")
        self._inner: Compressor = catalog.make("compress", inner, **dict(options or {}))
        promise = self._inner.promise
        if promise.needs_side or promise.takes_factors_only:
            what = "knows what the receiver makes of its message" if promise.needs_side else "takes arrays"
            raise ConfigError(f"error_feedback: inner = {inner!r}: choose a compressor that {what}")
        self._beta, self._memory = beta, Memory()
        self.promise = replace(promise, remembers=True)

    def compress(self, key: Key, update: Array | Factors) -> Compressed:
        g = checked(key, update)
        r = self._memory.get(key, g)
        beta = np.float32(self._beta)
        z = np.asarray(g + beta * r)  # NumPy makes numbers of arrays without axes
        message = self._inner.compress(key, z)
        self._memory.put(key, np.asarray((1 - beta) * r + (z - self._inner.expand(key, message))))
        return message

    def expand(self, key: Key, message: Compressed, side: Array | None = None) -> Floats:
        return self._inner.expand(key, message, side)

    def expected_error(self, update: Array | Factors) -> float:
        return self._inner.expected_error(update)

    def max_bytes(self, update: Array | Factors) -> int:
        return self._inner.max_bytes(update)

    def state(self) -> State:
        kept = {_MEMORY + name: value for name, value in self._memory.state().items()}
        return kept | {_INNER + name: value for name, value in self._inner.state().items()}

    def load(self, state: State) -> None:
        def part(prefix: str) -> State:
            return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}

        self._memory.load(part(_MEMORY))
        self._inner.load(part(_INNER))
