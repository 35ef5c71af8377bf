"""When what is measured leaves what the Plan in force was chosen for, the root searches again, and goes over to what is
better by enough.

The search is the Tuner's, on a thread and with a deadline; the world is the Profile's, with what has drifted, now or
before, as it is now. Every decision is a line of the log and of `state_dir/decisions.jsonl`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from tierline.cloud.config import Drifting
from tierline.cloud.drift import Drift, Drifted, Expected, measured
from tierline.cloud.plans import PlanStore, Tuned
from tierline.cloud.shelf import Shelf
from tierline.cloud.switch import Switcher
from tierline.cloud.tuner.again import Weighed, expected_ms, is_same, weigh
from tierline.cloud.tuner.apply import plan_of, write_choice
from tierline.cloud.tuner.choice import Choice
from tierline.cloud.tuner.goal import Goal
from tierline.cloud.tuner.validity import ranges
from tierline.cloud.tuner.world import Deadline, Worlds, quantities
from tierline.cloud.tunings import Tunings
from tierline.core.bundle import Bundle
from tierline.core.errors import MissingDependency, TierlineError
from tierline.core.plan import Hierarchy, Plan

LOG = logging.getLogger("tierline.drift")
SEARCH_S = 60.0
"""Longest search, and longest time for the ranges of what it found."""
MOVED = 0.2
"""What was weighed and found not worth a switch is weighed again once a quantity has moved by this share."""
NUM_TOLD = 8
"""Decisions in the status."""

Did = Literal["switched", "would switch", "kept", "failed"]


class Decision(msgspec.Struct, frozen=True):
    """One search, and what came of it."""

    at: str
    """UTC, ISO 8601."""
    plan: int
    """Version in force when it began."""
    drift: list[str]
    """Such as `up_mbps:gate 18.9 -> 1.1`."""
    did: Did
    why: str

    def told(self) -> str:
        return f"{', '.join(self.drift)}: {self.did}: {self.why}"


@dataclass(frozen=True)
class _Known:
    """What was read for one Plan."""

    version: int
    choice: Choice
    worlds: Worlds
    expected: Expected
    base: Mapping[str, float]
    """What it was chosen at."""


class Retuner:
    """Of one root. `look` once a second."""

    def __init__(
        self,
        config: Drifting,
        goal: Goal | None,
        store: PlanStore,
        switcher: Switcher,
        shelf: Shelf,
        tunings: Tunings,
        hierarchy: Hierarchy,
        state_dir: Path,
    ) -> None:
        """`goal`: that of the hierarchy file, instead of the one that was tuned for."""
        self._config, self._goal, self._hierarchy = config, goal, hierarchy
        self._store, self._switcher, self._shelf, self._tunings = store, switcher, shelf, tunings
        self._path = state_dir / "decisions.jsonl"
        self._drift = Drift(hold_s=config.hold_s, rest_s=config.rest_s)
        self._known: _Known | None = None
        self._measured: dict[str, float] = {}
        self._weighed: tuple[int, dict[str, float]] = (0, {})
        self._decisions = deque(_read(self._path), NUM_TOLD)
        self._unfit = 0
        """Version of a Plan that cannot be tuned again."""
        self._task: asyncio.Task[None] | None = None
        self._deadline = Deadline(0.0)
        self._state = ""

    def is_watching(self) -> bool:
        """Whether a look is worth a status."""
        plan, is_off = self._store.in_force(), self._config.retune == "off"
        return bool(plan.valid) and not is_off and self._task is None and self._unfit != plan.version

    def look(self, now_s: float, status: Mapping[str, Mapping[str, Any]]) -> None:
        """Compare a status with the Plan in force. What follows runs beside."""
        plan, tuned = self._store.in_force(), self._store.tuned()
        if tuned is None or not self.is_watching():
            return
        if self._known is None or self._known.version != plan.version:
            self._begin(self._learn(plan, tuned))
            return
        self._measured = measured(status, self._known.expected)
        found = self._drift.look(now_s, plan.version, plan.valid, self._measured, self._known.base, self._was_weighed)
        if found:
            self._begin(self._again(plan, tuned, self._known, found))

    def record(self) -> dict[str, Any]:
        """For the status of the root, as JSON values; empty where the Plan was not tuned."""
        plan = self._store.in_force()
        if not plan.valid and not self._decisions:
            return {}
        return {
            "retune": self._config.retune,
            "state": self._state,
            "valid": {name: list(ends) for name, ends in plan.valid.items()},
            "measured": {name: round(value, 4) for name, value in self._measured.items() if name in plan.valid},
            "decisions": [msgspec.to_builtins(decision) for decision in self._decisions],
        }

    async def close(self) -> None:
        """Give up what is under way."""
        if self._task is not None:
            self._deadline.end()
            self._task.cancel()
            await asyncio.wait((self._task,))

    # --- inside -----------------------------------------------------------------------------------------------

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        async def done() -> None:
            try:
                await work
            except Exception:  # a bug of ours must not end a root that serves
                LOG.exception("tuning again failed")
                self._unfit = self._store.in_force().version
            finally:
                self._task, self._state = None, ""

        self._task = asyncio.create_task(done())

    def _was_weighed(self, found: Sequence[Drifted]) -> bool:
        version, values = self._weighed
        return version == self._store.in_force().version and all(
            drifted.name in values and abs(drifted.value / values[drifted.name] - 1) < MOVED for drifted in found
        )

    async def _learn(self, plan: Plan, tuned: Tuned) -> None:
        """Read what the Plan was chosen from."""

        def read() -> _Known:
            job = self._tunings.find(tuned.tuning).job(self._store.bundle(), self._goal)
            worlds = Worlds(job)
            base = {**quantities(job.profile), **tuned.world}
            return _Known(plan.version, tuned.choice, worlds, expected_ms(worlds, tuned.choice), base)

        try:
            self._known = await asyncio.to_thread(read)
        except TierlineError as error:
            LOG.error("plan %d cannot be tuned again: %s", plan.version, error)
            self._unfit = plan.version

    async def _again(self, plan: Plan, tuned: Tuned, known: _Known, found: Sequence[Drifted]) -> None:
        self._state = "searching"
        drift = [f"{x.name} {known.base[x.name]:.4g} -> {x.value:.4g}" for x in found]
        # What was once out may be back in its range: of all that is not as in the Profile, the latest counts.
        world = {name: self._measured.get(name, value) for name, value in tuned.world.items()}
        world.update({x.name: x.value for x in found})
        for one in found:
            LOG.info("%s", one.told())

        def say(did: Did, why: str) -> None:
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            self._keep(Decision(at, plan.version, drift, did, why))

        try:
            self._deadline = Deadline(SEARCH_S)
            weighed = await asyncio.to_thread(weigh, known.worlds, known.choice, world, self._deadline)
            why = _told(weighed, known.worlds.job.goal)
            is_worth_it = weighed.gain >= self._config.min_gain and not is_same(weighed.best.choice, known.choice)
            if not is_worth_it or self._config.retune == "log":
                self._weighed = plan.version, {x.name: x.value for x in found}
                say("would switch" if is_worth_it else "kept", why)
                return
            self._state = "switching"
            bundle = self._store.bundle_for(weighed.best.choice, tuned.tuning)
            if bundle is None:
                bundle = await asyncio.to_thread(self._derive, known, weighed.best.choice)
            self._deadline = Deadline(SEARCH_S)
            worlds = Worlds(weighed.worlds.job, self._deadline, weighed.worlds)
            valid = await asyncio.to_thread(ranges, worlds, weighed.best.choice, world)
            chosen = plan_of(bundle, weighed.best.choice, self._hierarchy, valid=valid)
            now_tuned = Tuned(tuned.tuning, weighed.best.choice, world)
            if self._store.in_force() is not plan:
                say("kept", f"somebody else has put plan {self._store.in_force().version} in force meanwhile")
                return
            made = await self._switcher.choose(bundle, chosen, f"drift: {', '.join(drift)}; {why}", now_tuned)
            say("switched", f"plan {made['version']}: {why}")
        except TierlineError as error:
            say("failed", str(error))

    def _derive(self, known: _Known, choice: Choice) -> Bundle:
        try:
            return self._shelf.make(lambda folder: write_choice(known.worlds.job.bundle, choice, folder))
        except ImportError as error:
            raise MissingDependency(
                f"{choice.told()} needs Sections joined anew: pip install 'tierline[train]' on this machine ({error})"
            ) from None

    def _keep(self, decision: Decision) -> None:
        self._decisions.append(decision)
        log = LOG.info if decision.did == "kept" else LOG.warning
        log("%s", decision.told())
        try:
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(decision) + b"\n")
        except OSError as error:
            LOG.error("%s: decisions cannot be kept there (%s)", self._path, error.strerror)


def _told(weighed: Weighed, goal: Goal) -> str:
    before = "breaks a limit" if weighed.before == float("inf") else f"{weighed.before:.4g}"
    what = f"{goal.minimise} {before} -> {weighed.after:.4g} by {weighed.best.choice.told()}"
    return f"{what}; {weighed.note}" if weighed.note else what


def _read(path: Path) -> list[Decision]:
    """The last decisions of an earlier run; none where they cannot be read."""
    try:
        lines = path.read_bytes().splitlines()[-NUM_TOLD:]
        return [msgspec.json.decode(line, type=Decision) for line in lines]
    except (OSError, msgspec.MsgspecError):
        return []
