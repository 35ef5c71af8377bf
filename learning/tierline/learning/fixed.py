"""Weighted sums that do not depend on order: int64 fixed point.

float32 sums of the same values in two orders differ in most coordinates; integers do not, and so a sum that edge nodes
pre-add equals the flat one bit for bit. A contribution is round(weight * value * 2^bits), ties to even. With the
default of 32 bits the resolution is 2.3e-10 and the whole group's sum may reach +-2^31; a rule that adds small
gradients asks for more bits, one that adds counts for fewer. Weights stand on a grid of 2^-32, and a contribution uses
the rounded weight, so that the mean of equal values is that value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tierline.core.arrays import Params
from tierline.core.errors import BadFrame

FRACTION_BITS = 32
_WEIGHT_BITS = 32
_BLOCK = 1 << 15
"""Values at a time, so that they stay in the processor's cache from one step to the next."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class WeightedSum:
    """A sum of weighted values: `integers` in units of 2^-fraction_bits, `weight_units` of 2^-32."""

    integers: Integers
    weight_units: int
    fraction_bits: int

    def __add__(self, other: WeightedSum) -> WeightedSum:
        """Exact; `contribution` kept room for the whole group."""
        return WeightedSum(self.integers + other.integers, self.weight_units + other.weight_units, self.fraction_bits)

    @property
    def weight(self) -> float:
        return math.ldexp(self.weight_units, -_WEIGHT_BITS)

    def sum(self) -> npt.NDArray[np.float64]:
        return np.multiply(self.integers, 2.0**-self.fraction_bits, dtype=np.float64)

    def mean(self) -> npt.NDArray[np.float64]:
        mean: npt.NDArray[np.float64] = self.sum() / self.weight
        return mean

    def mean_as_float32(self) -> npt.NDArray[np.float32]:
        """`mean`, rounded once; made a block at a time."""
        mean = np.empty(self.integers.shape, np.float32)
        for start in range(0, len(mean), _BLOCK):
            block = np.multiply(self.integers[start : start + _BLOCK], 2.0**-self.fraction_bits, dtype=np.float64)
            mean[start : start + _BLOCK] = np.divide(block, self.weight, out=block)
        return mean


def contribution(
    value: Params, *, weight: float, num_members: int, fraction_bits: int = FRACTION_BITS, where: str = "sum"
) -> WeightedSum:
    """One member's part of a sum over at most `num_members` members.

    Raises BadFrame for a value that is not finite, a weight outside [2^-32, 2^31), and for a value so large that
    `num_members` of its size would overflow: the test knows no order, so it cannot pass in one and fail in another.
    """
    if not 0 <= fraction_bits <= 62:
        raise BadFrame(f"{where}: fraction_bits = {fraction_bits} is outside 0..62")
    if not 2.0**-_WEIGHT_BITS <= weight < 2.0**31:
        raise BadFrame(f"{where}: weight {weight} is not between 2^-32 and 2^31")
    units = round(math.ldexp(weight, _WEIGHT_BITS))
    factor = math.ldexp(units, fraction_bits - _WEIGHT_BITS)
    integers = np.empty(value.flat.shape, np.int64)
    largest_scaled = 0.0
    for start in range(0, len(integers), _BLOCK):
        scaled = np.multiply(value.flat[start : start + _BLOCK], factor, dtype=np.float64)
        np.rint(scaled, out=scaled)
        largest, smallest = float(scaled.max()), float(scaled.min())
        if not math.isfinite(largest - smallest):
            name = next(name for name, view in value.items() if not np.isfinite(view).all())
            raise BadFrame(f"{where}: {name!r} holds values that are not finite; a smaller lr may help")
        largest_scaled = max(largest_scaled, largest, -smallest)
        with np.errstate(invalid="ignore"):  # too large: refused below
            integers[start : start + _BLOCK] = scaled
    if int(largest_scaled) * num_members >= 2**63:
        largest = float(np.abs(value.flat).max())
        raise BadFrame(
            f"{where}: {num_members} values of {largest:.3g} with weight {weight:.3g} overflow a sum with "
            f"{fraction_bits} fraction bits; use smaller weights or fewer bits"
        )
    return WeightedSum(integers, units, fraction_bits)
