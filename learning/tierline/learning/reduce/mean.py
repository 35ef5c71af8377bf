"""The plain weighted mean, by one sum: mean = sum_k p_k v_k / sum_k p_k.

Status: checked (against NumPy; equal bits in every order of arrival).
"""

from __future__ import annotations

from typing import ClassVar

from tierline.core.arrays import Params
from tierline.learning.effects import Effects, reduce
from tierline.learning.fixed import FRACTION_BITS
from tierline.learning.rule import State, Turn


class Mean:
    """Averages without compression. `fraction_bits` is the resolution of the sum, see `learning.fixed`."""

    exact: ClassVar[bool] = True

    def __init__(self, *, fraction_bits: int = FRACTION_BITS) -> None:
        self._fraction_bits = fraction_bits

    def mean(self, key: str, value: Params, t: Turn, *, weight: float = 1.0) -> Effects[Params]:
        got = yield from reduce(key, value, t.nodes, weight=weight, fraction_bits=self._fraction_bits)
        return got.mean

    def state(self) -> State:
        return {}

    def load(self, state: State) -> None:
        """Nothing is remembered."""
