"""Every Plan this cloud put in force, in files, and the change from one to the next.

`state_dir/plans/plan-N.json` is written before version N is sent to anybody. After a restart the last version goes on,
knobs that an operator turned included, unless the files that it was made from (hierarchy, Bundle, cloud.toml) say
something else now: then a Plan made from the files follows it. Versions never repeat.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tierline.cloud.shelf import Shelf
from tierline.cloud.tuner.apply import structure_of
from tierline.cloud.tuner.choice import Choice
from tierline.core.bundle import Bundle, Manifest
from tierline.core.config import override
from tierline.core.errors import BundleError, ConfigError, PlanError
from tierline.core.flow.knobs import PlanKnobs, describe, knobs_of, with_knobs
from tierline.core.plan import Plan, parse_plan

FROM_FILES = "hierarchy, Bundle and cloud.toml"


class Tuned(msgspec.Struct, frozen=True):
    """Of a Plan that the Tuner chose."""

    tuning: str
    """Digest of what it was chosen from (`tuner.tuning`)."""
    choice: Choice
    world: dict[str, float] = {}
    """What was measured since, and counted instead of the Profile (`tuner.world`)."""


class Record(msgspec.Struct, frozen=True):
    """Content of one file."""

    made_at: str
    """UTC, ISO 8601."""
    why: str
    base: str
    """Digest of the Plan that the files alone made, as if it were version 1."""
    plan: msgspec.Raw
    tuned: Tuned | None = None
    """None: nobody chose it by measurements, or a hand has changed what was chosen."""


class PlanStore:
    """The Plans of one cloud. `attach` says who takes other knobs; another structure is the Switcher's to bring in."""

    def __init__(self, state_dir: Path, shelf: Shelf | None = None) -> None:
        self._folder = state_dir / "plans"
        self._shelf = shelf or Shelf(state_dir)
        self._base = ""
        self._plan: Plan | None = None
        self._bundle: Bundle | None = None
        self._tuned: Tuned | None = None
        self._check: Callable[[Plan], None] = lambda plan: None
        self._use: Callable[[Plan], None] = lambda plan: None

    def start(self, made: Plan, bundle: Bundle, tuned: Tuned | None = None) -> Plan:
        """The Plan to start with, given the one that the files make, and their Bundle. Raises ConfigError where it
        cannot be kept, BundleError where the last Plan's Bundle is gone."""
        self._shelf.given = self._bundle = bundle
        self._base = msgspec.structs.replace(made, version=1).digest()
        versions = self._versions()
        if versions:
            last = self._read(versions[-1])
            if last.base == self._base:
                self._plan = self.kept(versions[-1])
                self._bundle, self._tuned = self._shelf.find(self._plan.bundle), last.tuned
                return self._plan
        self._plan = msgspec.structs.replace(made, version=versions[-1] + 1 if versions else 1)
        self._tuned = tuned
        self._write(self._plan, FROM_FILES, tuned)
        return self._plan

    def attach(self, check: Callable[[Plan], None], use: Callable[[Plan], None]) -> None:
        """`check` refuses a Plan that nodes cannot run, `use` puts one in force."""
        self._check, self._use = check, use

    def plans(self) -> list[dict[str, Any]]:
        now, manifest = self.in_force(), self.manifest()
        found: list[dict[str, Any]] = []
        for version in self._versions():
            record = self._read(version)
            plan = parse_plan(bytes(record.plan), str(self._path(version)))
            # Tiers are named by the Bundle, and an older one may have had others.
            told = describe(plan, manifest) if plan.bundle == now.bundle else {"version": version, "model": plan.model}
            found.append({"made_at": record.made_at, "why": record.why, **told})
        return found

    def change(self, settings: Sequence[str], rollback_to: int, dry_run: bool) -> dict[str, Any]:
        """Make, check, keep and use the next version. Raises PlanError, UnknownCodec, ConfigError."""
        now, manifest = self.in_force(), self.manifest()
        knobs, tuned, why = knobs_of(now, manifest), self._tuned, []
        if rollback_to:
            former = self.kept(rollback_to)
            if not self.has_structure(former):
                raise PlanError(f"plan {rollback_to} has another structure; its knobs alone have no place here")
            knobs, why = knobs_of(former, manifest), [f"knobs of plan {rollback_to}"]
        knobs = override(knobs, settings, "plan")
        why += [f"--set {item}" for item in settings]
        plan = with_knobs(now, manifest, without_empty(knobs), self.next_version())
        if not has_choice(plan, now):
            plan, tuned = by_hand(plan), None
        self._check(plan)
        if msgspec.structs.replace(plan, version=now.version) == now:
            plan = now
        elif not dry_run:
            self.take(plan, " ".join(why), tuned)
        return describe(plan, manifest)

    def take(self, plan: Plan, why: str, tuned: Tuned | None) -> None:
        """Other knobs of the same structure are in force from now on. Raises ConfigError."""
        self._write(plan, why, tuned)
        self._plan, self._tuned = plan, tuned
        self._use(plan)

    def commit(self, plan: Plan, bundle: Bundle, why: str, tuned: Tuned | None = None) -> None:
        """Another structure is in force from now on, also after a restart. Raises ConfigError."""
        self._write(plan, why, tuned)
        self._plan, self._bundle, self._tuned = plan, bundle, tuned

    def in_force(self) -> Plan:
        assert self._plan is not None  # nobody asks before `start`
        return self._plan

    def tuned(self) -> Tuned | None:
        """How the Plan in force was chosen."""
        return self._tuned

    def bundle_for(self, choice: Choice, tuning: str) -> Bundle | None:
        """That of the latest Plan that was chosen from the same (`tuning`, a digest) and has this choice's structure,
        where it is still kept and can be read."""
        for version in reversed(self._versions()):
            with contextlib.suppress(BundleError, PlanError):
                tuned = self._read(version).tuned
                if tuned and tuned.tuning == tuning and structure_of(tuned.choice) == structure_of(choice):
                    return self._shelf.find(self.kept(version).bundle)
        return None

    def bundle(self) -> Bundle:
        """That of the Plan in force."""
        assert self._bundle is not None
        return self._bundle

    def manifest(self) -> Manifest:
        return self.bundle().manifest

    def has_structure(self, plan: Plan) -> bool:
        """Whether only knobs separate a Plan from the one in force."""
        now = self.in_force()
        return (plan.bundle, plan.nodes) == (now.bundle, now.nodes)

    def next_version(self) -> int:
        return self.in_force().version + 1

    def kept(self, version: int) -> Plan:
        """A Plan that was in force. Raises PlanError."""
        if version not in self._versions():
            raise PlanError(f"no plan {version} is kept here; there are {', '.join(map(str, self._versions()))}")
        return parse_plan(bytes(self._read(version).plan), str(self._path(version)))

    def _versions(self) -> list[int]:
        return sorted(int(path.stem[5:]) for path in self._folder.glob("plan-*.json") if path.stem[5:].isdigit())

    def _path(self, version: int) -> Path:
        return self._folder / f"plan-{version}.json"

    def _read(self, version: int) -> Record:
        path = self._path(version)
        try:
            return msgspec.json.decode(path.read_bytes(), type=Record)
        except (OSError, msgspec.MsgspecError) as error:
            raise PlanError(f"{path}: not a kept Plan ({error}); move it away") from None

    def _write(self, plan: Plan, why: str, tuned: Tuned | None) -> None:
        made_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = Record(made_at, why, self._base, msgspec.Raw(plan.document()), tuned)
        beside = self._folder / f".plan-{plan.version}.part"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with beside.open("wb") as file:
                file.write(msgspec.json.encode(record))
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._path(plan.version))
        except OSError as error:
            raise ConfigError(f"{self._folder}: a Plan cannot be kept there ({error.strerror})") from error


def has_choice(plan: Plan, chosen: Plan) -> bool:
    """Whether what a Tuner chooses is in a Plan as it was chosen: the other knobs may be turned."""
    return (plan.thresholds, plan.codecs, plan.links) == (chosen.thresholds, chosen.codecs, chosen.links)


def by_hand(plan: Plan) -> Plan:
    """Whose choice is a person's holds whatever is measured."""
    return msgspec.structs.replace(plan, valid={})


def without_empty(knobs: PlanKnobs) -> PlanKnobs:
    """`--set links.NODE=` takes a node's own codec away."""
    return msgspec.structs.replace(knobs, links={node: token for node, token in knobs.links.items() if token})
