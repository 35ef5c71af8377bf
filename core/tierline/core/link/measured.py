"""The parent's half of measuring: probes of its links, reports from below, and an operator's wish at the root."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Protocol

from tierline.core import errors
from tierline.core.link.fleet import ProfileStep, ProfileWish
from tierline.core.link.link import Link
from tierline.core.link.probe import answer_probe
from tierline.core.link.status import abort
from tierline.core.protocols import Clock
from tierline.v1 import fleet_pb2 as pb


class MeasureDesk(Protocol):
    """What a node does for measuring; always called on the event loop."""

    def orders(self, child: str) -> Sequence[bytes]:
        """Orders for a child or for nodes below it, each given out once."""
        ...

    def report(self, child: str, document: bytes) -> None:
        """What a child or a node below it has measured. Raises BadFrame, PeerRejected."""
        ...

    def profile(self, wish: ProfileWish) -> AsyncIterator[ProfileStep]:
        """Measure the hierarchy. Raises PeerRejected anywhere but at the root, BundleError, PlanError."""
        ...


class Guard(Protocol):
    """Who may speak for whom."""

    @property
    def links(self) -> Mapping[str, Link]: ...

    def check_joined(self, context: Any, node: str) -> Link:
        """Raises PeerRejected, SecurityError."""
        ...

    def check_operator(self, context: Any) -> None:
        """Raises SecurityError."""
        ...


class MeasureCalls:
    """The methods of the Fleet service that measure."""

    def __init__(self, guard: Guard, desk: MeasureDesk, clock: Clock) -> None:
        self._guard, self._measures, self._time = guard, desk, clock

    async def Profile(self, request: pb.ProfileRequest, context: Any) -> AsyncIterator[pb.ProfileReply]:
        try:
            self._guard.check_operator(context)
            wish = ProfileWish(
                tuple(request.nodes),
                tuple(request.engines),
                tuple(request.batches),
                tuple(request.codecs),
                request.run_s,
                tuple(request.precisions),
            )
            async for step in self._measures.profile(wish):
                yield pb.ProfileReply(node=step.node, state=step.state, profile=step.profile)
        except errors.TierlineError as error:
            await abort(context, error)

    async def Report(self, request: pb.MeasureReport, context: Any) -> pb.MeasureReceipt:
        try:
            self._guard.check_joined(context, request.node)
            self._measures.report(request.node, request.document)
        except errors.TierlineError as error:
            await abort(context, error)
        return pb.MeasureReceipt()

    async def Probe(self, request_iterator: AsyncIterator[pb.ProbeChunk], context: Any) -> AsyncIterator[pb.ProbeChunk]:
        try:
            first = await anext(request_iterator)
            link = self._guard.check_joined(context, first.node)
            yield pb.ProbeChunk()
            async for chunk in answer_probe(request_iterator, self._time, received_bytes(link)):
                yield chunk
        except StopAsyncIteration:
            return
        except errors.TierlineError as error:
            await abort(context, error)


def received_bytes(link: Link) -> Callable[[], int]:
    """Counts what samples have brought over a link."""
    counters = link.counters
    return lambda: counters.received_payload_bytes + counters.received_framing_bytes
