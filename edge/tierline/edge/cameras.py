"""From sources to the flow, from outcomes to sinks: one task per source, one for all sinks, everything bounded."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from tierline.core.errors import PlanError, TierlineError
from tierline.core.flow.node import Node
from tierline.core.link.messages import CaptureNow
from tierline.core.link.tasks import together
from tierline.core.protocols import Capture, Outcome, Sink, Source
from tierline.core.types import NodeId, SampleId

LOG = logging.getLogger("tierline.edge")
MAX_UNDELIVERED = 1024
"""Outcomes that sinks may be behind before sources wait for them."""


@dataclass(slots=True)
class Camera:
    """One view: its source and how many of its samples may wait for an answer."""

    view: str
    source: Source
    in_flight: int
    budget_ms: float
    slots: asyncio.Semaphore = field(init=False)
    triggers: asyncio.Queue[SampleId] = field(default_factory=lambda: asyncio.Queue(maxsize=64))

    def __post_init__(self) -> None:
        self.slots = asyncio.Semaphore(self.in_flight)


class Cameras:
    """All views of a node."""

    def __init__(self, node: Node, cameras: Iterable[Camera], sinks: Iterable[Sink]) -> None:
        self.num_failed = 0
        """Captures that could not be run (wrong image, engine error)."""
        self._node = node
        self._cameras = {camera.view: camera for camera in cameras}
        self._sinks = list(sinks)
        self._outcomes: asyncio.Queue[Outcome] = asyncio.Queue()
        self._room = asyncio.Event()
        self._room.set()
        self._listeners: set[asyncio.Queue[Outcome]] = set()
        self._requested: set[tuple[str, SampleId]] = set()
        node.on_capture_now = self._capture_now

    def replace(self, view: str, source: Source) -> None:
        """Another source for a view, before `run`."""
        self._cameras[view].source = source

    def outcome(self, outcome: Outcome) -> None:
        """The node's answer to one view: on to the sinks, and room for the view's next sample."""
        self._outcomes.put_nowait(outcome)
        if self._outcomes.qsize() > MAX_UNDELIVERED:
            self._room.clear()
        camera = self._cameras.get(outcome.view)
        if (outcome.view, outcome.id) in self._requested:
            self._requested.discard((outcome.view, outcome.id))
        elif camera is not None:
            camera.slots.release()
        for queue in self._listeners:
            if not queue.full():
                queue.put_nowait(outcome)

    def dropped(self) -> dict[str, int]:
        """Frames that newer ones replaced, by view."""
        return {view: camera.source.num_dropped for view, camera in self._cameras.items()}

    def expect(self, view: str, sample: SampleId) -> None:
        """This sample did not come from the view's source: its outcome makes no room there."""
        self._requested.add((view, sample))

    def forget(self, view: str, sample: SampleId) -> None:
        """What was expected was refused, and has no outcome."""
        self._requested.discard((view, sample))

    def subscribe(self) -> asyncio.Queue[Outcome]:
        """Outcomes from now on; a subscriber that does not keep up misses some."""
        queue: asyncio.Queue[Outcome] = asyncio.Queue(maxsize=MAX_UNDELIVERED)
        self._listeners.add(queue)
        return queue

    def unsubscribe(self, queue: asyncio.Queue[Outcome]) -> None:
        self._listeners.discard(queue)

    async def check(self) -> None:
        """Raise what a missing file or program will raise, whatever the Plan makes of these views."""
        for camera in self._cameras.values():
            await camera.source.check()

    async def open(self) -> None:
        """Open all sources, so that a wrong one is found before this node says that it is ready."""
        for camera in self._cameras.values():
            await camera.source.open()

    async def run(self) -> None:
        """Until cancelled; a source that ends leaves the others running."""
        try:
            await together([*(self._watch(camera) for camera in self._cameras.values()), self._deliver()])
        finally:
            for camera in self._cameras.values():
                await camera.source.close()
            await self._deliver_rest()
            for sink in self._sinks:
                await sink.close()

    async def _watch(self, camera: Camera) -> None:
        counter = itertools.count()
        while True:
            await camera.slots.acquire()
            await self._room.wait()
            plan = self._node.plan
            triggered = plan is not None and plan.join.by == "trigger"
            id_ = await camera.triggers.get() if triggered else None
            capture = await camera.source.capture()
            if capture is None:
                LOG.info("view %s: the source has ended", camera.view)
                return
            if capture.seq is None and plan is not None and plan.join.by == "sequence":
                raise PlanError(
                    f"view {camera.view!r}: its source has no numbers of its own, and the hierarchy joins by sequence; "
                    'write by = "trigger" (or "none") under [join]'
                )
            seq = capture.seq if capture.seq is not None else next(counter)
            if not await self._take(camera, capture, seq, id_):
                camera.slots.release()
            # A source that never waits must not keep links from being served.
            await asyncio.sleep(0)

    async def _take(self, camera: Camera, capture: Capture, seq: int, id_: SampleId | None) -> bool:
        plan = self._node.plan
        if id_ is None and plan is not None and plan.join.by == "none":
            id_ = SampleId(NodeId(f"{self._node.id}:{camera.view}"), self._node.epoch, seq)
        try:
            await self._node.capture(
                camera.view,
                seq,
                capture.image,
                capture_ns=capture.capture_ns,
                truth=capture.truth,
                budget_ms=camera.budget_ms,
                id_=id_,
            )
        except TierlineError as error:
            self.num_failed += 1
            if self.num_failed <= 3:
                LOG.warning("view %s, sample %s: %s", camera.view, seq, error)
            return False
        return True

    def _capture_now(self, request: CaptureNow) -> None:
        for camera in self._cameras.values():
            for sample in request.ids:
                if camera.triggers.full():
                    camera.triggers.get_nowait()  # the oldest request is the least worth answering
                camera.triggers.put_nowait(sample)

    async def _deliver(self) -> None:
        while True:
            outcome = await self._outcomes.get()
            await self._put(outcome)
            if not self._room.is_set() and self._outcomes.qsize() < MAX_UNDELIVERED // 2:
                self._room.set()

    async def _deliver_rest(self) -> None:
        while not self._outcomes.empty():
            await self._put(self._outcomes.get_nowait())

    async def _put(self, outcome: Outcome) -> None:
        for sink in self._sinks:
            await sink.put(outcome)
