"""A rule's state as bytes, without pickle: a header in JSON, and after it the arrays as they lie in memory."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from tierline.learning.rule import State

_LENGTH_BYTES = 8


def state_to_parts(state: State) -> list[bytes | memoryview]:
    """Pieces that are the state one after the other; the arrays are not copied, so write them before they change."""
    arrays: list[memoryview] = []
    header: list[tuple[Any, ...]] = []
    for name, value in state.items():
        array = np.asarray(value)
        if array.ndim:
            header.append((name, array.dtype.str, array.shape))
            arrays.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        else:
            header.append((name, array.item()))
    raw = json.dumps(header).encode()
    return [len(raw).to_bytes(_LENGTH_BYTES, "little"), raw, *arrays]


def state_from_bytes(raw: bytes) -> State:
    start = _LENGTH_BYTES + int.from_bytes(raw[:_LENGTH_BYTES], "little")
    state: dict[str, Any] = {}
    for name, value, *shape in json.loads(raw[_LENGTH_BYTES:start]):
        if not shape:
            state[name] = value
            continue
        count = math.prod(shape[0])
        state[name] = np.frombuffer(raw, value, count, start).reshape(shape[0]).copy()
        start += state[name].nbytes
    return state
