"""What one hop costs: a node sends what it cannot answer, the parent runs its Section and answers with its ledger.

Compared in the same run with a bare `grpc.aio` bidirectional stream that echoes messages of the same size, both ends
in processes of their own:

- `latency`: one sample at a time escalates from an edge node to the cloud, which runs its Section and answers. Limits:
  p50 <= 1.6x the echo with the engine inline, <= 2.0x on a worker thread.
- `latency join`: the same for a device below a junction, which also joins views and decides two exits (no limit).
- `throughput`: six devices keep a window full. One sample per message, then as many as have gathered; the latter must
  reach at least twice the former.

Prints one JSON line per case. `python benchmarks/bench_hop.py --bundle DIR` (default: the Bundle in the wheel).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np

from tierline.cli.trial.demo import ASSETS
from tierline.core.bundle import Bundle
from tierline.core.clock import MonotonicClock
from tierline.core.coding import codec_for
from tierline.core.flow.coding import encode_outputs
from tierline.core.flow.host import Host
from tierline.core.flow.negotiate import offered_codecs
from tierline.core.flow.node import EngineSettings, new_epoch
from tierline.core.link import messages as m
from tierline.core.link.dial import Dialler
from tierline.core.link.fleet import CHANNEL_OPTIONS, Beat, Hello, Welcome
from tierline.core.link.link import Link
from tierline.core.link.session import Session
from tierline.core.plan import Hierarchy, HierarchyNode, Join, make_plan
from tierline.core.telemetry.environment import environment
from tierline.core.types import NodeId, SampleId, Tier
from tierline.core.wire import frame_to_wire

ECHO = "/bench.Echo/Exchange"


def hierarchy(num_devices: int, with_edge: bool) -> Hierarchy:
    """The server is the root; an edge node between it and the devices is played by the client."""
    nodes = [HierarchyNode("root", Tier.CLOUD)]
    if with_edge:
        nodes.append(HierarchyNode("edge", Tier.EDGE, "root"))
    parent = nodes[-1].id
    nodes += [HierarchyNode(f"device-{i}", Tier.DEVICE, parent, (f"view-{i}",)) for i in range(num_devices)]
    return Hierarchy(tuple(nodes))


# --- the server process -----------------------------------------------------------------------------------------


async def serve(bundle_dir: str, num_devices: int, with_edge: bool, inline_ms: float) -> None:
    """The parent and, on a second port, the echo."""
    bundle = Bundle.open(Path(bundle_dir))
    plan = make_plan(
        hierarchy(num_devices, with_edge),
        bundle.manifest,
        bundle.digest,
        thresholds={"local": 1e-9, "edge": 1.0 - 1e-6},  # unsure at the first exit, sure at the second
        join=Join(by="sequence"),
    )
    host = Host(
        "root", engine=EngineSettings(inline_ms=inline_ms), on_outcome=lambda outcome: None, listen="127.0.0.1:0"
    )
    host.node.adopt(plan, bundle)
    ready = await host.start()

    async def echo(_requests: Any, context: Any) -> None:
        while (raw := await context.read()) is not grpc.aio.EOF:
            await context.write(raw)

    server = grpc.aio.server(options=CHANNEL_OPTIONS)
    handler: dict[str, Any] = {"Exchange": grpc.stream_stream_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", handler),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"hop": ready["listen"], "echo": f"127.0.0.1:{port}"}), flush=True)
    while True:
        line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        if not line:
            break
        print(json.dumps(dict(host.node.flow.counts) if host.node.flow else {}), flush=True)
    await server.stop(0)
    await host.stop(0)


# --- the client process -----------------------------------------------------------------------------------------


class Child:
    """A node reduced to its link: posts prepared rows, counts verdicts. `index` -1 plays the edge node."""

    def __init__(self, bundle: Bundle, index: int) -> None:
        self.is_edge = index < 0
        self.name = "edge" if self.is_edge else f"device-{index}"
        self.view = "edge" if self.is_edge else f"view-{index}"
        level = bundle.manifest.levels[1 if self.is_edge else 0]
        section = next(iter(level.sections.values()))
        rng = np.random.default_rng(index + 1)
        self.logits = rng.normal(size=(64, *section.outputs["logits"].shape)).astype(np.float32)
        signs = np.where(rng.random((64, *section.outputs["feature"].shape)) < 0.5, -1, 1)
        self.features = signs.astype(section.outputs["feature"].dtype)
        self.codec = codec_for(level.feature_codec)
        self.clock = MonotonicClock()
        self.epoch = new_epoch() + index + 1
        self.origin, self.parent_epoch = NodeId("root"), 0
        self.up = asyncio.Event()
        self.num_answered = 0
        self.answered = asyncio.Event()
        self.answered_ns = 0
        self.link = Link(Session(self.name, self.epoch), self.clock, self._body)

    def _body(self, link: Link, body: m.Body, arrived_ns: int, decode_ns: int) -> None:
        assert isinstance(body, m.Verdict), body
        self.answered_ns = time.perf_counter_ns()
        self.num_answered += len(body.ids)
        self.answered.set()

    def part(self, first: int, num_rows: int) -> m.Part:
        """`num_rows` samples from `first` on, coded afresh each time, as a device does."""
        rows = slice(start := first % (65 - num_rows), start + num_rows)
        return m.Part(
            level=1 if self.is_edge else 0,
            name=self.view,
            ids=[SampleId(self.origin, self.parent_epoch, first + i) for i in range(num_rows)],
            plan=1,
            budget_ms=[60_000.0] * num_rows,
            outputs={} if self.is_edge else {"logits": encode_outputs(self.logits[rows])},
            feature=self.codec.encode(self.features[rows]),
            fused=self.is_edge,
            num_views=[6] * num_rows if self.is_edge else (),
        )

    async def connect(self, address: str) -> asyncio.Task[None]:
        async def prepare(welcome: Welcome, fetch: Any) -> None:
            self.parent_epoch = welcome.epoch

        dialler = Dialler(
            address,
            self.link,
            hello=lambda: Hello(self.name, "", self.epoch, (self.view,), "", offered_codecs(), "bench"),
            beat=lambda: Beat(self.name, self.epoch, b"{}", 0.0),
            prepare=prepare,
            on_change=lambda up: self.up.set() if up else None,
            on_order=lambda order, fetch: None,
            on_revoked=lambda serials: None,
            credentials=None,
            tls=None,
            rng=random.Random(0),
        )
        task = asyncio.create_task(dialler.run())
        await self.up.wait()
        return task


async def hop_latency_us(child: Child, first: int, num: int) -> list[float]:
    """From the sample until its answer is handed to the node, which acts on it there and then."""
    times = []
    for seq in range(first, first + num):
        child.answered.clear()
        started = time.perf_counter_ns()
        child.link.post(child.part(seq, 1))
        await child.answered.wait()
        times.append((child.answered_ns - started) / 1e3)
    return times


async def echo_latency_us(address: str, raw: bytes, num: int) -> list[float]:
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        call: Any = channel.stream_stream(ECHO)()
        times = []
        for _ in range(num):
            started = time.perf_counter_ns()
            await call.write(raw)
            await call.read()
            times.append((time.perf_counter_ns() - started) / 1e3)
        await call.done_writing()
    return times


async def hop_throughput(children: list[Child], rows: int, window: int, seconds: float) -> float:
    """Samples per second; each sample has one view per child, all of which travel."""
    base = [child.num_answered for child in children]
    first = 1_000_000 + int(time.monotonic() * 1e6) % 1_000_000_000
    stop = time.perf_counter() + seconds

    async def feed(child: Child, already: int) -> None:
        sent = 0
        while time.perf_counter() < stop:
            if sent - (child.num_answered - already) <= window - rows:
                child.link.post(child.part(first + sent, rows))
                sent += rows
                await asyncio.sleep(0)
            else:
                child.answered.clear()
                await child.answered.wait()

    started = time.perf_counter()
    await asyncio.gather(*(asyncio.wait_for(feed(c, b), seconds + 5) for c, b in zip(children, base, strict=True)))
    elapsed = time.perf_counter() - started
    return min(child.num_answered - b for child, b in zip(children, base, strict=True)) / elapsed


async def echo_throughput(address: str, raw: bytes, num_streams: int, window: int, seconds: float) -> float:
    """Messages per second and stream."""
    counts = [0] * num_streams
    stop = time.perf_counter() + seconds

    async def run(index: int) -> None:
        async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
            call: Any = channel.stream_stream(ECHO)()
            room = asyncio.Semaphore(window)

            async def write() -> None:
                while time.perf_counter() < stop:
                    await room.acquire()
                    await call.write(raw)
                await call.done_writing()

            writing = asyncio.create_task(write())
            while await call.read() is not grpc.aio.EOF:
                counts[index] += 1
                room.release()
            await writing

    started = time.perf_counter()
    await asyncio.gather(*(run(i) for i in range(num_streams)))
    return min(counts) / (time.perf_counter() - started)


async def disconnect(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def p50(times: list[float]) -> float:
    return statistics.median(times)


class ServerProcess:
    """The other end, in a process of its own."""

    def __init__(self, args: argparse.Namespace, num_devices: int, with_edge: bool, inline_ms: float) -> None:
        command = [sys.executable, __file__, "--serve", "--bundle", args.bundle, "--devices", str(num_devices)]
        command += ["--inline-ms", str(inline_ms), *(["--with-edge"] if with_edge else [])]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.addresses: dict[str, str] = json.loads(self.process.stdout.readline())

    def counts(self) -> dict[str, int]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        counts: dict[str, int] = json.loads(self.process.stdout.readline())
        return counts

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)


async def bench_latency(
    args: argparse.Namespace, name: str, with_edge: bool, inline_ms: float, limit: float | None
) -> dict[str, Any]:
    bundle = Bundle.open(Path(args.bundle))
    with ServerProcess(args, 1, with_edge, inline_ms) as server:
        child = Child(bundle, -1 if with_edge else 0)
        task = await child.connect(server.addresses["hop"])
        raw = frame_to_wire(m.Frame(1, 0, child.part(0, 1))).SerializeToString()
        hops: list[float] = []
        echoes: list[float] = []
        first = 0
        for _ in range(args.rounds):  # in turns, so that a disturbance meets both
            echoes += (await echo_latency_us(server.addresses["echo"], raw, args.num + 50))[50:]
            hops += (await hop_latency_us(child, first, args.num + 50))[50:]
            first += args.num + 50
        await disconnect([task])
    ratio = p50(hops) / p50(echoes)
    return {
        "case": f"latency {name}",
        "hop_p50_us": round(p50(hops), 1),
        "hop_p99_us": round(float(np.percentile(hops, 99)), 1),
        "echo_p50_us": round(p50(echoes), 1),
        "request_bytes": len(raw),
        "ratio": round(ratio, 3),
        "limit": limit,
        "holds": limit is None or ratio <= limit,
    }


async def bench_throughput(args: argparse.Namespace) -> dict[str, Any]:
    bundle = Bundle.open(Path(args.bundle))
    num_devices = len(bundle.manifest.views)
    rates = {}
    with ServerProcess(args, num_devices, False, 0.5) as server:
        children = [Child(bundle, i) for i in range(num_devices)]
        tasks = [await child.connect(server.addresses["hop"]) for child in children]
        raw = frame_to_wire(m.Frame(1, 0, children[0].part(0, 1))).SerializeToString()
        for name, rows in (("unbatched", 1), ("batched", args.batch)):
            rates[name] = await hop_throughput(children, rows, args.window, args.seconds)
        counts = server.counts()
        echo = await echo_throughput(server.addresses["echo"], raw, num_devices, args.window, args.seconds)
        await disconnect(tasks)
    gain = rates["batched"] / rates["unbatched"]
    return {
        "case": "throughput",
        "devices": num_devices,
        "window": args.window,
        "rows_per_message": args.batch,
        "samples_per_s_unbatched": round(rates["unbatched"]),
        "samples_per_s_batched": round(rates["batched"]),
        "echo_messages_per_s_and_stream": round(echo),
        "mean_engine_batch": round(counts.get("batched", 0) / max(1, counts.get("batches", 1)), 1),
        "gain": round(gain, 2),
        "limit": 2.0,
        "holds": gain >= 2.0,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default=str(ASSETS))
    parser.add_argument("--num", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--devices", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--inline-ms", type=float, default=0.5, help=argparse.SUPPRESS)
    parser.add_argument("--with-edge", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve(args.bundle, args.devices, args.with_edge, args.inline_ms))
        return 0
    print(json.dumps({"environment": environment()}))
    results = [
        asyncio.run(bench_latency(args, "inline", True, 1000.0, 1.6)),
        asyncio.run(bench_latency(args, "threaded", True, 0.0, 2.0)),
        asyncio.run(bench_latency(args, "join", False, 1000.0, None)),
        asyncio.run(bench_throughput(args)),
    ]
    for result in results:
        print(json.dumps(result), flush=True)
    return 0 if all(result["holds"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
