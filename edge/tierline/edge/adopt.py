"""Which Plan a node runs: taken from its parent at a join and while connected, kept for when there is no parent."""

from __future__ import annotations

import logging

from tierline.core.bundle import Bundle
from tierline.core.errors import DigestMismatch, UnknownCodec
from tierline.core.flow.host import Host
from tierline.core.flow.negotiate import check_offer, offered_codecs
from tierline.core.link.fleet import Fetch, Order, Welcome
from tierline.core.plan import Plan, parse_plan
from tierline.core.types import NodeId
from tierline.edge.bundles import BundleStore
from tierline.edge.follow import Follower

LOG = logging.getLogger("tierline.edge")


class Adoption:
    """Takes knobs at once, and another structure as its `Follower` gets ready for it."""

    def __init__(self, host: Host, store: BundleStore, given: Bundle | None) -> None:
        """`given` is the Bundle that this node was started with, instead of its parent's."""
        self._host, self._node, self._store, self._given = host, host.node, store, given
        self._follower = Follower(host, self._get_bundle, self._in_force)
        self._later: bytes | None = None
        """Knobs of a Plan whose structure is not in force here yet."""

    def close(self) -> None:
        """Take no more."""
        self._follower.close()

    async def joined(self, welcome: Welcome, fetch: Fetch) -> None:
        """After a join: take the parent's Plan and whatever of the Bundle is missing."""
        plan = parse_plan(welcome.plan, f"plan of {welcome.parent}")
        if plan.digest() != welcome.plan_digest:
            raise DigestMismatch(
                f"{welcome.parent} announced plan {welcome.plan_digest[:12]}... and sent {plan.digest()[:12]}...; "
                "install matching versions of tierline"
            )
        former, commit = self._node.plan, Order("commit", welcome.plan, welcome.bundle_digest, welcome.manifest)
        self._node.run_id = welcome.run
        self._store.remember_revoked(welcome.revoked)
        if former is not None and self._is_another_structure(former, plan):
            # Children are connected, and samples in flight: gently, as if it were told while connected.
            await self._follower.commit(commit, fetch)
        else:
            self._follower.abort()
            self._node.adopt(plan, await self._get_bundle(commit, plan, fetch))
            self._store.remember(plan)
            if former is not None and former.nodes == plan.nodes and self._host.listener is not None:
                self._host.listener.push(Order("knobs", welcome.plan))  # turned while this node was away
        if not plan.placement(self._node.id).joins:
            self._node.minter = (NodeId(welcome.parent), welcome.epoch)

    def _is_another_structure(self, former: Plan, plan: Plan) -> bool:
        """Whether a later Plan differs from the former by what two phases can change, and not by knobs alone."""
        ours, theirs = former.nodes.get(self._node.id), plan.placement(self._node.id)
        if ours is None or (ours.views, ours.joins, ours.tier) != (theirs.views, theirs.joins, theirs.tier):
            return False
        return plan.version > former.version and (plan.bundle, plan.nodes) != (former.bundle, former.nodes)

    async def _get_bundle(self, order: Order, plan: Plan, fetch: Fetch) -> Bundle:
        """What this node needs of a Plan's Bundle. Raises UnknownCodec, DigestMismatch and what fetching raises."""
        check_offer(plan, self._node.id, offered_codecs())
        if self._given is None:
            return await self._store.get(order.bundle_digest, order.manifest, plan, self._node.id, fetch)
        if self._given.digest != order.bundle_digest:
            raise DigestMismatch(
                f"plan {plan.version} runs Bundle {order.bundle_digest[:12]}..., this node was given "
                f"{self._given.digest[:12]}... by hand; remove `bundle` from its agent file to fetch what is asked for"
            )
        return self._given

    def take(self, order: Order, fetch: Fetch) -> None:
        """What the parent says of Plans while connected."""
        if order.phase == "knobs":
            self.turn_knobs(order.plan)
        else:
            self._follower.take(order, fetch)

    def _in_force(self, plan: Plan) -> None:
        """A Plan of another structure has taken over: knobs that were turned since go with it."""
        self._store.remember(plan)
        LOG.info("plan %d is in force, of another structure", plan.version)
        if self._later is not None:
            self.turn_knobs(self._later)

    def turn_knobs(self, document: bytes) -> None:
        """Knobs pushed while connected.

        A Plan that asks for a codec this node lacks is not taken, but passed on: payloads describe themselves.
        """
        plan, self._later = parse_plan(document, "pushed plan"), None
        if self._node.bundle is None or self._node.plan is None or plan.version <= self._node.plan.version:
            return
        if (plan.bundle, plan.nodes) != (self._node.bundle.digest, self._node.plan.nodes):
            self._later = document  # of a structure that is still being prepared here
            return
        try:
            check_offer(plan, self._node.id, offered_codecs())
            self._node.adopt(plan, self._node.bundle)
            self._store.remember(plan)
            LOG.info("plan %d is in force", plan.version)
        except UnknownCodec as error:
            LOG.error("plan %d is not taken: %s", plan.version, error)
        if self._host.listener is not None:
            self._host.listener.push(Order("knobs", document))
