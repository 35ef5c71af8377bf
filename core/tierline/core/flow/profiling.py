"""A node measures itself: its link, pieces of the network, heads and codecs, while it goes on answering.

Everything that takes time runs on one thread of its own, one measurement after the other. Orders and reports of nodes
further below pass through.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import msgspec

from tierline.core.errors import BadFrame, BundleError, LinkTimeout, LinkUnavailable, PeerRejected, TierlineError
from tierline.core.flow.node import Node
from tierline.core.flow.orders import Order, Report, parse
from tierline.core.flow.profile_run import ProfileRun, wanted
from tierline.core.flow.worker import Worker
from tierline.core.link.probe import LinkRates
from tierline.core.profile import LinkTime

LOG = logging.getLogger("tierline.profile")
KEEP_S = 20.0
RETRY_S = 1.0
MAX_RETRIES = 30


class Parent(Protocol):
    """What measuring needs of the way up; None at the root. Each raises TierlineError."""

    async def fetch(self, digest: str) -> bytes: ...

    async def report(self, document: bytes) -> None: ...

    async def probe(self) -> LinkRates: ...


class Profiler:
    """One per node."""

    def __init__(self, node: Node) -> None:
        self.parent: Parent | None = None
        """Set by who dials one."""
        self.state = ""
        """What is being measured; empty while nothing is."""
        self.on_report: Callable[[Report], None] | None = None
        """Set by the root: takes all reports."""
        self._node = node
        self._files: dict[str, bytes] = {}
        self._wanted: dict[str, Order] = {}
        """By node: orders that have not come back yet, so that their files are kept."""
        self._outgoing: dict[str, dict[str, bytes]] = {}
        """By child and node."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._worker = Worker("profile")
        self._run: ProfileRun | None = None
        self._is_closed = False

    # --- orders down, reports up ------------------------------------------------------------------------------

    def take(self, raw: bytes, files: dict[str, bytes] | None = None) -> None:
        """An order from the parent; the root gives one to itself with its `files`. Bad ones are logged."""
        try:
            order = parse(raw, Order, "the parent")
            child = self._way(order.node)
        except TierlineError as error:
            LOG.error("an order to measure is dropped: %s", error)
            return
        self._files.update(files or {})
        self._wanted[order.node] = order
        self._start(self._pass_on(child, order, raw) if child else self._obey(order))

    def orders(self, child: str) -> Sequence[bytes]:
        """For a child, each once."""
        return tuple(self._outgoing.pop(child, {}).values())

    def file(self, digest: str) -> bytes | None:
        """One that an order below needs."""
        return self._files.get(digest)

    def report(self, child: str, document: bytes) -> None:
        """From a child, about itself or a node below it. Raises BadFrame, PeerRejected."""
        report = parse(document, Report, child)
        if self._way(report.node) != child:
            raise PeerRejected(f"{child!r} cannot report on {report.node!r}, which is not below it")
        self._settled(report.node)
        self._up(report, document)

    def _way(self, node: str) -> str:
        """The child on the way down to a node; empty for this one. Raises BadFrame for a node not below."""
        at, plan = node, self._node.plan
        nodes = plan.nodes if plan is not None else {}
        for _ in range(len(nodes) + 1):
            if at == self._node.id:
                return ""
            if at not in nodes:
                break
            if nodes[at].parent == self._node.id:
                return at
            at = nodes[at].parent
        raise BadFrame(f"node {node!r} is not below {self._node.id!r}")

    async def _pass_on(self, child: str, order: Order, raw: bytes) -> None:
        try:
            await self._gather(order)
        except TierlineError as error:
            self._answer(Report(order.id, order.node, error=f"its files do not reach {self._node.id!r}: {error}"))
            return
        self._outgoing.setdefault(child, {})[order.node] = raw

    def _answer(self, report: Report) -> None:
        self._settled(report.node)
        self._up(report, msgspec.json.encode(report))

    def _up(self, report: Report, document: bytes) -> None:
        if self.on_report is not None:
            self.on_report(report)
        elif self.parent is not None:
            self._start(self._deliver(self.parent, document))

    async def _deliver(self, parent: Parent, document: bytes) -> None:
        for _ in range(MAX_RETRIES):
            try:
                await parent.report(document)
                return
            except (LinkUnavailable, LinkTimeout):
                await asyncio.sleep(RETRY_S)
            except TierlineError as error:
                LOG.error("a measurement is refused above: %s", error)
                return
        LOG.error("a measurement is lost: no way up for %g s", RETRY_S * MAX_RETRIES)

    def _settled(self, node: str) -> None:
        """The node's order is done; its files are kept a while, for the next one may need them."""
        self._wanted.pop(node, None)
        asyncio.get_running_loop().call_later(KEEP_S, self._forget)

    def _forget(self) -> None:
        needed = {digest for order in self._wanted.values() for digest in order.digests()}
        self._files = {digest: raw for digest, raw in self._files.items() if digest in needed}

    async def _gather(self, order: Order) -> None:
        for digest in order.digests():
            if digest in self._files:
                continue
            raw = self._of_bundle(digest)
            if raw is None:
                if self.parent is None:
                    raise BundleError(f"no file {digest[:12]}... here")
                raw = await self.parent.fetch(digest)
            self._files[digest] = raw

    def _of_bundle(self, digest: str) -> bytes | None:
        """A file of the Bundle that this node has, being one that it needs or passes on."""
        bundle = self._node.bundle
        named = next((n for n, known in bundle.manifest.files.items() if known == digest), "") if bundle else ""
        if bundle is None or not (bundle.folder / named).is_file():
            return None
        return bundle.read(named)

    def _start(self, job: Coroutine[Any, Any, None]) -> None:
        if self._is_closed:
            job.close()
            return
        task = asyncio.get_running_loop().create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- measuring --------------------------------------------------------------------------------------------

    async def _obey(self, order: Order) -> None:
        if self.state:
            self._answer(Report(order.id, order.node, error="it is measuring for another order; ask again later"))
            return
        try:
            link = await self._link()
            self.state = "fetching"
            own = wanted(order, self._node.engine_settings.name)
            await self._gather(own)
            self._run = ProfileRun(self._node, order, self._files, self._worker, self._say)
            profile = await self._run.profile()
            report = Report(order.id, order.node, profile, link)
        except TierlineError as error:
            report = Report(order.id, order.node, error=str(error))
        except Exception as error:  # a bug of ours must not leave the root waiting
            LOG.exception("measuring failed")
            report = Report(order.id, order.node, error=f"a bug, see its log: {error!r}")
        finally:
            self.state, self._run = "", None
        self._answer(report)

    async def _link(self) -> LinkTime | None:
        self.state = "link"
        link = self._node.parent
        if self.parent is None or link is None:
            return None
        rates = await self.parent.probe()
        # Behind samples that fill the link even the shortest ping waits; once one of them found it idle.
        rtt_ns = min(rates.rtt_ns, link.rtt_min_ns or rates.rtt_ns)
        return LinkTime(
            node=self._node.id,
            rtt_ms=round(rtt_ns / 1e6, 3),
            up_bps=rates.up_bps,
            down_bps=rates.down_bps,
            measured_over_s=round(rates.over_s, 3),
            up_from=rates.up_from,
        )

    def _say(self, state: str) -> None:
        self.state = state

    def close(self) -> None:
        """Give up what is under way; a single run of an engine is waited for."""
        self._is_closed = True
        if self._run is not None:
            self._run.stop()
        for task in self._tasks:
            task.cancel()
        self._worker.close()
