"""Masks over the weights of a model, a bit for each weight that may go: all of tensors with two axes or more."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tierline.core.arrays import Params
from tierline.core.errors import BadFrame
from tierline.learning.effects import Message

Bools = npt.NDArray[np.bool_]
Bits = npt.NDArray[np.uint8]


def prunable(x: Params) -> Bools:
    """Which values of the flat model may go."""
    return np.concatenate([np.full(view.size, view.ndim > 1) for _, view in x.items()])


def to_bits(stays: Bools) -> Bits:
    return np.packbits(stays)


def from_bits(message: Message, num: int) -> Bools:
    """The mask of `num` weights that a message holds. Raises BadFrame."""
    bits = message.get("mask")
    if not isinstance(bits, np.ndarray) or bits.dtype != np.uint8 or bits.shape != (-(-num // 8),):
        raise BadFrame(f"`mask` must hold {num} bits, as uint8[{-(-num // 8)}]")
    return np.unpackbits(bits, count=num).astype(np.bool_)
