"""Values on an even scale between the ends of a range of their row, 1 to 8 bits each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tierline.kernels.numpy import affine_clip, philox

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

HEADER_BYTES = 8
"""Of a row: float32 lo, float32 scale."""
LIMIT = 2.0**126
"""Largest magnitude that is coded: no step can overflow below it."""

CLIPS = ("minmax", "percentile", "mse")
_WORDS = {"per": ("tensor", "channel"), "range": CLIPS, "rounding": ("nearest", "stochastic")}

_ONE = np.float32(1)
_MINUS_ZERO = 0x80000000
_TINY = np.finfo(np.float32).tiny


def check_options(bits: int, percent: float, **words: str) -> None:
    """Options of a token: `words` are `per`, `range` and `rounding`. Raises ValueError."""
    if not 1 <= bits <= 8:
        raise ValueError(f"bits is {bits}, from 1 to 8")
    for key, word in words.items():
        if word not in _WORDS[key]:
            raise ValueError(f"{key} is {word!r}, one of {', '.join(_WORDS[key])}")
    if not 0 < percent <= 100:
        raise ValueError(f"percent is {percent:g}, above 0 and up to 100")


def row_bytes(num_values: int, bits: int) -> int:
    return HEADER_BYTES + (num_values * bits + 7) // 8


def encode(
    x_BV: Floats, bits: int = 8, clip: str = "minmax", dropped: int = 0, num_streams: int = 0, seed: int = 0
) -> bytes:
    """Rows of lo, scale and packed codes.

    `scale = max((hi - lo) / (2^bits - 1), 2^-126)`, `place = (x - lo) * (1 / scale)` limited to [0, 2^bits - 1].
    The floor under the scale (the smallest normal number) makes constant rows nothing special. A zero lo is +0.
    [lo, hi] is what `clip` leaves of a row: `minmax` all, `percentile` all but the `dropped` smallest and largest
    values, `mse` the range of least squared error (see `affine_clip`).

    The code is the nearest integer, ties to even; with `num_streams` it is the integer below or above, above with the
    probability of the fraction: value i of row b takes word i of Philox counter words (0, 0, b % num_streams, 0) and up
    under the key `seed`.
    Raises ValueError for NaN and for magnitudes above 2^126, infinities included.
    """
    num_rows, num_values = x_BV.shape
    if x_BV.size == 0:
        return bytes(num_rows * HEADER_BYTES)
    lo_B = np.minimum.reduce(x_BV, axis=1)
    hi_B = np.maximum.reduce(x_BV, axis=1)
    if not (np.minimum.reduce(lo_B) >= -LIMIT and np.maximum.reduce(hi_B) <= LIMIT):  # NaN fails both
        raise ValueError("a value is NaN, infinite or above 2^126 in magnitude")
    steps = 2**bits - 1
    for b in range(num_rows) if clip != "minmax" else ():
        if clip == "percentile":
            lo_B[b], hi_B[b] = affine_clip.percentile(x_BV[b], dropped)
        else:
            lo_B[b], hi_B[b] = affine_clip.least_error(x_BV[b], lo_B[b], hi_B[b], steps)
    scale_B = np.maximum((hi_B - lo_B) / np.float32(steps), _TINY)
    lo_B += np.float32(0)
    place_BV = x_BV - lo_B[:, None]
    with np.errstate(over="ignore"):  # far outside a narrow range
        place_BV *= (_ONE / scale_B)[:, None]
    np.clip(place_BV, 0, steps, out=place_BV)
    code_BV = _either(place_BV, num_streams, seed) if num_streams else np.rint(place_BV, out=place_BV).astype(np.uint8)
    coded_BP = np.empty((num_rows, row_bytes(num_values, bits)), np.uint8)
    header_B2 = coded_BP[:, :HEADER_BYTES].view("<f4")
    header_B2[:, 0] = lo_B
    header_B2[:, 1] = scale_B
    coded_BP[:, HEADER_BYTES:] = pack(code_BV, bits)
    return coded_BP.tobytes()


def _either(place_BV: Floats, num_streams: int, seed: int) -> Bytes:
    """The integer below or above each value, above with the probability of the fraction; an integer stays."""
    num_rows, num_values = place_BV.shape
    uniform_SV = np.stack(
        [philox.uniform(philox.words(num_values, seed, s)) for s in range(min(num_streams, num_rows))]
    )
    below_BV = np.floor(place_BV)
    rises_BV = uniform_SV[np.arange(num_rows) % num_streams] < place_BV - below_BV
    return below_BV.astype(np.uint8) + rises_BV


def decode(data: bytes, x_BV: Floats, bits: int = 8) -> None:
    """`code * scale + lo` of each row, into `x_BV`.

    Raises ValueError for a header that no encoder writes, and for padding bits that are set.
    """
    num_rows, num_values = x_BV.shape
    if x_BV.size == 0:
        return
    coded_BP = np.frombuffer(data, np.uint8).reshape(num_rows, row_bytes(num_values, bits))
    header_B2 = coded_BP[:, :HEADER_BYTES].view("<f4")
    least_lo, least_scale = np.minimum.reduce(header_B2, axis=0).tolist()
    most_lo, most_scale = np.maximum.reduce(header_B2, axis=0).tolist()
    fits = least_lo >= -LIMIT and most_lo <= LIMIT and least_scale >= _TINY and most_scale <= max_scale(bits)
    if not fits or (header_B2[:, 0].view("<u4") == _MINUS_ZERO).any():
        raise ValueError("a row's header holds no lo and scale that an encoder writes")
    np.multiply(unpack(coded_BP[:, HEADER_BYTES:], num_values, bits), header_B2[:, 1:], out=x_BV)
    x_BV += header_B2[:, :1]


def max_scale(bits: int) -> float:
    """No encoder writes a larger one: the widest range over the steps, with room for its rounding."""
    return 2 * LIMIT / max((1 << bits) - 2, 1)


def pack(code_BV: Bytes, bits: int) -> Bytes:
    """Codes as one stream of bits, value i in bits i*bits and up, least significant first; padding bits are 0."""
    if bits == 8:
        return code_BV
    bit_BVb = np.unpackbits(code_BV[:, :, None], axis=2, count=bits, bitorder="little")
    return np.packbits(bit_BVb.reshape(len(code_BV), -1), axis=1, bitorder="little")


def unpack(packed_BP: Bytes, num_values: int, bits: int) -> Bytes:
    """Undo `pack`. Raises ValueError for set padding bits."""
    if bits == 8:
        return packed_BP
    bit_BX = np.unpackbits(packed_BP, axis=1, bitorder="little")
    if bit_BX[:, num_values * bits :].any():
        raise ValueError("padding bits are set")
    bit_BVb = bit_BX[:, : num_values * bits].reshape(len(packed_BP), num_values, bits)
    return np.packbits(bit_BVb, axis=2, bitorder="little")[:, :, 0]
