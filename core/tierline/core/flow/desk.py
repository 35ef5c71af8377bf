"""What a node does for its children apart from answering them: admission, Bundle files, heartbeats, status."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from tierline.core.bundle import MANIFEST, Bundle
from tierline.core.errors import BundleError, DigestMismatch, LinkUnavailable, PeerRejected
from tierline.core.flow.engines import READY
from tierline.core.flow.knobs import describe
from tierline.core.flow.negotiate import check_offer, offered_codecs
from tierline.core.flow.node import Node
from tierline.core.flow.profiling import Profiler
from tierline.core.flow.residents import resident_bytes
from tierline.core.flow.sounding import Sounding
from tierline.core.link.fleet import Beat, Hello, NodeState, PlanChange, ProfileStep, ProfileWish, Welcome
from tierline.core.link.link import Link
from tierline.core.plan import Plan
from tierline.core.telemetry.environment import machine


class Planner(Protocol):
    """Makes and keeps the Plans of a hierarchy."""

    def plans(self) -> list[dict[str, Any]]:
        """All versions kept, oldest first: as `knobs.describe` has it, with `made_at` and `why`."""
        ...

    async def change(self, wanted: PlanChange) -> dict[str, Any]:
        """Put another Plan in force; see `Desk.change_plan`."""
        ...

    def offer(self, manifest: bytes) -> list[str]:
        """Digests of the files of a Bundle that are not kept here yet."""
        ...

    async def put(self, bundle: str, digest: str, chunks: AsyncIterator[bytes]) -> None:
        """Keep one file of an offered Bundle."""
        ...


class Surveyor(Protocol):
    """Has the nodes of a hierarchy measure themselves."""

    def profile(self, wish: ProfileWish) -> AsyncIterator[ProfileStep]:
        """See `Desk.profile`."""
        ...


class Desk:
    """Implements `ParentDesk` around a Node."""

    def __init__(self, node: Node) -> None:
        self.node, self.profiler, self.sounding = node, Profiler(node), Sounding(node)
        self.orders, self.report = self.profiler.orders, self.profiler.report
        self.body = node.body
        self.revoked: Callable[[], tuple[str, ...]] = tuple
        """Serials of revoked certificates: the root asks its store, others heard them from their parent."""
        self.jobs: Callable[[], bytes] = bytes
        """What is learned now."""
        self.learning: Callable[[], dict[str, Any]] = dict
        """What this node says of its learning."""
        self.tuning: Callable[[], dict[str, Any]] = dict
        """What the root says of choosing other Plans."""
        self.planner: Planner | None = None
        """Set by the root, which makes the Plans."""
        self.coming: Bundle | None = None
        """Of a Plan that is being prepared: children fetch its files already."""
        self.on_states: Callable[[], None] = lambda: None
        """Called whenever `states` may have changed."""
        self.surveyor: Surveyor | None = None
        """Set by the root."""
        self._beats: dict[str, dict[str, Any]] = {}
        self._states: dict[str, tuple[NodeState, ...]] = {}
        node.turn.below_is_settled = self._below_is_settled
        node.turn.on_state = lambda: self.on_states()
        self._machine = machine()

    def admit(self, hello: Hello) -> Welcome:
        node, plan, bundle = self.node, self.node.plan, self.node.bundle
        if plan is None or bundle is None:
            raise LinkUnavailable(f"{node.id!r} has no Plan yet; try again")
        placement = plan.nodes.get(hello.node)
        if placement is None or placement.parent != node.id:
            children = [name for name, other in plan.nodes.items() if other.parent == node.id]
            raise PeerRejected(
                f"plan {plan.version} places no node {hello.node!r} below {node.id!r} "
                f"(it places {', '.join(children) or 'none'}); add it to the hierarchy file"
            )
        if hello.bundle_digest and hello.bundle_digest != bundle.digest:
            raise DigestMismatch(
                f"node {hello.node!r} has Bundle {hello.bundle_digest[:12]}..., {node.id!r} runs "
                f"{bundle.digest[:12]}... ({plan.model}); remove `bundle` from its agent file to fetch the right one"
            )
        check_offer(plan, hello.node, hello.codecs)
        return Welcome(
            parent=node.id,
            epoch=node.epoch,
            plan=plan.document(),
            plan_digest=plan.digest(),
            bundle_digest=bundle.digest,
            manifest=(bundle.folder / MANIFEST).read_bytes(),
            run=node.run_id,
            revoked=self.revoked(),
        )

    def plans(self) -> list[dict[str, Any]]:
        """As `tierline plan ls` prints them."""
        if self.planner is not None:
            return self.planner.plans()
        plan, bundle = self.node.plan, self.node.bundle
        return [] if plan is None or bundle is None else [describe(plan, bundle.manifest)]

    async def change_plan(self, wanted: PlanChange) -> dict[str, Any]:
        """Another Plan, at the root only. Raises PeerRejected elsewhere, PlanError, UnknownCodec, ConfigError."""
        return await self._root().change(wanted)

    def offer_bundle(self, manifest: bytes) -> list[str]:
        return self._root().offer(manifest)

    async def put_file(self, bundle: str, digest: str, chunks: AsyncIterator[bytes]) -> None:
        await self._root().put(bundle, digest, chunks)

    def _root(self) -> Planner:
        if self.planner is None:
            parent = self.node.flow.placement.parent if self.node.flow is not None else ""
            raise PeerRejected(
                f"{self.node.id!r} takes its Plan from {parent or 'its own file'!r}; ask the root of the hierarchy"
            )
        return self.planner

    # --- a Plan of another structure --------------------------------------------------------------------------

    def states(self) -> tuple[NodeState, ...]:
        """How far this node, and every node below that is connected, is with a Plan of another structure."""
        below = (state for child in self.node.children for state in self._states.get(child, ()))
        return (self.node.turn.state(), *below)

    def _below_is_settled(self, version: int) -> bool:
        for child in self.node.children:
            own = next((state for state in self._states.get(child, ()) if state.node == child), None)
            if own is None or own.version < version:
                return False
            if own.version == version and own.state not in ("settled", "failed"):  # who failed brings nothing older
                return False
        return True

    def profile(self, wish: ProfileWish) -> AsyncIterator[ProfileStep]:
        """Measure the hierarchy, at the root only: progress, then the Profile. Raises PeerRejected elsewhere."""
        if self.surveyor is None:
            parent = self.node.flow.placement.parent if self.node.flow is not None else ""
            raise PeerRejected(f"{self.node.id!r} is below {parent!r}; ask the root of the hierarchy for a profile")
        return self.surveyor.profile(wish)

    def check_offers(self, plan: Plan) -> None:
        """Raises UnknownCodec for a node that has joined, here or further below, and lacks a codec of the Plan."""
        for name, record in self.status_record().items():
            offered = record.get("codecs")
            if name in plan.nodes and isinstance(offered, list | tuple):
                check_offer(plan, name, offered)

    def child_up(self, link: Link) -> None:
        self.node.child_up(link)

    def child_down(self, link: Link) -> None:
        self.node.child_down(link)
        self._states.pop(link.peer, None)
        self.on_states()

    def beat(self, beat: Beat) -> None:
        try:
            status = json.loads(beat.status or b"{}")
        except (ValueError, RecursionError):
            status = {}
        # A child speaks for what is below it: records, under names that the Plan knows, and not for this node.
        known = self.node.plan.nodes if self.node.plan is not None else {}
        records = status.items() if isinstance(status, dict) else ()
        self._beats[beat.node] = {
            name: record
            for name, record in records
            if name in known and name != self.node.id and isinstance(record, dict)
        }
        states = tuple(state for state in beat.switches if state.node in known and state.node != self.node.id)
        if states != self._states.get(beat.node):
            self._states[beat.node] = states
            self.on_states()

    def file(self, digest: str) -> bytes:
        for bundle in filter(None, (self.node.bundle, self.coming)):
            for name, known in bundle.manifest.files.items():
                if known == digest:
                    return bundle.read(name)
        measured = self.profiler.file(digest)
        if measured is not None:
            return measured
        raise BundleError(f"{self.node.id!r}: no file with digest {digest[:12]!r} in its Bundle")

    def is_serving(self, section: str = "") -> bool | None:
        if not section:
            return self.node.flow is not None
        state = self.node.engine_states().get(section)
        return None if state is None else state == READY

    def status(self) -> bytes:
        return json.dumps(self.status_record()).encode()

    def status_record(self) -> dict[str, Any]:
        """This node and everything below it, by node id."""
        measuring = {"profiling": self.profiler.state, "machine": self._machine}
        nodes: dict[str, Any] = {
            self.node.id: {**node_record(self.node), **measuring, "learning": self.learning()},
        }
        for key, told in (("way", self.sounding.record()), ("tuning", self.tuning())):
            if told:
                nodes[self.node.id][key] = told
        for child, below in self._beats.items():
            for name, record in below.items():
                nodes[name] = {**record, "connected": record.get("connected", True) and child in self.node.children}
        return nodes


def node_record(node: Node) -> dict[str, Any]:
    """Status of one node, as JSON values."""
    plan, flow = node.plan, node.flow
    links = {"parent": node.parent, **node.children} if node.parent is not None else dict(node.children)
    return {
        "connected": node.parent is None or node.parent.is_up,
        "tier": flow.placement.tier.value if flow is not None else "",
        "parent": flow.placement.parent if flow is not None else "",
        "views": list(flow.placement.views) if flow is not None else [],
        "plan": plan.version if plan is not None else 0,
        "model": plan.model if plan is not None else "",
        "switch": switch_record(node.turn.state()),
        "codecs": offered_codecs(),
        "in_flight": node.num_open,
        "counts": dict(flow.counts) if flow is not None else {},
        "links": {
            name: {
                **link.counters.as_dict(),
                "sent_by_codec": dict(link.counters.sent_by_codec),
                "rtt_ms": round(link.rtt_ns / 1e6, 3),
                "sent_bps": round(link.sent_bps()[0]),
            }
            for name, link in links.items()
        },
        "engines": node.engine_states(),
        "sections": node.residents.now.times.record(node.clock.now_ns()) if node.residents.now is not None else {},
        "rss_bytes": resident_bytes(),
    }


def switch_record(state: NodeState) -> dict[str, Any]:
    """How far a node is with a Plan of another structure, as JSON values."""
    return {"plan": state.version, "state": state.state, "message": state.message}
