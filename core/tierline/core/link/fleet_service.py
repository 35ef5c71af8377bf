"""The Fleet service as a parent answers it: joining, heartbeats up and directives down, files, Plans."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol, get_args

import grpc.aio

from tierline.core import errors
from tierline.core.link.fleet import (
    CHUNK_BYTES,
    DEAD_AFTER_BEATS,
    HEARTBEAT_S,
    PROTOCOL,
    Beat,
    Hello,
    NodeState,
    Order,
    PlanChange,
    State,
    Welcome,
)
from tierline.core.link.link import Link
from tierline.core.link.measured import Guard, MeasureCalls, MeasureDesk
from tierline.core.link.messages import Body
from tierline.core.link.status import abort
from tierline.core.protocols import Clock
from tierline.v1 import fleet_pb2, fleet_pb2_grpc, plan_pb2


@dataclass(frozen=True)
class Task:
    """What a child is to do beside answering: JSON of `core.flow.orders`, or of `learning.fleet.job`."""

    measure: bytes = b""
    jobs: bytes = b""


Words = asyncio.Queue[Order | Task | int | None]
"""What a child is to be told: of Plans, of tasks, and the numbers of its heartbeats. None ends it."""


class ParentDesk(MeasureDesk, Protocol):
    """What a node does for its children; the listener calls it, always on the event loop."""

    def admit(self, hello: Hello) -> Welcome:
        """Take a child in. Raises a TierlineError that says why not."""
        ...

    def child_up(self, link: Link) -> None: ...

    def child_down(self, link: Link) -> None: ...

    def body(self, link: Link, body: Body, arrived_ns: int, decode_ns: int) -> None: ...

    def beat(self, beat: Beat) -> None: ...

    def file(self, digest: str) -> bytes:
        """A file of the Bundle by digest. Raises BundleError."""
        ...

    def revoked(self) -> tuple[str, ...]:
        """Serials of certificates that count no more; asked at every join, stream and heartbeat."""
        ...

    def jobs(self) -> bytes:
        """What is learned now, for a Directive; empty where nothing was ever."""
        ...

    def is_serving(self, section: str = "") -> bool | None:
        """Whether samples can be answered, for `grpc.health.v1`; of a Section, whether it runs on the engine that it is
        meant to run on. None for a Section that does not run here."""
        ...

    def status(self) -> bytes:
        """JSON of this node and everything below it."""
        ...

    def plans(self) -> list[dict[str, Any]]:
        """JSON values of the Plans kept here, oldest first."""
        ...

    async def change_plan(self, wanted: PlanChange) -> dict[str, Any]:
        """Another Plan, which is returned as one of `plans()`. Raises a TierlineError that says why not."""
        ...

    def offer_bundle(self, manifest: bytes) -> list[str]:
        """Digests of the files of a Bundle that are not here. Raises a TierlineError."""
        ...

    async def put_file(self, bundle: str, digest: str, chunks: AsyncIterator[bytes]) -> None:
        """Take one file of an offered Bundle. Raises a TierlineError."""
        ...


class Door(Guard, Protocol):
    """Who comes in, stays and leaves."""

    @property
    def clock(self) -> Clock: ...

    def join(self, hello: Hello) -> Welcome:
        """Raises a TierlineError that says why not."""
        ...

    def check_identity(self, context: Any, node: str) -> None:
        """Raises SecurityError."""
        ...

    def attends(self, node: str, words: Words) -> None: ...

    def left(self, node: str, epoch: int, words: Words) -> None: ...


class FleetService(MeasureCalls, fleet_pb2_grpc.FleetServicer):
    def __init__(self, door: Door, desk: ParentDesk) -> None:
        super().__init__(door, desk, door.clock)
        self._door, self._desk = door, desk

    async def Join(self, request: fleet_pb2.Hello, context: Any) -> fleet_pb2.Welcome:
        try:
            self._door.check_identity(context, request.node)
            if not request.protocol_min <= PROTOCOL <= request.protocol_max:
                raise errors.PeerRejected(
                    f"node {request.node!r} speaks protocols {request.protocol_min} to {request.protocol_max}, "
                    f"this node speaks {PROTOCOL}; install matching versions of tierline"
                )
            welcome = self._door.join(
                Hello(
                    node=request.node,
                    tier=request.tier,
                    epoch=request.epoch,
                    views=tuple(request.views),
                    bundle_digest=request.bundle_digest,
                    codecs=tuple(request.codecs),
                    version=request.version,
                )
            )
        except errors.TierlineError as error:
            await abort(context, error)
        return fleet_pb2.Welcome(
            protocol=PROTOCOL,
            parent=welcome.parent,
            epoch=welcome.epoch,
            plan=plan_pb2.PlanDocument(document=welcome.plan, digest=welcome.plan_digest),
            bundle_digest=welcome.bundle_digest,
            manifest=welcome.manifest,
            heartbeat_s=welcome.heartbeat_s,
            run=welcome.run,
            revoked=welcome.revoked,
        )

    async def Attend(self, request_iterator: Any, context: Any) -> AsyncIterator[fleet_pb2.Directive]:
        words: Words = asyncio.Queue()
        hearing = asyncio.create_task(self._hear(context, words))
        try:
            while (word := await words.get()) is not None:
                yield _directive(word, self._desk.revoked())
            hearing.result()
        except errors.TierlineError as error:
            await abort(context, error)
        finally:
            hearing.cancel()

    async def _hear(self, context: Any, words: Words) -> None:
        """Heartbeats of one child, until they end; then `words` end, too."""
        node, epoch, beats, jobs = "", 0, 0, b""
        try:
            while True:
                beat = await asyncio.wait_for(context.read(), HEARTBEAT_S * DEAD_AFTER_BEATS)
                if beat is grpc.aio.EOF:
                    return
                if not beats:
                    self._door.check_joined(context, beat.node)
                    node, epoch = beat.node, beat.epoch
                    self._door.attends(node, words)
                self._door.check_identity(context, node)
                if beat.node != node:
                    raise errors.BadFrame(f"a heartbeat of {beat.node!r} among those of {node!r}")
                beats += 1
                words.put_nowait(beats)
                for order in self._desk.orders(node):
                    words.put_nowait(Task(measure=order))
                self._desk.beat(Beat(node, beat.epoch, beat.status, beat.rtt_ms, _states(beat.switches)))
                if jobs != (jobs := self._desk.jobs()):
                    words.put_nowait(Task(jobs=jobs))
        except grpc.aio.BaseError:
            return  # the server stops
        except asyncio.TimeoutError:
            raise errors.LinkTimeout(f"no heartbeat of {node!r} for {HEARTBEAT_S * DEAD_AFTER_BEATS:g} s") from None
        finally:
            words.put_nowait(None)
            self._door.left(node, epoch, words)

    async def Fetch(self, request: fleet_pb2.FetchRequest, context: Any) -> AsyncIterator[fleet_pb2.Chunk]:
        try:
            raw = self._desk.file(request.digest)
        except errors.TierlineError as error:
            await abort(context, error)
        end = min(len(raw), request.offset + request.num_bytes) if request.num_bytes else len(raw)
        for start in range(request.offset, end, CHUNK_BYTES):
            yield fleet_pb2.Chunk(data=raw[start : min(end, start + CHUNK_BYTES)])

    async def Status(self, request: fleet_pb2.StatusRequest, context: Any) -> fleet_pb2.StatusReply:
        return fleet_pb2.StatusReply(status=self._desk.status())

    async def Plans(self, request: fleet_pb2.PlansRequest, context: Any) -> fleet_pb2.PlansReply:
        return fleet_pb2.PlansReply(plans=json.dumps(self._desk.plans()).encode())

    async def ChangePlan(self, request: fleet_pb2.ChangePlanRequest, context: Any) -> fleet_pb2.ChangePlanReply:
        try:
            self._door.check_operator(context)
            wanted = PlanChange(
                tuple(request.set), request.rollback_to, request.dry_run, request.bundle, request.plan, request.tuning
            )
            plan = await self._desk.change_plan(wanted)
        except errors.TierlineError as error:
            await abort(context, error)
        return fleet_pb2.ChangePlanReply(plan=json.dumps(plan).encode())

    async def OfferBundle(self, request: fleet_pb2.OfferBundleRequest, context: Any) -> fleet_pb2.OfferBundleReply:
        try:
            self._door.check_operator(context)
            return fleet_pb2.OfferBundleReply(missing=self._desk.offer_bundle(request.manifest))
        except errors.TierlineError as error:
            await abort(context, error)

    async def PutFile(self, request_iterator: Any, context: Any) -> fleet_pb2.PutFileReply:
        try:
            self._door.check_operator(context)
            first = await context.read()
            if first is grpc.aio.EOF:
                raise errors.BadFrame("a file without a first chunk")

            async def chunks() -> AsyncIterator[bytes]:
                yield first.data
                while (chunk := await context.read()) is not grpc.aio.EOF:
                    yield chunk.data

            await self._desk.put_file(first.bundle, first.digest, chunks())
            return fleet_pb2.PutFileReply()
        except errors.TierlineError as error:
            await abort(context, error)


_PHASES = {
    "prepare": fleet_pb2.Switch.PHASE_PREPARE,
    "commit": fleet_pb2.Switch.PHASE_COMMIT,
    "abort": fleet_pb2.Switch.PHASE_ABORT,
}


def _directive(word: Order | Task | int, revoked: tuple[str, ...]) -> fleet_pb2.Directive:
    if isinstance(word, int):
        return fleet_pb2.Directive(beat=word, revoked=revoked)
    if isinstance(word, Task):
        return fleet_pb2.Directive(measure=word.measure, jobs=word.jobs, revoked=revoked)
    document = plan_pb2.PlanDocument(document=word.plan)
    if word.phase == "knobs":
        return fleet_pb2.Directive(plan=document, revoked=revoked)
    switch = fleet_pb2.Switch(
        phase=_PHASES[word.phase],
        plan=document,
        bundle_digest=word.bundle_digest,
        manifest=word.manifest,
        first_seq=word.first_seq,
    )
    return fleet_pb2.Directive(switch=switch, revoked=revoked)


def _states(states: Any) -> tuple[NodeState, ...]:
    """What a child says of itself and those below it; words that this version does not know count as `loading`."""
    known: tuple[State, ...] = get_args(State)
    return tuple(
        NodeState(x.node, x.version, next((state for state in known if state == x.state), "loading"), x.message)
        for x in states
    )
