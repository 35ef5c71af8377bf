"""A running node: its flow, its desk for children, the listener, metrics. Agents and clouds add what is theirs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tierline.core.clock import MonotonicClock
from tierline.core.config.sections import Engine as EngineConfig
from tierline.core.errors import MissingDependency
from tierline.core.flow.desk import Desk
from tierline.core.flow.engines import check_engine, takes_time
from tierline.core.flow.junction import Junction
from tierline.core.flow.loaded import EngineSettings
from tierline.core.flow.negotiate import offered_codecs
from tierline.core.flow.node import Node, new_epoch
from tierline.core.link.listen import Listener
from tierline.core.link.tls import TlsFiles, require_tls, server_credentials
from tierline.core.protocols import Outcome
from tierline.core.telemetry import metrics as names
from tierline.core.telemetry.metrics import Registry, serve_metrics

_log = logging.getLogger("tierline.engine")
MAX_UNCOUNTED = 4096

IDLE_S = 0.1
"""How often a junction without triggers looks whether that has changed."""
SYNC_S = 1.0
"""How often counters that the flow keeps reach the metrics registry."""


class NodeMetrics:
    """Turns what a node counts into Prometheus metrics."""

    def __init__(self, node_id: str) -> None:
        self.registry = Registry()
        self._duration = self.registry.histogram(names.REQUEST_DURATION)
        self._queue = self.registry.histogram(names.QUEUE_DURATION).at()
        self._exits = self.registry.counter(names.EXIT_TOTAL)
        self._bytes = self.registry.counter(names.WIRE_BYTES_TOTAL)
        self._connected = self.registry.gauge(names.NODE_CONNECTED)
        self._in_flight = self.registry.gauge(names.SAMPLES_IN_FLIGHT).at()
        self._errors = self.registry.counter(names.ERRORS_TOTAL)
        self._degraded = self.registry.counter(names.DEGRADED_TOTAL)
        self._dropped = self.registry.counter(names.SOURCE_DROPPED_TOTAL)
        self._batch = self.registry.histogram(names.BATCH_SIZE).at()
        self.dropped: Callable[[], Mapping[str, int]] = dict
        """Frames dropped by view; set by whoever has sources."""
        self._node_id, self._tier = node_id, ""
        self._answers: list[tuple[str, int, int]] = []
        self._batches: list[int] = []
        self._seen: dict[tuple[str, ...], float] = {}

    def answered(self, exit_name: str, residence_ns: int, queue_ns: int) -> None:
        """Noted now, counted later: samples do not wait for histograms."""
        self._answers.append((exit_name, residence_ns, queue_ns))
        if len(self._answers) >= MAX_UNCOUNTED:
            self._count()

    def batch(self, num_rows: int) -> None:
        """A Section ran on so many samples at once. Noted now, counted later."""
        self._batches.append(num_rows)
        if len(self._batches) >= MAX_UNCOUNTED:
            self._count()

    def _count(self) -> None:
        answers, self._answers = self._answers, []
        for exit_name, residence_ns, queue_ns in answers:
            self._exits.at(exit=exit_name).inc()
            self._duration.at(stage="node", exit=exit_name, tier=self._tier).observe(residence_ns / 1e9)
            self._queue.observe(queue_ns / 1e9)
        batches, self._batches = self._batches, []
        for num_rows in batches:
            self._batch.observe(num_rows)

    def sync(self, node: Node) -> None:
        """Take over what the flow and the links counted since the last time."""
        if node.flow is None:
            return
        self._tier = node.flow.placement.tier.value
        self._count()
        self.registry.gauge(names.BUILD_INFO).at(version=own_version(), node=self._node_id, tier=self._tier).set(1)
        self._in_flight.set(node.num_open)
        counts = node.flow.counts
        for code in ("refused", "late"):
            self._grow(self._errors.at(code=code), ("count", code), counts.get(code, 0))
        for key in [key for key in counts if key.startswith("degraded:")]:
            self._grow(self._degraded.at(reason=key.partition(":")[2]), ("count", key), counts[key])
        for view, dropped in self.dropped().items():
            self._grow(self._dropped.at(view=view), ("dropped", view), dropped)
        links = {**node.children, **({"parent": node.parent} if node.parent is not None else {})}
        for name, link in links.items():
            self._connected.at(node=name).set(1.0 if link.is_up else 0.0)
            for codec, num_bytes in link.counters.sent_by_codec.items():
                self._grow(self._bytes.at(direction="sent", codec=codec), (name, "sent", codec), num_bytes)
            received = link.counters.received_payload_bytes
            self._grow(self._bytes.at(direction="received", codec="any"), (name, "received"), received)

    def _grow(self, counter: names.Counter, key: tuple[str, ...], total: float) -> None:
        seen = self._seen.get(key, 0.0)
        if total > seen:
            counter.inc(total - seen)
            self._seen[key] = total


class Host:
    """Owns one Node and everything that serves it."""

    def __init__(
        self,
        node_id: str,
        *,
        engine: EngineSettings,
        on_outcome: Callable[[Outcome], None],
        listen: str = "",
        metrics_listen: str = "",
        tls: TlsFiles | None = None,
        insecure: bool = False,
        access: Mapping[str, Any] | None = None,
        run: str = "",
    ) -> None:
        self.clock = MonotonicClock()
        self.metrics = NodeMetrics(node_id)
        self.node = Node(
            node_id,
            new_epoch(),
            self.clock,
            engine,
            on_outcome=on_outcome,
            on_answered=self.metrics.answered,
            on_batch=self.metrics.batch,
        )
        self.node.run_id = run
        self.desk = Desk(self.node)
        self.tls = tls
        self.listener: Listener | None = None
        self._metrics_listen = metrics_listen
        self._metrics_server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        if listen:
            require_tls(listen, tls, insecure)
            self.listener = Listener(
                self.desk,
                node=node_id,
                epoch=self.node.epoch,
                address=listen,
                clock=self.clock,
                credentials=server_credentials(tls) if tls is not None else None,
                access=access,
            )

    async def start(self) -> dict[str, Any]:
        """Bind all addresses; returns the line that tells a supervisor where. Raises PortInUse."""
        offered_codecs()  # loads them, and compiles their kernels where that is still to do, before samples flow
        if self._metrics_listen:
            self._metrics_server = await serve_metrics(self.metrics.registry, self._metrics_listen, self._unhealthy)
        address = await self.listener.start() if self.listener is not None else None
        self._tasks = [asyncio.create_task(work) for work in (self._sync(), self._trigger(), self.desk.sounding.run())]
        return {"event": "ready", "node": self.node.id, "listen": address, "metrics": self._metrics_listen or None}

    async def stop(self, grace_s: float = 1.0) -> None:
        """Answer what is in flight, then close."""
        for task in self._tasks:
            task.cancel()
        self.desk.profiler.close()
        self.node.close()
        if self.listener is not None:
            await self.listener.stop(grace_s)
        if self._metrics_server is not None:
            self._metrics_server.close()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._metrics_server.wait_closed(), grace_s)

    def _unhealthy(self) -> str:
        return "" if self.node.flow is not None else "no Plan yet"

    async def _sync(self) -> None:
        while True:
            self.metrics.sync(self.node)
            await asyncio.sleep(SYNC_S)

    async def _trigger(self) -> None:
        """`join = trigger` with a period: ask for captures at a steady rate, without drift."""
        due_ns = self.clock.now_ns()
        while True:
            plan, flow = self.node.plan, self.node.flow
            period_ms = plan.join.period_ms if plan is not None and plan.join.by == "trigger" else 0.0
            if not period_ms or not isinstance(flow, Junction) or not flow.placement.joins or flow.awaits_nodes():
                await asyncio.sleep(IDLE_S)
                due_ns = self.clock.now_ns()
                continue
            due_ns += int(period_ms * 1e6)
            await asyncio.sleep(max(0.0, (due_ns - self.clock.now_ns()) / 1e9))
            self.node.trigger()


def engine_settings(config: EngineConfig) -> EngineSettings:
    """The first engine of the configuration that can run here, and the next one where making that takes time.

    Raises MissingDependency where none can.
    """
    usable: list[str] = []
    missing: MissingDependency | None = None
    for token in config.prefer:
        try:
            check_engine(token)
        except MissingDependency as error:
            missing = missing or error
            _log.info("engine %r is passed over: %s", token, error)
            continue
        usable.append(token)
        if not takes_time(token):
            break
    if missing is not None and not usable:
        raise missing
    meanwhile = next((token for token in usable if not takes_time(token)), "")
    return EngineSettings(
        usable[0],
        config.threads,
        config.inline_ms,
        meanwhile if meanwhile != usable[0] else "",
        config.max_memory_bytes,
        tuple(config.prefer),
    )


def own_version() -> str:
    """Version of the installed package; `0+source` from a source tree."""
    try:
        return version("tierline")
    except PackageNotFoundError:
        return "0+source"
