"""Messages that reach the server whole, one per worker: what is wrong with one is named, and the round goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from tierline.core.arrays import Params
from tierline.core.errors import BadFrame, CodecError, LinkError, ShapeMismatch
from tierline.core.types import NodeId
from tierline.learning.effects import Inbox, Message, number, params
from tierline.learning.rule import Turn

MAX_MAGNITUDE = 2.0**100
"""Larger values are refused: sums of them, or of their squares, may not be finite."""

T = TypeVar("T")
_log = logging.getLogger("tierline.learning")


def accepted(t: Turn, got: Inbox, read: Callable[[NodeId, Message], T]) -> dict[NodeId, T]:
    """What `read` makes of each worker's message, in the order of their names. A message that it refuses is left out,
    with a warning that names round, worker and reason."""
    kept: dict[NodeId, T] = {}
    for sender, message in sorted(got.items()):
        try:
            kept[sender] = read(sender, message)
        except (LinkError, CodecError, ShapeMismatch) as error:
            _log.warning("round %d: refused the update of %s: %s", t.round, sender, error)
    return kept


def too_few(t: Turn, name: str, num: int, least: int) -> None:
    """Say that a round leaves the model as it is."""
    _log.warning("round %d: %s has %d usable updates of the %d it needs; the model stays", t.round, name, num, least)


def finite(message: Message, name: str, like: Params) -> Params:
    """An array laid out like `like`. Raises BadFrame, ShapeMismatch."""
    value = params(message, name, like)
    for key, view in value.items():
        # A comparison with NaN is false.
        if not (np.abs(view) <= MAX_MAGNITUDE).all():
            raise BadFrame(f"{key!r} holds values that are not finite, or above 2^100; a smaller lr may help")
    return value


def num_samples(message: Message, max_samples: int | None) -> float:
    """On how many samples an update claims to rest. Raises BadFrame."""
    num = number(message, "n")
    if not 0.0 < num < 2.0**31:
        raise BadFrame(f"n = {num} is no number of samples")
    if max_samples is not None and num > max_samples:
        raise BadFrame(f"claims {num:.0f} samples; max_samples = {max_samples}")
    return num
