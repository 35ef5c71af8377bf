"""The largest values of a momentum that is kept at the sender; what waits keeps gathering momentum (DGC).

    u <- m u + clip(g);   v <- v + u;   send the k largest of v, and set u and v to 0 where sent

Lin, Han, Mao, Wang, Dally, "Deep Gradient Compression: Reducing the Communication Bandwidth for Distributed Training",
ICLR 2018, sections 3.1 to 3.3: momentum correction, local clipping of a tensor's norm to clip / sqrt(workers), factor
masking, and warm-up: the share sent falls over `warmup_stages` stages of `stage_rounds` rounds as share^((i+1)/stages),
for 0.1 % in five stages 25, 6.3, 1.6, 0.4, 0.1 %. The receiver adds what it gets without momentum of its own.
Deviations: the k largest exactly, where the authors estimate a threshold from a sample of 1 %; the norm that is clipped
is the tensor's, not the model's; k = max(1, floor(share d)).
Sends k positions and values. Remembers u and v, two arrays per (receiver, tensor).
Status: checked (against the formula; conservation without momentum; accuracies of the paper were not repeated).
"""

from __future__ import annotations

import math

import numpy as np

from tierline.core import catalog
from tierline.core.errors import ConfigError
from tierline.core.rng import Key
from tierline.core.types import Array
from tierline.learning.compress._message import Memory, array, checked, squares
from tierline.learning.compressor import Compressed, Compressor, Factors, Floats, Promise
from tierline.learning.rule import State


class DGC:
    """Compressor `dgc`. `clip` 0 cuts nothing; without warm-up stages the share is `share` from the start."""

    promise = Promise(contracts=True, remembers=True)

    def __init__(
        self,
        *,
        share: float = 0.001,
        momentum: float = 0.9,
        clip: float = 0.0,
        num_workers: int = 1,
        warmup_stages: int = 0,
        stage_rounds: int = 1,
    ) -> None:
        if not 0.0 < share <= 1.0 or not 0.0 <= momentum < 1.0 or not clip >= 0.0:
            raise ConfigError(
                f"dgc: share = {share} must be above 0 and at most 1, momentum = {momentum} in [0, 1), "
                f"clip = {clip} at least 0"
            )
        if num_workers < 1 or warmup_stages < 0 or stage_rounds < 1:
            raise ConfigError(
                f"dgc: num_workers = {num_workers} and stage_rounds = {stage_rounds} must be at least 1, "
                f"warmup_stages = {warmup_stages} at least 0"
            )
        shares = [share ** ((i + 1) / warmup_stages) for i in range(warmup_stages)] or [share]
        # By stage; the choice itself and its coding are those of `topk`.
        self._top: list[Compressor] = [catalog.make("compress", "topk", share=s) for s in shares]
        self._stage_rounds, self._momentum = stage_rounds, momentum
        self._clip = clip / math.sqrt(num_workers)
        self._momenta, self._waiting = Memory(), Memory()

    def compress(self, key: Key, update: Array | Factors) -> Compressed:
        g = self._clipped(checked(key, update))
        u = np.asarray(np.float32(self._momentum) * self._momenta.get(key, g) + g)
        v = np.asarray(self._waiting.get(key, g) + u)
        top = self._top_of(key)
        message = top.compress(key, v)
        waits = top.expand(key, message) == 0
        self._momenta.put(key, np.where(waits, u, 0))
        self._waiting.put(key, np.where(waits, v, 0))
        return message

    def expand(self, key: Key, message: Compressed, side: Array | None = None) -> Floats:
        return self._top_of(key).expand(key, message)

    def expected_error(self, update: Array | Factors) -> float:
        """Of the last stage."""
        x = array(update)
        kept = squares(x) - self._top[-1].expected_error(x)
        cut = 1 - self._clip / math.sqrt(squares(x)) if self._clip and squares(x) > self._clip**2 else 0.0
        return squares(x) - (1 - cut**2) * kept

    def max_bytes(self, update: Array | Factors) -> int:
        """Of the first stage, which sends most."""
        return self._top[0].max_bytes(update)

    def state(self) -> State:
        momenta, waiting = self._momenta.state(), self._waiting.state()
        return {f"u:{name}": u for name, u in momenta.items()} | {f"v:{name}": v for name, v in waiting.items()}

    def load(self, state: State) -> None:
        self._momenta.load({name[2:]: value for name, value in state.items() if name.startswith("u:")})
        self._waiting.load({name[2:]: value for name, value in state.items() if name.startswith("v:")})

    def _top_of(self, key: Key) -> Compressor:
        return self._top[min(key.round // self._stage_rounds, len(self._top) - 1)]

    def _clipped(self, g: Floats) -> Floats:
        norm = math.sqrt(squares(g))
        return g * np.float32(self._clip / norm) if self._clip and norm > self._clip else g
