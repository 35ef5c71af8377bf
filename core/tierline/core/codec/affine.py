"""float32 values on an even scale of 2^bits - 1 steps between the ends of a range: 1 to 8 bits per value.

`code = round(limit((x - lo) / scale, 0, 2^bits - 1))`, decoded as `code * scale + lo`, with
scale = max((hi - lo) / (2^bits - 1), 2^-126) and [lo, hi] found anew for every row. Options:

- `bits`: 1 to 8.
- `per`: what is coded as a row of its own: `tensor`, all values of a sample, or `channel`, each index of axis 1.
- `range`: `minmax`, all of the row; `percentile`, without its floor(V * (100 - percent) / 200) smallest and as many
  largest values; `mse`, the range of least squared error, searched among some 2048 even cuts of the whole one.
- `percent`: of `range=percentile`, above 0 and up to 100.
- `rounding`: `nearest`, ties to even, or `stochastic`: up with the probability of the fraction, so that over seeds the
  mean of what is decoded is the value itself. Value i of channel c (0 per tensor) takes word i % 4 of Philox4x32-10
  under the key `seed` at counter words (i / 4 low, i / 4 high, c, 0), whatever its sample: a batch is coded as its
  samples would be alone.

A value outside the range is coded as its nearer end. Which range was used is not on the wire: a decoder needs `bits`
and `per` alone.

Bytes of one row, rows one after the other (samples, in them channels): float32 lo, float32 scale (little-endian), then
V codes as one stream of bits: code i in bits i * bits and up, least significant bit first; padding bits 0. At 8 bits
that is a byte per value. A sample without axis 1 is one channel.
NaN, infinities and magnitudes above 2^126 have no place on such a scale: `encode` raises CodecError.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from tierline.core.codec._check import CodeRows, RowSize, check_floats, check_head, check_length, result
from tierline.core.coding import canonical
from tierline.core.errors import CodecError, ConfigError, CorruptPayload
from tierline.core.types import Array, Payload, TensorSpec
from tierline.kernels import affine as kernel

_DEFAULTS = {"bits": 8, "per": "tensor", "range": "minmax", "percent": 99.9, "rounding": "nearest"}
_SEED_MASK = 2**64 - 1


class Affine:
    """Codec `affine`."""

    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    role: ClassVar[str] = "values"

    def __init__(
        self,
        *,
        bits: int = 8,
        per: str = "tensor",
        range: str = "minmax",  # the option's name on the wire
        percent: float = 99.9,
        rounding: str = "nearest",
    ) -> None:
        options = {"bits": bits, "per": per, "range": range, "percent": percent, "rounding": rounding}
        try:
            kernel.check_options(bits, percent, per=per, range=range, rounding=rounding)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if percent != _DEFAULTS["percent"] and range != "percentile":
            raise ConfigError(f"percent is for range=percentile, not for range={range}")
        self.token = canonical("affine", options, _DEFAULTS)
        self._bits, self._range, self._percent = bits, range, percent
        self._by_channel, self._stochastic = per == "channel", rounding == "stochastic"
        self._is_plain = self.token.split(":")[1:] in ([], [str(bits)])
        self.code_rows = None if self._by_channel else CodeRows(kernel.HEADER_BYTES, bits)
        self.row_size = None if self._by_channel else RowSize(kernel.HEADER_BYTES, bits)

    def encode(self, x_B: Array, *, seed: int = 0) -> Payload:
        check_floats(x_B, self.token)
        try:
            data = kernel.encode(x_B, self._bits) if self._is_plain else self._encode(x_B, seed)
        except ValueError as error:
            raise CodecError(f"{self.token}: {error}; use bfloat16 or raw for such values") from None
        return Payload(self.token, "float32", x_B.shape, data)

    def decode(self, payload: Payload, limit: TensorSpec, *, max_rows: int = 4096, out: Array | None = None) -> Array:
        num_rows = check_head(payload, self.token, self.dtypes, limit, max_rows)
        shape_RV = self._coded_shape((num_rows, *limit.shape))
        check_length(payload, shape_RV[0] * kernel.row_bytes(shape_RV[1], self._bits))
        x_B = result(out, num_rows, limit)
        try:
            kernel.decode(payload.data, x_B if not self._by_channel else x_B.reshape(shape_RV), self._bits, out is None)
        except ValueError as error:
            raise CorruptPayload(f"{self.token}: {error}") from None
        return x_B

    def encode_runs(self, values: Array, number_B: Array, data: Array, place_B: Array, *, seed: int = 0) -> bool:
        """Code rows of so many of the values each to these places in `data`; False where that takes a call a row."""
        if self._by_channel:
            return False
        options = self._range, self._percent, self._stochastic, seed & _SEED_MASK
        try:
            return kernel.encode_runs(values, number_B, data, place_B, self._bits, *options)
        except ValueError as error:
            raise CodecError(f"{self.token}: {error}; use bfloat16 or raw for such values") from None

    def decode_runs(self, data: bytes, place_B: Array, number_B: Array, values: Array) -> bool:
        """The reverse. Raises CorruptPayload."""
        if self._by_channel:
            return False
        try:
            return kernel.decode_runs(data, place_B, number_B, values, self._bits)
        except ValueError as error:
            raise CorruptPayload(f"{self.token}: {error}") from None

    def max_error(self, x_B: Array) -> float:
        """Of the worst row: half a step (a whole one where rounding is stochastic) or what the range leaves out, and
        what float32 rounding adds on the way there and back. Exact 0 for constant rows."""
        check_floats(x_B, self.token)
        if x_B.size == 0:
            return 0.0
        x_RV = x_B.reshape(self._coded_shape(x_B.shape))
        lo_R = x_RV.min(axis=1).astype(np.float64)
        hi_R = x_RV.max(axis=1).astype(np.float64)
        coded_RP = np.frombuffer(self.encode(x_B).data, np.uint8).reshape(len(x_RV), -1)
        from_R, scale_R = coded_RP[:, : kernel.HEADER_BYTES].view("<f4").astype(np.float64).T
        clipped_R = np.maximum(from_R - lo_R, hi_R - (from_R + scale_R * (2**self._bits - 1)))
        step_R = scale_R if self._stochastic else scale_R / 2
        rounding_R = 4 * np.finfo(np.float32).eps * (np.abs(lo_R) + np.abs(hi_R))
        bound_R = np.maximum(step_R, clipped_R) + rounding_R + 2.0**-126
        return float(np.where(hi_R == lo_R, 0.0, bound_R).max())

    def size_bounds(self, spec: TensorSpec, num_rows: int = 1) -> tuple[int, int]:
        num_coded, num_values = self._coded_shape((num_rows, *spec.shape))
        num_bytes = num_coded * kernel.row_bytes(num_values, self._bits)
        return num_bytes, num_bytes

    def _encode(self, x_B: Array, seed: int) -> bytes:
        shape_RV = num_coded, num_values = self._coded_shape(x_B.shape)
        dropped = 0
        if self._range == "percentile" and num_values:
            dropped = kernel.num_dropped(num_values, self._percent)
        num_streams = num_coded // max(len(x_B), 1) if self._stochastic else 0
        return kernel.encode(x_B.reshape(shape_RV), self._bits, self._range, dropped, num_streams, seed & _SEED_MASK)

    def _coded_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows that a batch of this shape is coded as, and values in each."""
        num_axes = 2 if self._by_channel else 1
        return math.prod(shape[:num_axes]), math.prod(shape[num_axes:])
