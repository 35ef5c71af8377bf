"""What every compressor does at both ends: checks, stamps, coded arrays, and where it keeps what it remembers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tierline.core.coding import codec_for
from tierline.core.errors import BadFrame, CodecError, CorruptPayload, ShapeMismatch
from tierline.core.rng import Key
from tierline.core.types import Array, Payload, TensorSpec
from tierline.learning.compressor import SCALAR_BYTES, STAMP_BYTES, Compressed, Factors, Floats
from tierline.learning.rule import State

MAX_MAGNITUDE = 2.0**100
"""Room below float32's end for norms and sums."""


class Stateless:
    """Of compressors that remember nothing."""

    def state(self) -> State:
        return {}

    def load(self, state: State) -> None:
        """Nothing is remembered."""


class Memory:
    """One array per (receiver, tensor), zeros at first."""

    def __init__(self) -> None:
        self._kept: dict[str, Floats] = {}

    def get(self, key: Key, like: Floats) -> Floats:
        """What is remembered. Raises ShapeMismatch where the tensor had another shape before."""
        kept = self._kept.get(_slot(key))
        if kept is None:
            return np.zeros_like(like)
        if kept.shape != like.shape:
            raise ShapeMismatch(
                f"compress: {key.tensor!r} is float32{list(like.shape)} now and was float32{list(kept.shape)} before"
            )
        return kept

    def put(self, key: Key, value: Floats) -> None:
        self._kept[_slot(key)] = value

    def state(self) -> State:
        return {slot: value.copy() for slot, value in self._kept.items()}

    def load(self, state: State) -> None:
        self._kept = {slot: np.array(value, np.float32) for slot, value in state.items()}


def _slot(key: Key) -> str:
    return f"{key.receiver}/{key.tensor}"


def array(update: Array | Factors) -> Floats:
    """The update itself; of Factors, the gradient."""
    return update.product() if isinstance(update, Factors) else update


def checked(key: Key, update: Array | Factors) -> Floats:
    """The update as an array whose values have a place on every scale. Raises ShapeMismatch, CodecError."""
    x = array(update)
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        got = f"{x.dtype}{list(x.shape)}" if isinstance(x, np.ndarray) else type(x).__name__
        raise ShapeMismatch(f"compress: {key.tensor!r} is {got}, not a float32 array; cast it")
    # The negation catches NaN too.
    if not float(np.abs(x).max(initial=0.0)) <= MAX_MAGNITUDE:
        raise CodecError(
            f"compress: {key.tensor!r} holds values that are not finite, or above 2^100; a smaller lr may help"
        )
    return x


def stamp(key: Key) -> int:
    return int(key.child("stamp").bits(1)[0])


def seal(key: Key, shape: tuple[int, ...], payloads: Mapping[str, Payload], **scalars: float) -> Compressed:
    return Compressed(shape, stamp(key), payloads, scalars)


def opened(key: Key, message: Compressed, *names: str) -> tuple[Payload, ...]:
    """The payloads of these names, if the message was made under `key`. Raises BadFrame."""
    if message.stamp != stamp(key):
        raise BadFrame(
            f"compress: the message for {key.tensor!r} was not made under the key of round {key.round} from "
            f"{key.sender!r} to {key.receiver!r}; both ends must agree on run, round, names and tensor"
        )
    if set(message.payloads) != set(names):
        raise BadFrame(
            f"compress: the message for {key.tensor!r} holds {', '.join(sorted(message.payloads)) or 'nothing'}, "
            f"expected {', '.join(sorted(names)) or 'nothing'}; both ends must use the same compressor"
        )
    return tuple(message.payloads[name] for name in names)


def scalar(message: Compressed, name: str) -> float:
    """A number of the message that float32 holds. Raises BadFrame."""
    value = message.scalars.get(name, math.nan)
    if not abs(value) <= 2.0**127:
        raise BadFrame(f"compress: number {name!r} of a message is {value}, expected one of at most 2^127")
    return value


def restored(key: Key, message: Compressed, values: Array) -> Floats:
    """What a message stands for, in its shape. Raises CorruptPayload where that is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        x: Floats = values.astype(np.float32).reshape(message.shape)
    if not np.isfinite(x).all():
        raise CorruptPayload(f"compress: the message for {key.tensor!r} stands for values that are not finite")
    return x


def coded(rows_BV: Array, token: str, *, key: Key | None = None) -> Payload:
    """Rows by the codec of `token`. A codec that draws takes its seed from `key`, and the seed is not sent."""
    if key is None:
        return codec_for(token).encode(rows_BV)
    return replace(codec_for(token).encode(rows_BV, seed=_seed(key)), params={})


def decoded(
    payload: Payload, token: str, shape: tuple[int, int], dtype: str = "float32", *, key: Key | None = None
) -> Array:
    """Rows of `shape` (B, V). Raises CorruptPayload, BadFrame for another number of rows."""
    num_rows, num_values = shape
    if key is not None:
        payload = replace(payload, params={"seed": float(_seed(key))})
    rows_BV = codec_for(token).decode(payload, TensorSpec(dtype, (num_values,)), max_rows=num_rows)
    if len(rows_BV) != num_rows:
        raise BadFrame(f"compress: {len(rows_BV)} rows where {num_rows} were agreed")
    return rows_BV


def coded_bytes(token: str, shape: tuple[int, int], dtype: str = "float32") -> int:
    return codec_for(token).size_bounds(TensorSpec(dtype, (shape[1],)), shape[0])[1]


def message_bytes(coded: int, *, num_scalars: int = 0) -> int:
    return STAMP_BYTES + SCALAR_BYTES * num_scalars + coded


def _seed(key: Key) -> int:
    """53 bits of the key's stream: what a codec takes as its seed."""
    high, low = (int(word) for word in key.bits(2))
    return (high << 32 | low) >> 11


def squares(x: Array) -> float:
    """|x|^2, in float64."""
    flat = x.reshape(-1).astype(np.float64)
    return float(flat @ flat)
