"""How an office ends where a node of its own has failed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from quadratics import Quadratic

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.clock import MonotonicClock
from tierline.core.errors import NodeFailed
from tierline.core.link.attach import Attachment
from tierline.core.link.content_wire import content_to_rope
from tierline.core.link.letters import Content, Declined, Head, Letter
from tierline.learning.cast import SERVER, federation, worker_ids
from tierline.learning.driver._near import phases
from tierline.learning.driver.journal import Journal
from tierline.learning.driver.link import MONITOR, LinkNode, Task
from tierline.learning.driver.office import Office

X = Params.from_arrays({"w": np.zeros(4, np.float32)})


def test_a_refusal_of_the_last_update_ends_the_wait_for_what_is_unsettled(tmp_path: Path) -> None:
    """Its report stays unsettled, and nobody will say more: the node has failed."""

    async def main() -> None:
        rules, me = federation("fedavg", 3, {}), worker_ids(3)[0]
        near = phases(catalog.make("topology", "star"), tuple(rules))
        task = Task("job", "run", near, lambda round: 0.1, reports=True)
        journal = Journal(tmp_path / "journal.sqlite", "job")
        node = LinkNode(me, rules[me], Quadratic(np.ones(4), np.full(4, 2.0)), X, task, journal)
        clock = MonotonicClock()
        office = Office("job", [*rules, MONITOR], [node], clock, max_letter_bytes=1 << 20)
        running = asyncio.create_task(office.run({me: 1}))
        for _ in range(1000):  # its turn begins in the next passes of the loop
            await asyncio.sleep(0)
        turn = node._peer.running
        assert turn is not None and turn.wait is not None
        model = Head("job", SERVER, me, 1, "turn", 0, turn.wait.tag, "message")
        stream = Attachment(office, clock, is_child=False)
        office.letter(stream, Letter(model, content_to_rope(Content({"x": X.flat}), "test")))
        await running
        assert len(node.unsettled) == 2  # its update and its report
        draining = asyncio.create_task(office.drained())
        update = next(letter.head for letter in node.unsettled.values() if letter.head.kind == "part")
        office.note(stream, Declined("job", me, update.receiver, update.seq, "bad_frame", "a weight of 101"))
        with pytest.raises(NodeFailed, match="a weight of 101"):
            await draining
        office.close()
        journal.close()

    asyncio.run(asyncio.wait_for(main(), 20))
