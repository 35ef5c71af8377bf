"""Nodes with long models go on in a thread: the same bits, samples do not wait, and what fails is told."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from tests.support.linked import Linked
from tests.support.quadratics import Quadratic

from tierline.core import catalog, errors
from tierline.core.arrays import Params
from tierline.core.types import NodeId
from tierline.learning.cast import SERVER, federation
from tierline.learning.compute import Job
from tierline.learning.driver import office as office_module
from tierline.learning.driver.link import LinkNode
from tierline.learning.driver.memory import Memory
from tierline.learning.rule import Rule

NUM = 300_000
X = Params.from_arrays({"w": np.ones(NUM, np.float32)})
assert X.flat.nbytes > office_module._LONG_BYTES


def linked(folder: Path) -> Linked:
    def rules() -> Mapping[NodeId, Rule]:
        return federation("fedavg", 3, {})

    draw, nodes = np.random.default_rng(7), tuple(rules())
    trainers = {me: Quadratic(draw.uniform(0.5, 1.5, NUM), draw.normal(size=NUM), num_samples=1) for me in nodes}
    groups = [nodes[:1], nodes[1:3], nodes[3:]]
    return Linked(rules, trainers, catalog.make("topology", "star"), X, folder, groups, job=Job(num_steps=1))


def test_the_bits_are_those_of_memory_and_the_loop_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, threads = linked(tmp_path), set[str]()

    def note(name: str) -> None:
        real = getattr(LinkNode, name)

        def noted(node: LinkNode, *arguments: object) -> None:
            threads.add(threading.current_thread().name)
            real(node, *arguments)

        monkeypatch.setattr(LinkNode, name, noted)

    for name in ("begin", "letter", "computed", "note", "flush"):
        note(name)

    async def halves() -> None:
        await run.run(2)
        await run.run(4)  # all start again from their journals

    asyncio.run(asyncio.wait_for(halves(), 60))
    assert threads and all(name.startswith("node") for name in threads)
    driver = Memory(run.rules(), run.trainers, run.topology, X, lr=lambda round: run.lr, job=run.job)
    driver.run(4)
    expected, states = driver.states()[SERVER], run.states()[SERVER]
    assert np.asarray(states["x"].flat).tobytes() == np.asarray(expected["x"].flat).tobytes()  # type: ignore[union-attr]


def test_what_fails_on_the_thread_is_raised_where_the_node_is_driven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, real = linked(tmp_path), LinkNode.letter

    def broken(node: LinkNode, *arguments: object) -> None:
        if node.me == SERVER:
            raise errors.NodeFailed("the disk is full")
        real(node, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(LinkNode, "letter", broken)

    async def all_of_them() -> None:
        async with contextlib.AsyncExitStack() as stack:
            server, *workers = [await stack.enter_async_context(run.office(i)) for i in range(3)]
            tasks = [asyncio.ensure_future(office.run(run.until(2, i + 1))) for i, office in enumerate(workers)]
            try:
                await server.run(run.until(2, 0))
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    with pytest.raises(errors.NodeFailed, match="the disk is full"):
        asyncio.run(asyncio.wait_for(all_of_them(), 60))
