"""Captures of several views through one engine, as one batch.

Views whose Sections are the same file share an engine. While it runs on the thread, what is captured gathers, and runs
together when it is free: nothing waits for a batch to fill.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from tierline.core.flow.journey import NUM_SPANS, PREPROCESS, SECTION
from tierline.core.flow.worker import Worker
from tierline.core.protocols import Clock, Engine
from tierline.core.types import Array, Arrays

Ran = tuple[Arrays, list[int], int]
"""Outputs of one row, spans, and rows of the batch."""


@dataclass(slots=True)
class _Waiting:
    prepare: Callable[[], Array]
    future: asyncio.Future[Ran]


class ViewBatches:
    """One per node. Not thread-safe but for what its jobs do with `_queues`, whose ends are atomic."""

    def __init__(self, worker: Worker, clock: Clock) -> None:
        self._worker, self._clock = worker, clock
        self._queues: dict[int, deque[_Waiting]] = {}
        """By identity of the engine, which whoever waits keeps alive."""

    async def run(self, engine: Engine, prepare: Callable[[], Array], max_batch: int) -> Ran:
        """One row through an engine, with whatever else waits for it; `prepare` gives the row, on the thread.

        Raises what `prepare` or the engine raises.
        """
        entry = _Waiting(prepare, asyncio.get_running_loop().create_future())
        queue = self._queues.setdefault(id(engine), deque())
        queue.append(entry)
        if len(queue) == 1:  # else a job that will take it is on its way
            self._submit(engine, queue, max_batch)
        return await entry.future

    def _submit(self, engine: Engine, queue: deque[_Waiting], max_batch: int) -> None:
        def done(found: list[tuple[_Waiting, Ran | Exception]], error: BaseException | None) -> None:
            if queue:
                self._submit(engine, queue, max_batch)
            elif self._queues.get(id(engine)) is queue:
                del self._queues[id(engine)]
            if error is not None:
                raise error
            for entry, ran in found:
                if entry.future.done():
                    continue
                if isinstance(ran, Exception):
                    entry.future.set_exception(ran)
                else:
                    entry.future.set_result(ran)

        self._worker.submit(partial(self._work, engine, queue, max_batch), done)

    def _work(self, engine: Engine, queue: deque[_Waiting], max_batch: int) -> list[tuple[_Waiting, Ran | Exception]]:
        """On the thread."""
        found: list[tuple[_Waiting, Ran | Exception]] = []
        ready: list[tuple[_Waiting, Array, int]] = []
        while queue and len(found) + len(ready) < max_batch:
            entry, began_ns = queue.popleft(), self._clock.now_ns()
            try:
                x = entry.prepare()
            except Exception as error:  # of this capture alone
                found.append((entry, error))
                continue
            ready.append((entry, x, self._clock.now_ns() - began_ns))
        if not ready:
            return found
        began_ns = self._clock.now_ns()
        try:
            x_B = np.stack([x for _, x, _ in ready])
            outputs = engine.run({next(iter(engine.spec.inputs)): x_B})
        except Exception as error:  # of all of them
            return [*found, *((entry, error) for entry, _, _ in ready)]
        section_ns = self._clock.now_ns() - began_ns
        for row, (entry, _, prepare_ns) in enumerate(ready):
            spans = [0] * NUM_SPANS
            spans[PREPROCESS], spans[SECTION] = prepare_ns, section_ns
            found.append((entry, ({key: y_B[row : row + 1] for key, y_B in outputs.items()}, spans, len(ready))))
        return found
