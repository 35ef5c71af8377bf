"""Whom a certificate speaks for, where nodes of a run sit at nodes of a fleet."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tierline.core.clock import ManualClock
from tierline.core.errors import BadFrame, LinkUnavailable, SecurityError
from tierline.core.link.attach import Attachment
from tierline.core.link.content_wire import content_to_rope
from tierline.core.link.learning_wire import parcel_to_wire
from tierline.core.link.letters import Content, Head, Letter, Part, Present
from tierline.core.types import NodeId
from tierline.learning.driver.link import MONITOR
from tierline.learning.driver.office import Office

A, B, FOREIGN, SERVER = map(NodeId, ("worker-0", "worker-1", "worker-2", "server"))
BELOW_EDGE = {A, B}


def office() -> Office:
    return Office(
        "job",
        [SERVER, A, B, FOREIGN, MONITOR],
        [],
        ManualClock(),
        max_letter_bytes=1 << 20,
        speaks_for=lambda identity, me: identity == "edge" and me in BELOW_EDGE,
    )


def attached(desk: Office) -> Attachment:
    stream = Attachment(desk, ManualClock(), is_child=True, identity="edge")
    desk.attached(stream)
    stream.take(parcel_to_wire(Present((A, B), "job")))
    return stream


def part_of(*members: NodeId) -> Letter:
    part = Part(np.ones(2, np.int64), len(members) << 32, 32, members, (A, B, FOREIGN))
    head = Head("job", A, SERVER, 1, "turn", 0, "x", "part")
    return Letter(head, content_to_rope(Content(part=part), "test"))


def test_an_edge_node_speaks_for_those_below_it_only() -> None:
    async def main() -> None:
        desk = office()
        stream = attached(desk)
        assert stream.present == (A, B)
        for others in (FOREIGN, SERVER, MONITOR):
            with pytest.raises(SecurityError, match=f"the certificate belongs to edge, not to '{others}'"):
                stream.take(parcel_to_wire(Present((A, others), "job")))
        assert stream.present == (A, B)
        desk.letter(stream, part_of(A, B))  # pre-added by it
        with pytest.raises(BadFrame, match="a part of 'worker-2', which is none of the nodes of this stream"):
            desk.letter(stream, part_of(A, FOREIGN))
        desk.close()

    asyncio.run(main())


def test_a_run_that_is_over_ends_its_streams() -> None:
    async def main() -> None:
        desk = office()
        stream = Attachment(desk, ManualClock(), is_child=True)
        reading, never = asyncio.Event(), asyncio.Event()

        async def read() -> bytes | None:
            reading.set()
            await never.wait()
            return None

        async def write(raw: bytes) -> None: ...

        serving = asyncio.create_task(stream.serve(read, write, parcel_to_wire(Present((A,), "job"))))
        await reading.wait()
        assert stream.present == (A,)
        desk.end(LinkUnavailable("job 3 is over"))
        with pytest.raises(LinkUnavailable, match="job 3 is over"):
            await serving
        assert stream.present == ()
        desk.close()

    asyncio.run(asyncio.wait_for(main(), 10))
