"""One process of an experiment that runs on processes: `python -m tierline.cli.experiment.node SPEC.json`.

The coordinator listens and holds the server, where the arm has one; the others hold workers and dial it. What goes
between them is what goes between machines.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import msgspec

from tierline.cli.experiment.scene import data_name, scene
from tierline.cli.run import serve, set_up_logging
from tierline.core.clock import MonotonicClock
from tierline.core.errors import TierlineError
from tierline.core.link.attach import keep_attached, learning_handler
from tierline.core.link.fleet import CHANNEL_OPTIONS
from tierline.core.link.listen import explain_bind_failure
from tierline.core.link.tasks import end
from tierline.core.types import NodeId
from tierline.learning.driver.journal import Journal
from tierline.learning.driver.link import LinkNode
from tierline.learning.driver.office import Office
from tierline.learning.experiment.file import read
from tierline.learning.experiment.scene import Scene
from tierline.models.data.load import load

_LETTER_MODELS = 16
"""Longest letter in models: sums are twice as wide, and rules send several vectors at once."""


class NodeSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a process is told."""

    file: str
    """The experiment file, whole path."""
    overrides: list[str]
    arm: str
    seed: int
    run: str
    """Names the run in letters and journals."""
    name: str
    nodes: list[str]
    journal: str
    listen: str = ""
    """Address to listen on, of the coordinator."""
    coordinator: str = ""
    """Its address, of the others."""


async def run_learning(spec: NodeSpec, on_ready: Callable[[dict[str, Any]], None]) -> None:
    """Take part until cancelled. Raises TierlineError."""
    path = Path(spec.file)
    experiment, settings = read(path, spec.overrides)
    arm = next(arm for arm in experiment.arm if arm.id == spec.arm)
    setting = settings[arm.id]
    stage = scene(arm, setting, spec.seed, load(data_name(setting, path.parent), spec.seed), path.parent)
    clock, journal = MonotonicClock(), Journal(Path(spec.journal), spec.run)
    start = stage.population.start
    task = stage.task(spec.run, experiment.measure)
    nodes = [
        LinkNode(me, stage.rules[me], stage.trainers.get(me), start, task, journal) for me in map(NodeId, spec.nodes)
    ]
    max_letter_bytes = _LETTER_MODELS * start.flat.nbytes + (1 << 20)
    folder = Path(spec.journal).parent
    office = Office(
        spec.run,
        stage.rules,
        nodes,
        clock,
        max_letter_bytes=max_letter_bytes,
        folder=folder,
        max_weight=task.max_weight,
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(journal.close)
        stack.callback(office.close)
        tasks = [asyncio.ensure_future(_take_part(office, stage))]
        stack.push_async_callback(end, tasks)
        if spec.listen:
            server = grpc.aio.server(options=CHANNEL_OPTIONS)
            server.add_generic_rpc_handlers((learning_handler(lambda run: office, clock),))
            try:
                server.add_insecure_port(spec.listen)
            except RuntimeError as error:
                raise explain_bind_failure(spec.listen) from error
            await server.start()
            stack.push_async_callback(server.stop, None)
        else:
            rng = random.Random(os.getpid())  # only spreads attempts to dial
            dialling = keep_attached(spec.coordinator, office, clock, credentials=None, rng=rng)
            tasks.append(asyncio.ensure_future(dialling))
        on_ready({"event": "ready"})
        await asyncio.gather(*tasks)


async def _take_part(office: Office, stage: Scene) -> None:
    """All turns; then stay, since others may still need what was said, or to have something passed on."""
    await office.run(stage.until)
    await asyncio.Event().wait()


def main(argv: Sequence[str]) -> int:
    """Errors are one line and an exit code."""
    spec = msgspec.json.decode(Path(argv[0]).read_bytes(), type=NodeSpec)
    set_up_logging(spec.name, "INFO")
    try:
        asyncio.run(serve(run_learning, spec, stop_with_stdin=True))
    except TierlineError as error:
        print(f"tierline: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
