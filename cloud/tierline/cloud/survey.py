"""Has every node of a hierarchy measure itself, and puts the answers together: `tierline profile`.

Nodes on different machines measure at the same time, those on one machine one after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tierline.cloud.order_book import OrderBook
from tierline.core.bundle import Bundle
from tierline.core.candidates import candidates_of
from tierline.core.catalog import nearest
from tierline.core.coding import codec_for
from tierline.core.errors import AdmissionRefused, PlanError
from tierline.core.flow.desk import Desk
from tierline.core.flow.orders import Report
from tierline.core.link.fleet import ProfileStep, ProfileWish
from tierline.core.profile import SCHEMA, LinkTime, NodeProfile, Profile

LOOK_S = 0.1
LOST_S = 5.0
"""A node that is away so long while it measures is given up."""
STALLED_S = 300.0
"""So long without progress: engines that are built for minutes say nothing meanwhile."""


class Survey:
    """Implements `Surveyor` at the root."""

    def __init__(self, desk: Desk, stalled_s: float = STALLED_S) -> None:
        self._desk, self._stalled_s = desk, stalled_s
        self._running: Round | None = None
        self._num = 0
        desk.profiler.on_report = self._take

    async def profile(self, wish: ProfileWish) -> AsyncIterator[ProfileStep]:
        """See `Desk.profile`. Raises BundleError for a Bundle without candidates, PlanError, UnknownCodec,
        AdmissionRefused while another profile is being measured."""
        if self._running is not None:
            raise AdmissionRefused("a profile is being measured already; wait for it")
        plan, bundle = self._desk.node.plan, self._desk.node.bundle
        if plan is None or bundle is None:
            raise PlanError("no Plan yet")
        for node in wish.nodes:
            if node not in plan.nodes:
                raise PlanError(f"plan {plan.version}: no node {node!r}{nearest(node, list(plan.nodes))}")
        for token in wish.codecs:
            codec_for(token)
        candidates_of(bundle.manifest)
        self._num += 1
        wanted = [node for node in plan.nodes if not wish.nodes or node in wish.nodes]
        self._running = round_ = Round(f"{self._desk.node.epoch}-{self._num}", wanted)
        try:
            yield ProfileStep("", f"preparing {', '.join(wanted)}")
            book = await asyncio.to_thread(OrderBook, bundle, plan, wish, round_.id)
            async for step in self._survey(round_, book):
                yield step
            yield ProfileStep("", "done", round_.profile(bundle, book.notes).document())
        finally:
            self._running = None

    async def _survey(self, round_: Round, book: OrderBook) -> AsyncIterator[ProfileStep]:
        clock = asyncio.get_running_loop().time
        while not round_.is_over():
            status = self._desk.status_record()
            for node in round_.next_nodes(status):
                order, files = book.order(node)
                round_.began(node, clock())
                self._desk.profiler.take(msgspec.json.encode(order), files)
            for step in round_.look(status, clock(), self._stalled_s):
                yield step
            await asyncio.sleep(LOOK_S)

    def _take(self, report: Report) -> None:
        if self._running is not None:
            self._running.take(report)


@dataclass
class _Under:
    """A node that is measuring."""

    state: str
    changed_s: float
    seen_s: float


class Round:
    """Who still has to measure, who does, and what came of it. No I/O."""

    def __init__(self, id_: str, nodes: Sequence[str]) -> None:
        self.id = id_
        self._waiting = list(nodes)
        self._under: dict[str, _Under] = {}
        self._machines: dict[str, str] = {}
        self._missing: dict[str, str] = {}
        self._reports: dict[str, Report] = {}
        self._said: dict[str, str] = {}

    def is_over(self) -> bool:
        return (
            not self._waiting and not self._under and self._said.keys() >= self._reports.keys() | self._missing.keys()
        )

    def next_nodes(self, status: Mapping[str, Any]) -> list[str]:
        """Nodes to order now: connected, and alone on their machine. Those that are not connected are missing."""
        chosen = []
        for node in list(self._waiting):
            if not status.get(node, {}).get("connected", False):
                self._waiting.remove(node)
                self._missing[node] = "not connected"
                continue
            machine = str(status[node].get("machine", "")) or node
            if machine not in self._machines.values():
                self._waiting.remove(node)
                self._machines[node] = machine
                chosen.append(node)
        return chosen

    def began(self, node: str, now_s: float) -> None:
        self._under[node] = _Under("", now_s, now_s)

    def take(self, report: Report) -> None:
        """Of this round, else it comes too late."""
        if report.order != self.id or report.node not in self._under:
            return
        if report.profile is None:
            self._end(report.node, report.error or "it reported nothing")
            return
        self._under.pop(report.node)
        self._machines.pop(report.node)
        self._reports[report.node] = report

    def look(self, status: Mapping[str, Any], now_s: float, stalled_s: float) -> list[ProfileStep]:
        """What has changed; gives up nodes that are gone or stuck."""
        steps = []
        for node, under in list(self._under.items()):
            record = status.get(node, {})
            state = str(record.get("profiling", ""))
            if record.get("connected", False):
                under.seen_s = now_s
            if state and state != under.state:
                under.state, under.changed_s = state, now_s
                steps.append(ProfileStep(node, state))
            if now_s - under.seen_s > LOST_S:
                self._end(node, f"lost while it was measuring {under.state or 'nothing yet'}")
            elif now_s - under.changed_s > stalled_s:
                self._end(node, f"no progress for {stalled_s:g} s at {under.state or 'the start'}")
        ended = {**dict.fromkeys(self._reports, "done"), **{n: f"missing: {why}" for n, why in self._missing.items()}}
        for node, state in ended.items():
            if node not in self._said:
                self._said[node] = state
                steps.append(ProfileStep(node, state))
        return steps

    def _end(self, node: str, why: str) -> None:
        self._under.pop(node)
        self._machines.pop(node)
        self._missing[node] = why

    def profile(self, bundle: Bundle, notes: Mapping[str, Mapping[str, str]]) -> Profile:
        """What came of it. `notes`: what the orders left out, by node."""
        nodes: dict[str, NodeProfile] = {}
        links: dict[str, LinkTime] = {}
        for node, report in self._reports.items():
            assert report.profile is not None
            skipped = {**report.profile.skipped, **notes.get(node, {})}
            nodes[node] = msgspec.structs.replace(report.profile, skipped=skipped)
            if report.link is not None:
                links[node] = report.link
        return Profile(SCHEMA, bundle.digest, nodes, links, dict(self._missing))
