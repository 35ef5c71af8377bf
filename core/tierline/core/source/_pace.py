"""An open-loop schedule: item k is due at start + k/rate, however long earlier items took, so nothing drifts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tierline.core.clock import MonotonicClock
from tierline.core.errors import ConfigError
from tierline.core.protocols import Clock


class Pace:
    """Waits until item k is due; `rate` in Hz, 0 never waits. The schedule starts with the first wait."""

    def __init__(
        self,
        rate: float,
        *,
        clock: Clock | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if not 0.0 <= rate < float("inf"):
            raise ConfigError(f"rate = {rate:g} must be 0 (as fast as asked) or a frequency in Hz")
        self._rate = rate
        self._clock = clock or MonotonicClock()
        self._sleep = sleep
        self._start_ns: int | None = None

    async def wait(self, k: int) -> None:
        """Return when item `k` is due, at once if that has passed."""
        if self._rate == 0.0:
            return
        if self._start_ns is None:
            self._start_ns = self._clock.now_ns()
        due_ns = self._start_ns + round(k * 1e9 / self._rate)
        ahead_ns = due_ns - self._clock.now_ns()
        if ahead_ns > 0:
            await self._sleep(ahead_ns / 1e9)
