"""Who takes part in a round: drawn alike by the server and every worker, so that nobody needs to be told."""

from __future__ import annotations

import math

from tierline.core.errors import ConfigError
from tierline.core.types import NodeId
from tierline.learning.rule import Turn


def check_share(strategy: str, share: float) -> float:
    """`share` unchanged. Raises ConfigError unless it is in (0, 1]."""
    if not 0.0 < share <= 1.0:
        raise ConfigError(f"{strategy}: share = {share} must be above 0 and at most 1")
    return share


def chosen(t: Turn, share: float) -> tuple[NodeId, ...]:
    """max(1, round(share * K)) of the K workers, at random for this round, in their own order.

    Raises ConfigError where there are no workers.
    """
    if not t.workers:
        raise ConfigError("a strategy needs at least one worker beside its server")
    num = max(1, math.floor(share * len(t.workers) + 0.5))
    if num == len(t.workers):
        return t.workers
    rows = t.shared_rng("participants").permutation(len(t.workers))[:num]
    return tuple(t.workers[row] for row in sorted(rows.tolist()))
