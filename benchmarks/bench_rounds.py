"""What a round of federated averaging costs besides the local work: one worker, one coordinator, a process each.

A round sends the model down (float32) and its weighted value up (int64 fixed point, twice as long); both ends journal
what they send and commit their state. Compared in the same run with a bare `grpc.aio` bidirectional stream that carries
the same bytes each way as one message (limit: 2x), and with the link driver without journals on disk, which shows what
their safety costs.

Prints one JSON line per case. `python benchmarks/bench_rounds.py --mb 4 --rounds 20`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio
import numpy as np

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.clock import MonotonicClock
from tierline.core.link.attach import keep_attached, learning_handler
from tierline.core.link.fleet import CHANNEL_OPTIONS
from tierline.core.link.letters import Note
from tierline.core.telemetry.environment import environment
from tierline.core.types import Arrays, NodeId
from tierline.learning.cast import SERVER, federation, worker_ids
from tierline.learning.compute import Backprop, Drawn, Fitted, Gradient, Job
from tierline.learning.driver._near import phases
from tierline.learning.driver.journal import Journal
from tierline.learning.driver.link import LinkNode, Task
from tierline.learning.driver.office import Office

ECHO = "/bench.Echo/Exchange"
OPTIONS = tuple((name, 1 << 30) if "message_length" in name else (name, value) for name, value in CHANNEL_OPTIONS)
(WORKER,) = worker_ids(1)


class Idle:
    """A Trainer without work."""

    def fit(self, start: Params, job: Job) -> Fitted:
        return Fitted(start, 0.0, 1, 1)

    def gradient(self, at: Params, batch: Arrays, terms: object = ()) -> Gradient:
        raise NotImplementedError

    def outputs(self, at: Params, batch: Arrays, names: tuple[str, ...]) -> Arrays:
        raise NotImplementedError

    def forward(self, at: Params, token: int, inputs: Arrays) -> Arrays:
        raise NotImplementedError

    def backward(self, token: int, gradients: Arrays) -> Backprop:
        raise NotImplementedError

    def draw(self, job: Job, step: int) -> Drawn:
        raise NotImplementedError


def office(me: NodeId, num_values: int, journal: Path) -> tuple[Office, LinkNode]:
    rules = federation("fedavg", 1, {})
    x = Params.from_arrays({"w": np.linspace(-1, 1, num_values, dtype=np.float32)})
    task = Task("bench", "bench", phases(catalog.make("topology", "star"), tuple(rules)), lambda round: 0.1)
    node = LinkNode(me, rules[me], Idle(), x, task, Journal(journal, "bench"))
    return Office("bench", rules, [node], MonotonicClock(), max_letter_bytes=1 << 30), node


async def serve(num_values: int, rounds: int, journal: Path) -> None:
    """The coordinator, and the echo beside it."""
    desk, _ = office(SERVER, num_values, journal)
    down = bytes(4 * num_values)

    async def echo(_requests: AsyncIterator[bytes], context: Any) -> None:
        while (await context.read()) is not grpc.aio.EOF:
            await context.write(down)

    server = grpc.aio.server(options=OPTIONS)
    handlers: dict[str, Any] = {"Exchange": grpc.stream_stream_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler("bench.Echo", handlers),
            learning_handler(lambda run: desk, MonotonicClock()),
        )
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await desk.run({SERVER: rounds})
    await asyncio.to_thread(sys.stdin.read)  # until the worker has finished
    await server.stop(None)
    desk.close()


class Cost(NamedTuple):
    """Of each round, in seconds; `cpu` is what both processes spent on all of them."""

    times: list[float]
    cpu: float


def cpu_s(child: int) -> float:
    """What this process and `child` have spent."""
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


async def echoes(address: str, num_values: int, rounds: int) -> list[float]:
    """Seconds of each exchange: twice the model up, the model down."""
    up, times = bytes(8 * num_values), []
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        call: Any = channel.stream_stream(ECHO)()
        for _ in range(rounds):
            began = time.perf_counter()
            await call.write(up)
            await call.read()
            times.append(time.perf_counter() - began)
        call.cancel()
    return times


async def turns(address: str, num_values: int, rounds: int, journal: Path) -> list[float]:
    """Seconds between the ends of the worker's turns."""
    desk, node = office(WORKER, num_values, journal)
    ends: list[float] = []
    give_back = node.tell

    def tell(note: Note) -> None:  # at the end of a turn, of the model that came in it
        ends.append(time.perf_counter())
        give_back(note)

    node.tell = tell
    clock = MonotonicClock()
    dialling = asyncio.create_task(keep_attached(address, desk, clock, credentials=None, rng=random.Random(0)))
    await desk.run({WORKER: rounds})
    await desk.drained()
    dialling.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await dialling
    desk.close()
    return [b - a for a, b in itertools.pairwise(ends)]


async def both(address: str, num_values: int, rounds: int, journal: Path, child: int) -> tuple[Cost, Cost]:
    """An echo, and a round of learning."""
    before = cpu_s(child)
    bare = await echoes(address, num_values, rounds)
    between = cpu_s(child)
    ours = await turns(address, num_values, rounds, journal)
    return Cost(bare, (between - before) / rounds), Cost(ours, (cpu_s(child) - between) / rounds)


def case(name: str, num_values: int, rounds: int, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--serve", "--values", str(num_values), "--rounds", str(rounds)]
    command += ["--folder", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdin is not None
        address = f"127.0.0.1:{int(child.stdout.readline())}"
        bare, ours = asyncio.run(both(address, num_values, rounds, folder / "worker.sqlite", child.pid))
        child.stdin.close()
        child.wait(30)
    skip = max(1, rounds // 5)  # until windows and buffers have grown
    p50, bare_p50 = statistics.median(ours.times[skip:]), statistics.median(bare.times[skip:])
    return {
        "case": name,
        "model_mb": num_values * 4 / 1e6,
        "rounds": rounds,
        "round_ms": round(p50 * 1e3, 2),
        "echo_ms": round(bare_p50 * 1e3, 2),
        "ratio": round(p50 / bare_p50, 2),
        "round_cpu_ms": round(ours.cpu * 1e3, 2),
        "echo_cpu_ms": round(bare.cpu * 1e3, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=4.0, help="length of the model")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--values", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.values, options.rounds, options.folder / "coordinator.sqlite"))
        return
    num_values = int(options.mb * 1e6 / 4)
    places = {"journal on disk": None, "journal in memory": Path("/dev/shm")}
    for name, place in places.items():
        if place is None or place.is_dir():
            with tempfile.TemporaryDirectory(dir=place) as folder:
                print(json.dumps(case(name, num_values, options.rounds, Path(folder)) | {"environment": environment()}))


if __name__ == "__main__":
    main()
