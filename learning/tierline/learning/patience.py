"""How long a wait goes on where that follows from when messages came before.

    within = min(ceiling, max(floor, slack * Q_q(delays)))

Q_q is the delay that a share q of the last messages did not exceed (nearest rank). Those that came too late count, or
each deadline would make the next one shorter; those that never come do not, so that nobody waits for the dead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tierline.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Adaptive:
    """A deadline that follows the delays of earlier messages of its tag. Raises ConfigError."""

    quantile: float = 0.9
    slack: float = 1.5
    floor_s: float = 0.05
    ceiling_s: float = 60.0
    """Also the deadline as long as nothing has come."""

    def __post_init__(self) -> None:
        if not 0.0 < self.quantile <= 1.0 or not self.slack > 0.0 or not 0.0 <= self.floor_s <= self.ceiling_s:
            raise ConfigError(
                f"within_s: quantile = {self.quantile} must be in (0, 1], slack = {self.slack} above 0, and "
                f"0 <= floor_s = {self.floor_s} <= ceiling_s = {self.ceiling_s}"
            )

    def after_s(self, delays_s: Sequence[float]) -> float:
        """The deadline, from the start of a wait."""
        if not delays_s:
            return self.ceiling_s
        rank = max(1, math.ceil(self.quantile * len(delays_s)))
        return min(self.ceiling_s, max(self.floor_s, self.slack * sorted(delays_s)[rank - 1]))


Within = float | Adaptive | None
"""Seconds, or how they follow; None: no deadline."""
