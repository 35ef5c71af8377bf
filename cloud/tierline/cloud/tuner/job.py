"""Everything that one tuning needs, kept together: `tierline tune` writes it, `tierline explain` asks again."""

from __future__ import annotations

import calendar
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from tierline.cloud.tuner.apply import plan_of, write_choice
from tierline.cloud.tuner.baselines import baselines
from tierline.cloud.tuner.choice import Choice, Point, Proposal
from tierline.cloud.tuner.effects import Effects
from tierline.cloud.tuner.goal import Goal
from tierline.cloud.tuner.ladder import Ladder
from tierline.cloud.tuner.search import propose
from tierline.cloud.tuner.space import Space
from tierline.cloud.tuner.statistics import Statistics
from tierline.cloud.tuner.tryout import UNREADABLE, read_effects, write_effects
from tierline.core.bundle import Bundle
from tierline.core.candidates import candidates_of, read_outcomes
from tierline.core.errors import BundleError, PlanError
from tierline.core.plan import Hierarchy, Join, Plan, parse_plan
from tierline.core.profile import Profile, parse_profile

PROPOSAL, PROFILE, EFFECTS, PLAN, BUNDLE = "proposal.json", "profile.json", "effects.npz", "plan.json", "bundle"


@dataclass(frozen=True)
class Job:
    """What is tuned, where, and to what end."""

    bundle: Bundle
    """With candidates; a Bundle derived from another keeps them."""
    profile: Profile
    hierarchy: Hierarchy
    goal: Goal
    effects: Effects
    join: Join = field(default_factory=Join)
    handling_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def ladder(self) -> Ladder:
        return Ladder.of(candidates_of(self.bundle.manifest))

    def propose(self, space: Space | None = None) -> Proposal:
        """Raises PlanError, see `search.propose`."""
        return propose(
            self.ladder,
            Statistics(read_outcomes(self.bundle)),
            self.profile,
            self.hierarchy,
            self.goal,
            effects=self.effects,
            space=space,
            num_classes=len(self.bundle.manifest.labels),
            handling_ms=self.handling_ms,
            window_ms=self.join.window_ms,
        )

    def baselines(self) -> dict[str, Point | str]:
        """What others would choose, by name; in words why not, where nothing of theirs meets the goal."""
        found: dict[str, Point | str] = {}
        for name, space in baselines(self.ladder, self.hierarchy).items():
            try:
                found[name] = self.propose(space).chosen
            except PlanError as error:
                found[name] = str(error)
        return found

    def with_changes(self, **changes: Any) -> Job:
        return replace(self, **changes)


class Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of `proposal.json`."""

    schema: int
    proposal: Proposal
    hierarchy: Hierarchy
    join: Join
    handling_ms: dict[str, float]


def check_profile(profile: Profile, bundle: Bundle, hierarchy: Hierarchy, max_age_s: float, now_s: float) -> None:
    """Raise PlanError for a Profile of another Bundle, of other nodes, or too old."""
    if profile.bundle != bundle.digest:
        raise PlanError(
            f"stale profile: it was measured for Bundle {profile.bundle[:12]}, this one is {bundle.digest[:12]}; "
            "measure again with `tierline profile`"
        )
    for node in hierarchy.nodes:
        found = profile.nodes.get(node.id)
        if found is None:
            why = profile.missing.get(node.id, "it was not measured")
            raise PlanError(f"profile: node {node.id!r} is missing ({why}); measure again with `tierline profile`")
        try:
            made_s = calendar.timegm(time.strptime(found.made_at, "%Y-%m-%dT%H:%M:%SZ"))
        except ValueError:
            raise PlanError(f"profile: node {node.id!r}: made_at = {found.made_at!r} is no time") from None
        if now_s - made_s > max_age_s:
            raise PlanError(
                f"stale profile: node {node.id!r} was measured {(now_s - made_s) / 3600:.1f} h ago, the limit is "
                f"{max_age_s / 3600:g} h; measure again with `tierline profile`, or allow more with --max-age"
            )
        if node.parent and node.id not in profile.links:
            raise PlanError(f"profile: the link from {node.id!r} to its parent is missing; measure again")


def keep(
    job: Job, proposal: Proposal, folder: Path, valid: Mapping[str, tuple[float, float]] | None = None
) -> tuple[Bundle, Plan]:
    """Write the chosen Bundle and Plan into `folder`, and all that `explain` needs; `valid`: what the Plan holds for.

    Raises BundleError, PlanError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    choice: Choice = proposal.chosen.choice
    derived = write_choice(job.bundle, choice, folder / BUNDLE)
    plan = plan_of(derived, choice, job.hierarchy, join=job.join, valid=valid)
    (folder / PLAN).write_bytes(msgspec.json.format(plan.document(), indent=1))
    (folder / PROFILE).write_bytes(msgspec.json.format(job.profile.document(), indent=1))
    write_effects(folder / EFFECTS, job.effects)
    kept = Kept(1, proposal, job.hierarchy, job.join, dict(job.handling_ms))
    (folder / PROPOSAL).write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=1))
    return derived, plan


def planned_in(folder: Path) -> Plan:
    """The Plan that `keep` wrote. Raises PlanError."""
    path = folder / PLAN
    try:
        return parse_plan(path.read_bytes(), str(path))
    except OSError as error:
        raise PlanError(
            f"{path}: cannot be read ({error.strerror}); give a folder that `tierline tune --out` wrote"
        ) from None


def kept_in(folder: Path) -> tuple[Job, Proposal]:
    """What `keep` wrote. Raises PlanError, BundleError."""
    path = folder / PROPOSAL
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=Kept)
    except OSError as error:
        raise PlanError(
            f"{path}: cannot be read ({error.strerror}); give a folder that `tierline tune --out` wrote"
        ) from None
    except msgspec.MsgspecError as error:
        raise PlanError(f"{path}: not what `tierline tune` writes: {error}") from None
    bundle = Bundle.open(folder / BUNDLE)
    profile = parse_profile((folder / PROFILE).read_bytes(), str(folder / PROFILE))
    if profile.digest() != kept.proposal.profile:
        raise PlanError(f"{folder / PROFILE}: is not the Profile that this Plan was made from; tune again")
    try:
        effects = read_effects(folder / EFFECTS, read_outcomes(bundle))
    except UNREADABLE as error:
        raise BundleError(f"{folder / EFFECTS}: cannot be read ({error}); tune again") from None
    job = Job(bundle, profile, kept.hierarchy, kept.proposal.goal, effects, kept.join, kept.handling_ms)
    return job, kept.proposal
