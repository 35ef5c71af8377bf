"""The world that a Profile describes, with some of it as it is now: quantities by name, and choices priced under them.

rtt_ms:NODE    round trip from a node to its parent
up_mbps:NODE   rate of that link upwards; downwards, where answers never fill it, it is taken to change alike
slower:NODE    time of a node's Sections and heads by that in the Profile
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from tierline.cloud.tuner.choice import Choice, Point
from tierline.cloud.tuner.goal import Goal
from tierline.cloud.tuner.job import Job
from tierline.cloud.tuner.outcome import ROUNDING, Thresholds
from tierline.cloud.tuner.search import propose
from tierline.cloud.tuner.space import Space
from tierline.cloud.tuner.statistics import Statistics, vectors
from tierline.core.candidates import read_outcomes
from tierline.core.errors import PlanError
from tierline.core.profile import LinkTime, NodeProfile, Profile
from tierline.core.types import Array

RTT, UP, SLOWER = "rtt_ms", "up_mbps", "slower"
World = Mapping[str, float]


class OutOfTime(PlanError):
    """A search was ended by its deadline."""


class Deadline:
    """Called now and then by a search: raises OutOfTime once its time is over."""

    def __init__(self, within_s: float) -> None:
        self._within_s, self._until_s = within_s, time.monotonic() + within_s

    def end(self) -> None:
        """Now: whoever waits for the search has gone."""
        self._until_s = float("-inf")

    def __call__(self) -> None:
        if time.monotonic() > self._until_s:
            raise OutOfTime(f"the search was not through within {self._within_s:g} s")


def quantities(profile: Profile) -> dict[str, float]:
    """All that can be another, with its value in the Profile."""
    found = {}
    for node, link in profile.links.items():
        found[f"{RTT}:{node}"] = link.rtt_ms
        found[f"{UP}:{node}"] = link.up_bps / 1e6
    return {**found, **{f"{SLOWER}:{node}": 1.0 for node in profile.nodes}}


def in_world(profile: Profile, world: World) -> Profile:
    """The Profile with these quantities in place of its own. Raises PlanError for one that it does not know."""
    known = quantities(profile)
    links, nodes = dict(profile.links), dict(profile.nodes)
    for name, value in world.items():
        if name not in known:
            raise PlanError(f"{name}: the Profile has no such quantity; there are {', '.join(known)}")
        kind, _, node = name.partition(":")
        if kind == SLOWER:
            nodes[node] = slower(nodes[node], value)
        elif kind == RTT:
            links[node] = msgspec.structs.replace(links[node], rtt_ms=value)
        else:
            links[node] = _rate(links[node], value * 1e6)
    return msgspec.structs.replace(profile, links=links, nodes=nodes)


def slower(node: NodeProfile, factor: float) -> NodeProfile:
    """With Sections and heads that take so many times as long."""
    stretched = {
        name: tuple(msgspec.structs.replace(t, p50_ns=int(t.p50_ns * factor)) for t in getattr(node, name))
        for name in ("sections", "heads")
    }
    return msgspec.structs.replace(node, **stretched)


def _rate(link: LinkTime, up_bps: float) -> LinkTime:
    return msgspec.structs.replace(link, up_bps=up_bps, down_bps=link.down_bps * up_bps / link.up_bps)


class Worlds:
    """One Job in many worlds. Pure; what is the same in all of them is made once."""

    def __init__(self, job: Job, look: Callable[[], None] = lambda: None, former: Worlds | None = None) -> None:
        """`look` is called now and then, and may raise to end a search; `former`: of the same Job but for its goal.

        Raises BundleError.
        """
        self.job, self._look = job, look
        if former is None:
            statistics = Statistics(read_outcomes(job.bundle))
            self._made = statistics, Thresholds(statistics, job.effects)
        else:
            self._made = former._made

    def best(self, world: World) -> Point:
        """What the goal asks for. Raises PlanError where nothing meets it."""
        return self._propose(world, self.job.goal, with_front=False, thresholds=self._made[1])

    def priced(self, choice: Choice, world: World) -> Point:
        """One choice, whether it meets the goal's limits or not. Raises PlanError where it was not measured."""
        goal = self.job.goal
        return self._propose(world, Goal(goal.minimise, rate_per_s=goal.rate_per_s, watts=goal.watts), only(choice))

    def figure(self, point: Point) -> float:
        """What the goal makes small; infinite where a limit is not met."""
        told = point.predicted
        if any(getattr(told, name) > limit + ROUNDING for name, limit in self.job.goal.limits().items()):
            return float("inf")
        return float(getattr(told, self.job.goal.minimise))

    def _propose(self, world: World, goal: Goal, space: Space | None = None, **more: Any) -> Point:
        job = self.job
        return propose(
            job.ladder,
            self._made[0],
            in_world(job.profile, world),
            job.hierarchy,
            goal,
            effects=job.effects,
            space=space,
            num_classes=len(job.bundle.manifest.labels),
            handling_ms=job.handling_ms,
            window_ms=job.join.window_ms,
            look=self._look,
            **more,
        ).chosen


def only(choice: Choice) -> Space:
    """A space of one choice; its nodes take the engines that suit them."""
    by_cut = {cut: choice.codecs[tier] for tier, cut in choice.cuts.items() if tier in choice.codecs}

    def thresholds(statistics: Statistics, exits: Sequence[str], most: int) -> tuple[Array, bool]:
        return vectors([[choice.exits[name]] for name in exits]), True

    return Space(
        (choice.cuts,),
        (tuple(choice.exits),),
        allows=lambda cut, token: token == by_cut.get(cut),
        thresholds=thresholds,
        engines=choice.engines,
    )
