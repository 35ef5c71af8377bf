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

Bytes of one row, rows one after the other (samples, in them channels): float32 lo, float32 scale (little-endian), then V
codes as one stream of bits: code i in bits i * bits and up, least significant bit first; padding bits 0. At 8 bits that
is a byte per value. A sample without axis 1 is one channel.
NaN, infinities and magnitudes above 2^126 have no place on such a scale: `encode` raises CodecError.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from tierline.core.codec._check import check_head, check_length, float_rows, result
from tierline.core.coding import canonical
from tierline.core.errors import CodecError, ConfigError, CorruptPayload
from tierline.core.types import Array, Payload, TensorSpec
from tierline.kernels import affine as kernel

_WORDS = {"per": ("tensor", "channel"), "range": kernel.CLIPS, "rounding": ("nearest", "stochastic")}
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
        range: str = "minmax",  # noqa: A002: an option's name on the wire
        percent: float = 99.9,
        rounding: str = "nearest",
    ) -> None:
        options = {"bits": bits, "per": per, "range": range, "percent": percent, "rounding": rounding}
        if not 1 <= bits <= 8:
            raise ConfigError(f"bits is {bits}, from 1 to 8")
        for key, words in _WORDS.items():
            if options[key] not in words:
                raise ConfigError(f"{key} is {options[key]!r}, one of {', '.join(words)}")
        if not 0 < percent <= 100:
            raise ConfigError(f"percent is {percent:g}, above 0 and up to 100")
        if percent != _DEFAULTS["percent"] and range != "percentile":
            raise ConfigError(f"percent is for range=percentile, not for range={range}")
        self.token = canonical("affine", options, _DEFAULTS)
        self._bits, self._range, self._percent = bits, range, percent
        self._by_channel, self._stochastic = per == "channel", rounding == "stochastic"
        self._is_plain = self.token.split(":")[1:] in ([], [str(bits)])

    def encode(self, x_B: Array, *, seed: int = 0) -> Payload:
        rows_BV = float_rows(x_B, self.token)
        try:
            if self._is_plain:
                data = kernel.encode(rows_BV, self._bits)
            else:
                data = self._encode(rows_BV, self._num_channels(x_B.shape[1:]), seed)
        except ValueError as error:
            raise CodecError(f"{self.token}: {error}; use float16 or raw for such values") from None
        return Payload(self.token, "float32", x_B.shape, data)

    def decode(self, payload: Payload, limit: TensorSpec, *, max_rows: int = 4096, out: Array | None = None) -> Array:
        num_rows = check_head(payload, self.token, self.dtypes, limit, max_rows)
        num_values = math.prod(limit.shape)
        num_channels = self._num_channels(limit.shape)
        check_length(payload, num_rows * self._row_bytes(num_values, num_channels))
        x_B = result(out, num_rows, limit)
        rows_BV = x_B.reshape(num_rows * num_channels, num_values // max(num_channels, 1))
        try:
            kernel.decode(payload.data, rows_BV, self._bits)
        except ValueError as error:
            raise CorruptPayload(f"{self.token}: {error}") from None
        return x_B

    def max_error(self, x_B: Array) -> float:
        """Of the worst row: half a step (a whole one where rounding is stochastic) or what the range leaves out, and what
        float32 rounding adds on the way there and back. Exact 0 for constant rows."""
        num_channels = self._num_channels(x_B.shape[1:])
        rows_BV = float_rows(x_B, self.token).reshape(len(x_B) * num_channels, -1) if x_B.size else np.empty((0, 0))
        if rows_BV.size == 0:
            return 0.0
        lo_B = rows_BV.min(axis=1).astype(np.float64)
        hi_B = rows_BV.max(axis=1).astype(np.float64)
        coded_BP = np.frombuffer(self.encode(x_B).data, np.uint8).reshape(len(rows_BV), -1)
        from_B, scale_B = coded_BP[:, : kernel.HEADER_BYTES].view("<f4").astype(np.float64).T
        clipped_B = np.maximum(from_B - lo_B, hi_B - (from_B + scale_B * (2**self._bits - 1)))
        step_B = scale_B if self._stochastic else scale_B / 2
        rounding_B = 4 * np.finfo(np.float32).eps * (np.abs(lo_B) + np.abs(hi_B))
        bound_B = np.maximum(step_B, clipped_B) + rounding_B + 2.0**-126
        return float(np.where(hi_B == lo_B, 0.0, bound_B).max())

    def size_bounds(self, spec: TensorSpec, num_rows: int = 1) -> tuple[int, int]:
        num_bytes = num_rows * self._row_bytes(math.prod(spec.shape), self._num_channels(spec.shape))
        return num_bytes, num_bytes

    def _encode(self, rows_BV: Array, num_channels: int, seed: int) -> bytes:
        if self._by_channel:
            num_rows, num_values = len(rows_BV) * num_channels, rows_BV.shape[1] // max(num_channels, 1)
            rows_BV = rows_BV.reshape(num_rows, num_values)
        num_values = rows_BV.shape[1]
        dropped = 0
        if self._range == "percentile" and num_values:
            dropped = kernel.num_dropped(num_values, self._percent)
        num_streams = num_channels if self._stochastic else 0
        return kernel.encode(rows_BV, self._bits, self._range, dropped, num_streams, seed & _SEED_MASK)

    def _num_channels(self, shape: tuple[int, ...]) -> int:
        """Rows that one sample of this shape is coded as."""
        return shape[0] if self._by_channel and shape else 1

    def _row_bytes(self, num_values: int, num_channels: int) -> int:
        return num_channels * kernel.row_bytes(num_values // max(num_channels, 1), self._bits)
