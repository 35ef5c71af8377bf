"""Choosing again for the world as it is now: what a Plan in force is worth there, what would be best, and whether
that is worth a switch. Pure functions of a Job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tierline.cloud.tuner.apply import structure_of
from tierline.cloud.tuner.choice import Choice, Point
from tierline.cloud.tuner.goal import Goal
from tierline.cloud.tuner.ladder import hosts_of
from tierline.cloud.tuner.measured import Measured
from tierline.cloud.tuner.world import OutOfTime, World, Worlds
from tierline.core.errors import PlanError


@dataclass(frozen=True)
class Weighed:
    """A choice in force against the best one."""

    before: float
    """The goal's figure of the choice in force; infinite where it breaks a limit."""
    best: Point
    after: float
    worlds: Worlds
    """With the goal that was aimed at."""
    note: str = ""
    """Why not at the goal itself."""

    @property
    def gain(self) -> float:
        """Part of the figure that a switch saves."""
        if self.before == float("inf"):
            return 1.0 if self.after < float("inf") else 0.0
        return 1 - self.after / self.before if self.before > 0 else 0.0


def weigh(worlds: Worlds, choice: Choice, world: World, look: Callable[[], None] = lambda: None) -> Weighed:
    """Where nothing meets the goal in this world, its limits on quality alone count, so that what can be saved is.

    `look` as in `Worlds`. Raises PlanError where not even these can be met, OutOfTime.
    """
    note, worlds = "", Worlds(worlds.job, look, worlds)
    try:
        best = worlds.best(world)
    except OutOfTime:
        raise
    except PlanError as error:
        note = str(error)
        goal = worlds.job.goal
        least = Goal(goal.minimise, goal.max_quality_loss, rate_per_s=goal.rate_per_s, watts=goal.watts)
        worlds = Worlds(worlds.job.with_changes(goal=least), look, worlds)
        best = worlds.best(world)
    return Weighed(worlds.figure(worlds.priced(choice, world)), best, worlds.figure(best), worlds, note)


def is_same(a: Choice, b: Choice) -> bool:
    """Whether both are run alike."""
    return (structure_of(a), a.exits, a.codecs) == (structure_of(b), b.exits, b.codecs)


def expected_ms(worlds: Worlds, choice: Choice) -> dict[str, dict[str, dict[int, float]]]:
    """What Sections of a choice take by the Profile: milliseconds by node, level and rows of a batch. A Section
    without operators is not among them."""
    job = worlds.job
    measured, stages = Measured(job.profile, job.ladder.cuts), job.ladder.stages(choice.cuts, list(choice.exits))
    found: dict[str, dict[str, dict[int, float]]] = {}
    for host in hosts_of(job.hierarchy):
        run = measured.run(host, stages, choice.engines)
        for level, by_batch in enumerate(run.batch_ms if run is not None else ()):
            if run is not None and by_batch.get(1, 0.0) > 0:
                found.setdefault(host[run.at[level]].id, {})[str(level)] = dict(by_batch)
    return found
