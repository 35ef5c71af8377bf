"""The root takes a running hierarchy from one Plan to another of a different structure, in two phases.

    PREPARE  every node that is connected fetches, loads and warms up what the Plan places there
             one fails, or takes too long  -->  ABORT everywhere: the Plan in force goes on
    COMMIT   written to a file first, then sent down. After a restart the last Plan in a file is in force, and a node
             that was away takes it when it joins again

What happened before the file was written did not happen; what was written will.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from tierline.cloud.plans import PlanStore, Tuned, by_hand, has_choice, without_empty
from tierline.cloud.shelf import Shelf
from tierline.cloud.tuner.tuning import parse_tuning
from tierline.cloud.tunings import Tunings, check_hierarchy
from tierline.core.bundle import MANIFEST, Bundle, Manifest
from tierline.core.config import override
from tierline.core.errors import PlanError
from tierline.core.flow.host import Host
from tierline.core.flow.knobs import describe, knobs_of, with_knobs
from tierline.core.link.fleet import NodeState, Order, PlanChange
from tierline.core.plan import Hierarchy, Plan, check_placement, make_plan, parse_plan

LOG = logging.getLogger("tierline.plan")
PREPARE_S = 120.0
"""Longer than this no node may take to get ready."""
TAKEN_S = 20.0
"""So long the answer waits for nodes to say that they have changed over."""
SETTLED_S = 90.0
"""So long a switch waits for samples of the one before."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the nodes' states amount to."""

    done: bool
    failed: str = ""
    """Why it cannot be done, by node."""
    waits_for: tuple[str, ...] = ()


def judge(connected: Collection[str], states: Iterable[NodeState], version: int, wanted: Collection[str]) -> Judgement:
    """Whether every connected node has reached one of the `wanted` states with this version. Nodes that are away are
    not waited for; whoever is further already counts."""
    known = {state.node: state for state in states}
    waits = []
    for name in sorted(connected):
        state = known.get(name)
        if state is None or state.version < version:
            waits.append(name)
        elif state.version == version and state.state == "failed":
            return Judgement(False, f"node {name!r}: {state.message}")
        elif state.version == version and state.state not in wanted:
            waits.append(name)
    return Judgement(not waits, "", tuple(waits))


class Switcher:
    """Implements `Planner`: knobs go straight to the store, structure takes two phases."""

    def __init__(
        self, store: PlanStore, shelf: Shelf, host: Host, hierarchy: Hierarchy, tunings: Tunings | None = None
    ) -> None:
        self._store, self._shelf, self._host, self._hierarchy = store, shelf, host, hierarchy
        self._tunings = tunings
        self._coming = 0
        """Version that is being prepared."""
        self._news = asyncio.Event()
        host.desk.on_states = self._news.set

    def plans(self) -> list[dict[str, Any]]:
        return self._store.plans()

    def offer(self, manifest: bytes) -> list[str]:
        return self._shelf.offer(manifest)

    async def put(self, bundle: str, digest: str, chunks: AsyncIterator[bytes]) -> None:
        await self._shelf.put(bundle, digest, chunks)

    async def change(self, wanted: PlanChange) -> dict[str, Any]:
        """Raises PlanError naming the node that cannot take part, and whatever makes a Plan no Plan."""
        self._check_free()
        tuning = parse_tuning(wanted.tuning, "what the Plan was chosen from") if wanted.tuning else None
        former = self._store.kept(wanted.rollback_to) if wanted.rollback_to else None
        if wanted.bundle:
            bundle = self._shelf.find(wanted.bundle)
            plan, why = self._made(bundle, wanted), [f"--bundle {bundle.manifest.name} {bundle.digest[:12]}"]
            if tuning is not None:
                check_hierarchy(tuning, self._hierarchy)
                why = [f"tuned: {tuning.choice.told()}"]
        elif former is not None and not self._store.has_structure(former):
            bundle, why = self._shelf.find(former.bundle), [f"plan {wanted.rollback_to} again"]
            plan = by_hand(self._checked(former, bundle, wanted.settings))
        else:
            return self._store.change(wanted.settings, wanted.rollback_to, wanted.dry_run)
        why += [f"--set {item}" for item in wanted.settings]
        self._host.desk.check_offers(plan)
        if tuning is None and self._store.has_structure(plan):
            raise PlanError("this Bundle runs already, and every Section where this Plan places it; change knobs alone")
        if wanted.dry_run:
            return describe(plan, bundle.manifest)
        tuned = None
        if tuning is not None and self._tunings is not None and plan.valid:
            tuned = Tuned(await asyncio.to_thread(self._tunings.keep, tuning), tuning.choice)
            if plan.version != self._store.next_version():
                raise PlanError("another Plan was put in force meanwhile; look at `tierline plan ls`, then try again")
        return await self.take(plan, bundle, " ".join(why), tuned)

    async def choose(self, bundle: Bundle, plan: Plan, why: str, tuned: Tuned) -> dict[str, Any]:
        """A Plan that a search has come to; knobs that it does not choose stay. As `take`."""
        now = self._store.in_force()
        kept = {key: getattr(now, key) for key in ("mode", "budget_ms", "max_batch", "join")}
        plan = self._checked(msgspec.structs.replace(plan, **kept), bundle, ())
        self._host.desk.check_offers(plan)
        return await self.take(plan, bundle, why, tuned)

    async def take(self, plan: Plan, bundle: Bundle, why: str, tuned: Tuned | None) -> dict[str, Any]:
        """Put a checked Plan in force: at once where only knobs are others, else as `switch` does."""
        self._check_free()
        if not self._store.has_structure(plan):
            return await self.switch(plan, bundle, why, tuned)
        self._store.take(plan, why, tuned)
        return describe(plan, bundle.manifest)

    async def switch(self, plan: Plan, bundle: Bundle, why: str, tuned: Tuned | None = None) -> dict[str, Any]:
        """Go over to this Plan; returns it as `describe` does, with `switch`: seconds of both phases, and notes.

        Raises PlanError where a node cannot prepare; then the Plan in force goes on everywhere.
        """
        self._coming, began_s = plan.version, time.monotonic()
        try:
            await self._settled()
            order = Order("prepare", plan.document(), bundle.digest, (bundle.folder / MANIFEST).read_bytes())
            notes = await self._prepared(order, plan, bundle, why, tuned)
            ready_s = time.monotonic()
            first_seq = self._host.node.turn.activate(0)
            self._push(replace(order, phase="commit", first_seq=first_seq))
            LOG.info("plan %d is in force: %s", plan.version, why)
            notes += await self._taken(plan.version)
        finally:
            self._coming = 0
        seconds = {"prepare_s": round(ready_s - began_s, 3), "commit_s": round(time.monotonic() - ready_s, 3)}
        return {**describe(plan, bundle.manifest), "switch": {**seconds, "notes": notes}}

    # --- the phases -------------------------------------------------------------------------------------------

    async def _settled(self) -> None:
        """Samples of the switch before are answered: three Plans at once are more than nodes hold."""
        found = await self._until(0, ("settled",), SETTLED_S)
        if not found.done:
            raise PlanError(
                f"{', '.join(found.waits_for) or found.failed}: still on the way from the Plan before; try again later"
            )

    async def _prepared(self, order: Order, plan: Plan, bundle: Bundle, why: str, tuned: Tuned | None) -> list[str]:
        """Every node is ready, and the Plan is in its file. Raises PlanError after an abort."""
        desk, turn = self._host.desk, self._host.node.turn
        desk.coming = bundle
        self._push(order)
        own = asyncio.create_task(turn.prepare(plan, bundle))
        own.add_done_callback(lambda task: None if task.cancelled() else task.exception())  # its state says why
        own.add_done_callback(lambda task: self._news.set())
        try:
            found = await self._until(plan.version, ("ready",), PREPARE_S, own)
            if not found.done:
                slow = f"not ready within {PREPARE_S:g} s: {', '.join(found.waits_for)}"
                raise PlanError(f"plan {plan.version} was given up; {found.failed or slow}; plan {self._now()} goes on")
            notes = [f"{state.node}: {state.message}" for state in desk.states() if state.message]
            self._store.commit(plan, bundle, why, tuned)
        except BaseException:
            own.cancel()
            await asyncio.wait((own,))
            desk.coming = None
            turn.discard()
            self._push(replace(order, phase="abort"))
            raise
        return notes

    async def _taken(self, version: int) -> list[str]:
        """Every node has changed over; notes about those that have not."""
        found = await self._until(version, ("active", "settled"), TAKEN_S)
        if found.done:
            return []
        return [found.failed or f"not changed over yet: {', '.join(found.waits_for)}"]

    async def _until(
        self, version: int, wanted: Sequence[str], within_s: float, own: asyncio.Task[None] | None = None
    ) -> Judgement:
        """Wait until all connected nodes are there, or one has failed. `version` 0: whatever they run."""
        deadline_s = time.monotonic() + within_s
        while True:
            self._news.clear()
            desk = self._host.desk
            connected = {name for name, record in desk.status_record().items() if record.get("connected", True)}
            states = desk.states()
            if not version:  # whatever it is: only `wanted` counts, and another Plan is what helps a node that failed
                states = tuple(NodeState(x.node, 0, "settled" if x.state == "failed" else x.state) for x in states)
            found = judge(connected, states, version, wanted)
            if own is not None and not own.done() and found.done:
                found = Judgement(False, "", (self._host.node.id,))
            left_s = deadline_s - time.monotonic()
            if found.done or found.failed or left_s <= 0:
                return found
            try:
                await asyncio.wait_for(self._news.wait(), left_s)
            except asyncio.TimeoutError:
                continue

    # --- Plans ------------------------------------------------------------------------------------------------

    def _made(self, bundle: Bundle, wanted: PlanChange) -> Plan:
        """A Plan for another Bundle. Raises PlanError."""
        now = self._store.in_force()
        if wanted.plan:
            plan = parse_plan(wanted.plan, "the Plan")
            if plan.bundle != bundle.digest:
                raise PlanError(f"the Plan is for Bundle {plan.bundle[:12]}..., given is {bundle.digest[:12]}...")
        else:
            plan = make_plan(
                self._hierarchy,
                bundle.manifest,
                bundle.digest,
                join=now.join,
                mode=now.mode,
                budget_ms=now.budget_ms,
                max_batch=now.max_batch,
            )
        return self._checked(plan, bundle, wanted.settings)

    def _checked(self, plan: Plan, bundle: Bundle, settings: Sequence[str]) -> Plan:
        """The next version, with knobs turned, where a running hierarchy can go over to it. Raises PlanError."""
        now, manifest = self._store.in_force(), bundle.manifest
        check_same_task(self._store.manifest(), manifest)
        check_placement(now, plan, len(manifest.levels))
        if plan.join != now.join:
            raise PlanError("the Plan joins views in another way; change the hierarchy file and restart the root")
        if set(plan.thresholds) != set(manifest.exits()[:-1]) or len(plan.codecs) != len(manifest.levels):
            raise PlanError(f"the Plan is not one for Bundle {manifest.name!r}: its exits or levels differ")
        knobs = override(knobs_of(plan, manifest), settings, "plan")
        made = with_knobs(plan, manifest, without_empty(knobs), self._store.next_version())
        return made if has_choice(made, plan) else by_hand(made)

    def _check_free(self) -> None:
        if self._coming:
            raise PlanError(f"plan {self._coming} is being prepared; try again when it is in force, or refused")

    def _now(self) -> int:
        return self._store.in_force().version

    def _push(self, order: Order) -> None:
        if self._host.listener is not None:
            self._host.listener.push(order)


def check_same_task(former: Manifest, manifest: Manifest) -> None:
    """Raises PlanError where answers or views would mean something else."""
    for what in ("task", "labels", "views"):
        old, new = getattr(former, what), getattr(manifest, what)
        if old != new:
            raise PlanError(
                f"Bundle {manifest.name!r} has other {what} ({_few(new)}; running are {_few(old)}); restart the root "
                "with it"
            )


def _few(value: str | list[str]) -> str:
    names = [value] if isinstance(value, str) else value
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
