"""For which rates, round trips and speeds a choice holds: where nothing else is better than it by more than MARGIN.

Of a choice c and a quantity x, with f the figure that the goal makes small, found by pricing c and searching anew:

    range of x = { x : f(c, x) <= (1 + MARGIN) min over c' of f(c', x) },  others as measured

Without queues the mean latency of a choice is a straight line over round trip, slowness and the inverse of the rate,
and a minimum of lines is concave: the range is one interval, and its end is found by cutting planes. The end against
the choices known so far is taken; a search there finds a better one, which is then known, too, or none, and the end is
proved. For quantiles and limits, which have jumps, an end is the nearest found so.
"""

from __future__ import annotations

from collections.abc import Callable

from tierline.cloud.tuner.choice import Choice
from tierline.cloud.tuner.ladder import hosts_of, placed
from tierline.cloud.tuner.world import RTT, SLOWER, OutOfTime, World, Worlds, quantities
from tierline.core.errors import PlanError

MARGIN = 0.05
FAR = 100.0
"""Ranges end at so many times the value, and at that part of it."""
_PRECISION = 1.01
_MOST_SEARCHES = 8


def ranges(
    worlds: Worlds, choice: Choice, world: World | None = None, say: Callable[[str], None] = lambda line: None
) -> dict[str, tuple[float, float]]:
    """Of every quantity that can be measured under this choice, around its value in `world`: `Plan.valid`. Those of
    `world` come first; those that there was no time for are missing."""
    job, at = worlds.job, world or {}
    found = {}
    stages = job.ladder.stages(choice.cuts, list(choice.exits))
    runs_something = {
        path[i].id
        for path in hosts_of(job.hierarchy)
        for i, stage in zip(placed(stages, path), stages, strict=True)
        if stage.first != stage.last
    }
    for name, value in {**at, **quantities(job.profile), **at}.items():
        kind, _, node = name.partition(":")
        if value > 0 and (kind != SLOWER or node in runs_something):
            search = _Ends(worlds, choice, at, name, value)
            try:
                found[name] = (search.end(1 / FAR), search.end(FAR))
            except OutOfTime as error:
                say(f"{name}: for which values the Plan holds is not known: {error}")
                continue
            say(f"{name}: the Plan holds for {told(name, *found[name])}")
    return found


def told(name: str, low: float, high: float) -> str:
    """A range in words."""
    unit = {RTT: " ms", SLOWER: " times the profile"}.get(name.partition(":")[0], " Mbit/s")
    return f"{low:.3g} to {high:.3g}{unit}"


class _Ends:
    """The search for both ends of one quantity's range."""

    def __init__(self, worlds: Worlds, choice: Choice, world: World, name: str, value: float) -> None:
        self._worlds, self._choice, self._world, self._name, self._value = worlds, choice, world, name, value
        self._others: list[Choice] = []

    def end(self, factor: float) -> float:
        """The end towards `factor` times the value."""
        until = factor
        for _ in range(_MOST_SEARCHES):
            try:
                other = self._worlds.best(self._at(until)).choice
            except OutOfTime:
                raise
            except PlanError:  # nothing meets the goal there, this choice neither
                other = None
            if other is not None and other not in self._others:
                self._others.append(other)
            if self._holds(until):
                break
            until = self._bisect(until)
        return self._value * until

    def _bisect(self, out: float) -> float:
        """The last factor between 1 and one that is out at which nothing known is better."""
        inside = 1.0
        while max(out / inside, inside / out) > _PRECISION:
            middle = (inside * out) ** 0.5
            inside, out = (middle, out) if self._holds(middle) else (inside, middle)
        return inside

    def _holds(self, factor: float) -> bool:
        mine = self._figure(self._choice, factor)
        return mine < float("inf") and all(mine <= (1 + MARGIN) * self._figure(other, factor) for other in self._others)

    def _figure(self, choice: Choice, factor: float) -> float:
        return self._worlds.figure(self._worlds.priced(choice, self._at(factor)))

    def _at(self, factor: float) -> World:
        return {**self._world, self._name: self._value * factor}
