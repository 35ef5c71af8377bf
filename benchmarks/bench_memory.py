"""How the coordinator's memory grows with the number of clients of a round of `fedavg`.

The coordinator is a process of its own with its real server half: an Office with a journal on disk. Its clients are
simulated by two processes that compute nothing: each client hears the model and sends its part of the sum (int64: twice
the model), alone, without pre-adding on the way, so that the coordinator adds up as many parts as there are clients.
Clients are dealt to streams; with `--streams 0` each has one of its own.

For 10, 100 and 1,000 clients: the peak resident size of the coordinator, less its size before the first client came,
in models (float32). Limit: with as many clients as you like it is at most two models above that with the fewest.

    python benchmarks/bench_memory.py [--mb 8] [--rounds 2] [--streams 4] [--clients 10,100,1000]

Prints one JSON line per case; exit code 1 where the limit does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.clock import MonotonicClock
from tierline.core.errors import TierlineError
from tierline.core.link.attach import Attachment, keep_attached, learning_handler
from tierline.core.link.content_wire import content_to_rope
from tierline.core.link.fleet import CHANNEL_OPTIONS
from tierline.core.link.intake import Intake
from tierline.core.link.letters import Content, Head, Letter, Note, Part, Present, Settled
from tierline.core.telemetry.environment import environment
from tierline.core.types import NodeId
from tierline.learning.cast import SERVER, federation, worker_ids
from tierline.learning.driver._near import phases
from tierline.learning.driver.journal import Journal
from tierline.learning.driver.link import LinkNode, Task
from tierline.learning.driver.office import Office
from tierline.learning.fixed import contribution

RUN = "bench"
NUM_PROCESSES = 2
LIMIT_MODELS = 2.0


def resident_mb(key: str) -> float:
    """`VmRSS` or `VmHWM`, its peak."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024 / 1e6


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def model(num_values: int) -> Params:
    return Params.from_arrays({"w": np.linspace(-1, 1, num_values, dtype=np.float32)})


# --- the coordinator --------------------------------------------------------------------------------------------


async def serve(num_values: int, num_clients: int, rounds: int, folder: Path) -> None:
    rules = federation("fedavg", num_clients, {})
    task = Task(RUN, RUN, phases(catalog.make("topology", "star"), tuple(rules)), lambda round: 0.1)
    journal = Journal(folder / "coordinator.sqlite", RUN)
    node = LinkNode(SERVER, rules[SERVER], None, model(num_values), task, journal)
    desk = Office(RUN, rules, [node], MonotonicClock(), max_letter_bytes=1 << 30, folder=folder)
    server = grpc.aio.server(options=CHANNEL_OPTIONS)
    server.add_generic_rpc_handlers((learning_handler(lambda run: desk, MonotonicClock()),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    forget_peak()
    before = resident_mb("VmRSS")
    print(json.dumps({"port": port}), flush=True)
    began = time.perf_counter()
    await desk.run({SERVER: rounds})
    took = time.perf_counter() - began
    print(json.dumps({"before_mb": before, "peak_mb": resident_mb("VmHWM"), "seconds": took}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)
    desk.close()
    journal.close()


# --- its clients ------------------------------------------------------------------------------------------------


class Clients:
    """The Desk of one stream, and whoever is behind it."""

    max_letter_bytes = 1 << 30

    def __init__(self, mine: tuple[NodeId, ...], part: Part) -> None:
        """`part` is what each of `mine` sends, in its own name; they share its values."""
        self._mine, self._part, self.intake = mine, part, Intake()
        self._seen: set[tuple[NodeId, int]] = set()

    def speaks_for(self, identity: str, node: NodeId) -> bool:
        return True

    def attached(self, stream: Attachment) -> None:
        stream.tell(Present(self._mine, RUN))

    def detached(self, stream: Attachment) -> None: ...

    def present(self, stream: Attachment, before: frozenset[NodeId]) -> None: ...

    def note(self, stream: Attachment, note: Note) -> None:
        if not isinstance(note, Settled):
            raise SystemExit(f"declined: {note}")

    def letter(self, stream: Attachment, letter: Letter) -> None:
        """The model: send the update."""
        head = letter.head
        stream.tell(Settled(RUN, head.sender, head.receiver, (head.seq,)))
        if (head.receiver, head.round) in self._seen:
            return
        self._seen.add((head.receiver, head.round))
        own = Head(RUN, head.receiver, SERVER, head.round + 1, head.step, head.round, "fitted", "part")
        part = replace(self._part, members=(head.receiver,))
        stream.post(Letter(own, content_to_rope(Content(part=part), str(own))))


async def attend(port: int, streams: list[list[str]], num_values: int, num_clients: int) -> None:
    group = tuple(sorted(worker_ids(num_clients)))
    own = contribution(model(num_values), weight=1.0, num_members=len(group))
    part = Part(own.integers, own.weight_units, own.fraction_bits, (), group)

    async def one(mine: list[str]) -> None:
        desk = Clients(tuple(map(NodeId, mine)), part)
        await keep_attached(f"127.0.0.1:{port}", desk, MonotonicClock(), credentials=None, rng=random.Random(mine[0]))

    tasks = [asyncio.create_task(one(mine)) for mine in streams]
    until = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    done, _ = await asyncio.wait([until, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    failed = [task.exception() for task in done if task is not until]
    if failed:
        raise failed[0] or TierlineError("a stream ended")


# --- the bench --------------------------------------------------------------------------------------------------


def case(num_values: int, num_clients: int, rounds: int, num_streams: int, folder: Path) -> dict[str, Any]:
    me = [sys.executable, __file__, "--values", str(num_values), "--clients", str(num_clients)]
    me += ["--rounds", str(rounds), "--folder", str(folder)]
    workers, num_streams = worker_ids(num_clients), min(num_clients, num_streams or num_clients)
    streams = [list(workers[i::num_streams]) for i in range(num_streams)]
    with subprocess.Popen([*me, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as coordinator:
        assert coordinator.stdout is not None and coordinator.stdin is not None
        port = json.loads(coordinator.stdout.readline())["port"]
        hosts = []
        for i in range(min(NUM_PROCESSES, num_streams)):
            host = subprocess.Popen([*me, "--attend", str(port)], stdin=subprocess.PIPE, text=True)
            assert host.stdin is not None
            print(json.dumps(streams[i::NUM_PROCESSES]), file=host.stdin, flush=True)
            hosts.append(host)
        found = json.loads(coordinator.stdout.readline() or "null")
        for process in (*hosts, coordinator):
            assert process.stdin is not None
            process.stdin.close()
        for host in hosts:
            host.wait(30)
        coordinator.wait(30)
    if found is None:
        raise SystemExit("the coordinator failed")
    model_mb = num_values * 4 / 1e6
    return {
        "benchmark": "memory",
        "clients": num_clients,
        "streams": num_streams,
        "model_mb": model_mb,
        "rounds": rounds,
        "before_mb": round(found["before_mb"], 1),
        "peak_mb": round(found["peak_mb"], 1),
        "models": round((found["peak_mb"] - found["before_mb"]) / model_mb, 2),
        "seconds": round(found["seconds"], 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=float, default=8.0, help="length of the model")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--streams", type=int, default=4, help="0: one for each client")
    parser.add_argument("--clients", default="10,100,1000")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--attend", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--values", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    clients = [int(text) for text in options.clients.split(",")]
    if options.serve:
        asyncio.run(serve(options.values, clients[0], options.rounds, options.folder))
        return 0
    if options.attend:
        streams = json.loads(sys.stdin.readline())
        asyncio.run(attend(options.attend, streams, options.values, clients[0]))
        return 0
    least, holds = None, True
    for num in clients:
        with tempfile.TemporaryDirectory() as folder:
            found = case(int(options.mb * 1e6 / 4), num, options.rounds, options.streams, Path(folder))
        least = found["models"] if least is None else least
        found["holds"] = found["models"] <= least + LIMIT_MODELS
        holds = holds and found["holds"]
        print(json.dumps(found | {"environment": environment()}), flush=True)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
