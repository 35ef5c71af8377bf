"""Why a Plan was chosen, which knob would change it, and what would change if the world did: functions of a Job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tierline.cloud.tuner.choice import Choice, Point, Proposal
from tierline.cloud.tuner.goal import Goal
from tierline.cloud.tuner.job import Job
from tierline.cloud.tuner.ladder import END
from tierline.cloud.tuner.space import Space, all_cuts, all_thresholds, tiers_of, whole_space
from tierline.cloud.tuner.statistics import Statistics, vectors
from tierline.cloud.tuner.world import slower
from tierline.core.catalog import nearest
from tierline.core.errors import PlanError, UsageError
from tierline.core.profile import LinkTime
from tierline.core.types import Array


@dataclass(frozen=True)
class Knob:
    """The best choice that differs in one thing only."""

    knob: str
    point: Point | None
    """None: nothing else meets the goal."""


def knobs(job: Job, proposal: Proposal) -> list[Knob]:
    """For every knob, the best the goal allows with that knob on any other setting and the others as chosen."""
    chosen = proposal.chosen.choice
    whole, ladder = whole_space(job.ladder, job.hierarchy), job.ladder
    tiers = tiers_of(job.hierarchy)
    others = tuple(cuts for cuts in all_cuts(ladder, tiers) if cuts != chosen.cuts)
    fixed = (tuple(chosen.exits),)
    hung = dict(ladder.exits)
    by_cut = {cut: chosen.codecs[tier] for tier, cut in chosen.cuts.items() if tier in chosen.codecs}

    def same_thresholds(statistics: Statistics, exits: Sequence[str], most: int) -> tuple[Array, bool]:
        return vectors([[chosen.exits[name]] for name in exits]), True

    spaces = {
        "cuts": Space(others, fixed, thresholds=same_thresholds),
        "exits": Space((chosen.cuts,), tuple(e for e in whole.exits if e != fixed[0]), allows=_same(by_cut)),
    }
    for tier in chosen.codecs:
        cut = chosen.cuts[tier]
        spaces[f"codecs.{tier.value}"] = Space(
            (chosen.cuts,),
            fixed,
            allows=_other_codec(by_cut, cut),
            thresholds=same_thresholds,
        )
    for name in chosen.exits:
        if name in hung:
            spaces[f"thresholds.{name}"] = Space(
                (chosen.cuts,), fixed, allows=_same(by_cut), thresholds=_other_threshold(chosen, name)
            )
    found = []
    for knob, space in spaces.items():
        try:
            found.append(Knob(knob, job.propose(space).chosen if space.cuts and space.exits else None))
        except PlanError:
            found.append(Knob(knob, None))
    return found


def _same(by_cut: Mapping[str, str]) -> Any:
    return lambda at, found: found == by_cut.get(at)


def _other_codec(by_cut: Mapping[str, str], cut: str) -> Any:
    return lambda at, found: (found != by_cut[at]) if at == cut else found == by_cut.get(at)


def _other_threshold(chosen: Choice, knob: str) -> Any:
    """All thresholds of one exit but the chosen one, the others as chosen."""

    def make(statistics: Statistics, exits: Sequence[str], most: int) -> tuple[Array, bool]:
        own, complete = all_thresholds(statistics, (knob,), most)
        other = [float(value) for value in own[:, 0] if value != chosen.exits[knob]]
        return vectors([other if name == knob else [chosen.exits[name]] for name in exits]), complete

    return make


def what_if(job: Job, changes: Sequence[str], links: Mapping[str, tuple[float, float]]) -> Job:
    """The Job in another world: `link=lte` (all links), `link.NODE=3g`, `slower.NODE=2`, or a key of the goal.

    `links`: round trip in ms and bit/s by name. Raises UsageError.
    """
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise UsageError(f"--what-if {change}: write KEY=VALUE, e.g. link=lte, link.NODE=3g, slower.NODE=2")
        kind, _, node = key.partition(".")
        if kind == "link":
            job = _other_link(job, node, value, links)
        elif kind == "slower":
            job = _slower(job, node, value)
        elif key in Goal.__struct_fields__:
            job = job.with_changes(goal=_other_goal(job.goal, key, value))
        else:
            keys = ["link", "link.NODE", "slower.NODE", *Goal.__struct_fields__]
            raise UsageError(f"--what-if {change}: no such key{nearest(key, keys)}")
    return job


def _other_link(job: Job, node: str, value: str, links: Mapping[str, tuple[float, float]]) -> Job:
    if node and node not in job.profile.links:
        raise UsageError(f"--what-if link.{node}: no such link{nearest(node, list(job.profile.links))}")
    rtt_ms, bps = links[value]
    profile = job.profile
    for name in [node] if node else list(profile.links):
        other = LinkTime(name, rtt_ms, bps, bps, 0.0)
        profile = msgspec.structs.replace(profile, links={**profile.links, name: other})
    return job.with_changes(profile=profile)


def _slower(job: Job, node: str, value: str) -> Job:
    if node not in job.profile.nodes:
        raise UsageError(f"--what-if slower.{node}: no such node{nearest(node, list(job.profile.nodes))}")
    factor = _number(f"slower.{node}", value)
    if not 0 < factor < float("inf"):
        raise UsageError(f"--what-if slower.{node}={value}: write a number above 0, such as 2 for half as fast")
    nodes = {**job.profile.nodes, node: slower(job.profile.nodes[node], factor)}
    return job.with_changes(profile=msgspec.structs.replace(job.profile, nodes=nodes))


def _other_goal(goal: Goal, key: str, value: str) -> Goal:
    document = {**msgspec.to_builtins(goal), key: value if key == "minimise" else _number(key, value)}
    try:
        return msgspec.convert(document, Goal)
    except msgspec.ValidationError as error:
        raise UsageError(f"--what-if {key}={value}: {error}") from None


def _number(key: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise UsageError(f"--what-if {key}={value}: write a number") from None


def why_left(
    job: Job, choice: Choice, record: Mapping[str, Any], scores: Mapping[str, float] | None = None
) -> list[str]:
    """Why a sample left where it did, in sentences; `scores` by exit make them exact. From a record of `telemetry`."""
    said = [
        f"sample {record['id']['origin']}/{record['id']['epoch']}/{record['id']['seq']}, view {record['view']}: "
        f"{record['label']!r} with confidence {record['confidence']:.3f} by exit {record['exit']!r} after "
        f"{record['total_ms']:.2f} ms, plan {record['plan']}"
    ]
    if record["degraded"]:
        said.append(f"degraded: {record['reason']}; it did not get as far as its scores would have taken it")
    order = [name for name, _ in job.ladder.exits if name in choice.exits]
    for name in order:
        threshold = choice.exits[name]
        score = "" if scores is None or name not in scores else f" {scores[name]:.4g}"
        if record["exit"] == name:
            said.append(f"its score{score} at {name!r} was below the threshold {threshold:.4g}: it left there")
            return said
        said.append(f"its score{score} at {name!r} was not below the threshold {threshold:.4g}: it climbed")
    said.append(f"{record['exit']!r} answers all that reaches it")
    return said


def stages_told(job: Job, choice: Choice) -> list[dict[str, Any]]:
    """What runs where, a row per stage."""
    stages = job.ladder.stages(choice.cuts, list(choice.exits))
    return [
        {
            "tier": stage.tier.value,
            "runs": f"{stage.first}..{stage.last}",
            "exit": "the network's end" if stage.exit == END else stage.exit or "none",
            "leaves_below": choice.exits.get(stage.exit, ""),
            "sends": choice.codecs.get(stage.tier, "") if stage.last == choice.cuts[stage.tier] else "",
        }
        for stage in stages
    ]
