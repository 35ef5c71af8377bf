"""Every Plan this cloud put in force, in files, and the change from one to the next.

`state_dir/plans/plan-N.json` is written before version N is sent to anybody. After a restart the last version goes on,
knobs that an operator turned included, unless the files that it was made from (hierarchy, Bundle, cloud.toml) say
something else now: then a Plan made from the files follows it. Versions never repeat.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tierline.core.bundle import Manifest
from tierline.core.config import override
from tierline.core.errors import ConfigError, PlanError
from tierline.core.flow.knobs import PlanKnobs, describe, knobs_of, with_knobs
from tierline.core.plan import Plan, parse_plan

FROM_FILES = "hierarchy, Bundle and cloud.toml"


class Record(msgspec.Struct, frozen=True):
    """Content of one file."""

    made_at: str
    """UTC, ISO 8601."""
    why: str
    base: str
    """Digest of the Plan that the files alone made, as if it were version 1."""
    plan: msgspec.Raw


class PlanStore:
    """The Plans of one cloud. Implements `Planner` once `attach` has said who takes them."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / "plans"
        self._base = ""
        self._plan: Plan | None = None
        self._manifest: Manifest | None = None
        self._check: Callable[[Plan], None] = lambda plan: None
        self._use: Callable[[Plan], None] = lambda plan: None

    def start(self, made: Plan, manifest: Manifest) -> Plan:
        """The Plan to start with, given the one that the files make. Raises ConfigError where it cannot be kept."""
        self._manifest, self._base = manifest, msgspec.structs.replace(made, version=1).digest()
        versions = self._versions()
        if versions:
            last = self._read(versions[-1])
            if last.base == self._base:
                self._plan = parse_plan(bytes(last.plan), str(self._path(versions[-1])))
                return self._plan
        self._plan = msgspec.structs.replace(made, version=versions[-1] + 1 if versions else 1)
        self._write(self._plan, FROM_FILES)
        return self._plan

    def attach(self, check: Callable[[Plan], None], use: Callable[[Plan], None]) -> None:
        """`check` refuses a Plan that nodes cannot run, `use` puts one in force."""
        self._check, self._use = check, use

    def plans(self) -> list[dict[str, Any]]:
        assert self._plan is not None and self._manifest is not None
        found: list[dict[str, Any]] = []
        for version in self._versions():
            record = self._read(version)
            plan = parse_plan(bytes(record.plan), str(self._path(version)))
            # Tiers are named by the Bundle, and an older one may have had others.
            told = describe(plan, self._manifest) if plan.bundle == self._plan.bundle else {"version": version}
            found.append({"made_at": record.made_at, "why": record.why, **told})
        return found

    def change(self, settings: Sequence[str], rollback_to: int, dry_run: bool) -> dict[str, Any]:
        """Make, check, keep and use the next version. Raises PlanError, UnknownCodec, ConfigError."""
        assert self._plan is not None and self._manifest is not None  # nobody asks before `start`
        knobs, why = knobs_of(self._plan, self._manifest), []
        if rollback_to:
            if rollback_to not in self._versions():
                kept = ", ".join(map(str, self._versions()))
                raise PlanError(f"no plan {rollback_to} is kept here; there are {kept}")
            former = parse_plan(bytes(self._read(rollback_to).plan), str(self._path(rollback_to)))
            if (former.bundle, former.nodes) != (self._plan.bundle, self._plan.nodes):
                raise PlanError(
                    f"plan {rollback_to} runs another Bundle or hierarchy; only knobs can be rolled back while running"
                )
            knobs, why = knobs_of(former, self._manifest), [f"knobs of plan {rollback_to}"]
        knobs = override(knobs, settings, "plan")
        why += [f"--set {item}" for item in settings]
        plan = with_knobs(self._plan, self._manifest, _without_empty(knobs), self._plan.version + 1)
        self._check(plan)
        if msgspec.structs.replace(plan, version=self._plan.version) == self._plan:
            plan = self._plan
        elif not dry_run:
            self._write(plan, " ".join(why))
            self._plan = plan
            self._use(plan)
        return describe(plan, self._manifest)

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

    def _write(self, plan: Plan, why: str) -> None:
        made_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = Record(made_at, why, self._base, msgspec.Raw(plan.document()))
        beside = self._folder / f".plan-{plan.version}.part"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            beside.write_bytes(msgspec.json.encode(record))
            beside.replace(self._path(plan.version))
        except OSError as error:
            raise ConfigError(f"{self._folder}: a Plan cannot be kept there ({error.strerror})") from error


def _without_empty(knobs: PlanKnobs) -> PlanKnobs:
    """`--set links.NODE=` takes a node's own codec away."""
    return msgspec.structs.replace(knobs, links={node: token for node, token in knobs.links.items() if token})
