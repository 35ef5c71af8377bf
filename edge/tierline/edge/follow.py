"""A node follows its parent from Plan to Plan: fetches what the next one needs, gets ready, takes it when told to.

The parent's orders arrive in sequence and are passed on to the children: PREPARE as soon as files are here for them,
COMMIT once this node itself has changed over, with the number from which on its own ids belong to the new Plan. A
node that hears COMMIT without having prepared, because it was away, prepares then; meanwhile its samples go on under
the Plan that it has, and end degraded where the parent no longer runs that.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from tierline.core.bundle import Bundle
from tierline.core.flow.host import Host
from tierline.core.link.fleet import Fetch, Order
from tierline.core.plan import Plan, parse_plan

LOG = logging.getLogger("tierline.plan")
GetBundle = Callable[[Order, Plan, Fetch], Awaitable[Bundle]]


class Follower:
    """Carries out `prepare`, `commit` and `abort` at one node."""

    def __init__(self, host: Host, get_bundle: GetBundle, on_active: Callable[[Plan], None]) -> None:
        """`get_bundle(order, plan, fetch)` fetches what is missing, or says why this node cannot run the Plan;
        `on_active(plan)` hears of a Plan once it is in force here."""
        self._host, self._get_bundle, self._on_active = host, get_bundle, on_active
        self._turn = host.node.turn
        self._digest = ""
        """Of the Plan that is prepared, or being prepared."""
        self._preparing: asyncio.Task[None] | None = None
        self._committing: asyncio.Task[None] | None = None

    def take(self, order: Order, fetch: Fetch) -> None:
        """Carry out an order; what takes long goes on beside the heartbeats."""
        if order.phase == "prepare":
            self._prepare(order, fetch)
        elif order.phase == "commit":
            self._committing = asyncio.create_task(self._commit_or_say_why(order, fetch, self._committing))
        elif not order.plan or self._digest == _digest(order):
            self.abort(order)

    def abort(self, order: Order | None = None) -> None:
        """Forget what was prepared, here and below. An order without a Plan means whatever was."""
        if not self._digest:
            return
        if self._preparing is not None:
            self._preparing.cancel()
        self._preparing, self._digest = None, ""
        self._host.desk.coming = None
        self._turn.discard()
        self._pass_on(order or Order("abort", b""))

    async def commit(self, order: Order, fetch: Fetch) -> None:
        """This Plan is in force. Raises what keeps this node from running it."""
        plan, node = parse_plan(order.plan, "the parent's plan"), self._host.node
        if node.plan is not None and node.plan.version >= plan.version:
            self.abort()
            return
        if self._digest != _digest(order):
            self._prepare(order, fetch)
        task = self._preparing
        assert task is not None
        await asyncio.wait((task,))
        if task is not self._preparing:  # another order has come meanwhile
            return
        self._preparing, self._digest = None, ""
        task.result()
        first_seq = self._turn.activate(order.first_seq)
        LOG.info("plan %d is in force", plan.version)
        self._on_active(plan)
        self._pass_on(Order("commit", order.plan, order.bundle_digest, order.manifest, first_seq))

    def _prepare(self, order: Order, fetch: Fetch) -> None:
        if self._digest == _digest(order):
            return
        if self._preparing is not None:
            self._preparing.cancel()
        self._digest = _digest(order)
        self._preparing = asyncio.create_task(self._get_ready(order, fetch))
        self._preparing.add_done_callback(_look)

    async def _get_ready(self, order: Order, fetch: Fetch) -> None:
        plan = parse_plan(order.plan, "the parent's plan")
        self._turn.loading(plan.version)
        try:
            self._host.desk.coming = bundle = await self._get_bundle(order, plan, fetch)
            self._pass_on(replace(order, phase="prepare"))
            await self._turn.prepare(plan, bundle)
        except Exception as error:  # an engine's library may raise anything
            self._turn.failed(plan.version, error)
            raise

    async def _commit_or_say_why(self, order: Order, fetch: Fetch, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait((before,))
        try:
            await self.commit(order, fetch)
        except Exception as error:  # as above
            LOG.error("a Plan in force cannot be run here: %s; samples are answered alone", error)

    def _pass_on(self, order: Order) -> None:
        if self._host.listener is not None:
            self._host.listener.push(order)

    def close(self) -> None:
        for task in (self._preparing, self._committing):
            if task is not None:
                task.cancel()


def _digest(order: Order) -> str:
    return hashlib.sha256(order.plan).hexdigest()


def _look(task: asyncio.Task[None]) -> None:
    """Failures are told in the node's state: nobody else need look."""
    if not task.cancelled():
        task.exception()
