"""What most rules of this room say to each other, and how they average what they hear."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tierline.core.arrays import Params
from tierline.core.types import NodeId
from tierline.learning.effects import Inbox, Message, params
from tierline.learning.rule import Turn


def to_all(t: Turn, **values: Params | float) -> dict[NodeId, Message]:
    """The same message to everyone who hears this node."""
    message: Message = {name: v.flat if isinstance(v, Params) else v for name, v in values.items()}
    return dict.fromkeys(t.peers_out, message)


def like(x: Params, flat: npt.NDArray[np.float64]) -> Params:
    """`flat`, rounded to float32 once, laid out like `x`."""
    return Params(x.layout, flat.astype(np.float32), buffers=x.buffers)


def mixed(t: Turn, mine: Params, got: Inbox, name: str = "x", *, strength: float = 1.0) -> Params:
    """mine + strength (sum_j w_ij x_j - mine) over those heard, in the order of their names, so that equal rows of W
    give equal bits. Whoever was not heard gives its weight to `mine`.

    Added up in float64: rounding to float32 happens once, which keeps the mean over all peers from drifting.
    """
    total = np.zeros(mine.flat.shape, np.float64)
    for j in sorted({t.me, *got}):
        if j == t.me:
            silent = sum(t.w[k] for k in sorted(t.peers_in - got.keys()))
            total += (1.0 - strength + strength * (t.w[j] + silent)) * mine.flat.astype(np.float64)
        else:
            total += strength * t.w[j] * params(got[j], name, mine).flat.astype(np.float64)
    return like(mine, total)


def residual(t: Turn, mine: Params, got: Inbox) -> Params:
    """sum_j w_ij (x_j - mine) over those heard: what mixing adds, rounded on its own scale, not on that of `mine`."""
    total = np.zeros(mine.flat.shape, np.float64)
    for j in sorted(got):
        total += t.w[j] * (params(got[j], "x", mine).flat.astype(np.float64) - mine.flat)
    return like(mine, total)


def ratio(lr: float, before: float) -> float:
    """By how much a buffer in units of steps (lr times gradients) scales when the learning rate changes.

    Rules here keep their buffers as steps, so that they mix with lr = 0 too, where others divide by it; at the border
    of 0 the buffer stays as it is.
    """
    return lr / before if lr > 0.0 and before > 0.0 else 1.0
