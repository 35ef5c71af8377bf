"""Metrics in Prometheus' text format and a tiny HTTP endpoint for them, on the standard library alone.

`prometheus-client` is not used, so that an agent on the base dependencies has `/metrics` too. Units are seconds and
bytes, names follow https://prometheus.io/docs/practices/naming/. All names that tierline exports stand here.
"""

from __future__ import annotations

import asyncio
import errno
import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tierline.core.errors import ConfigError, PortInUse

DURATION_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
SIZE_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """Name, help text and label names of one metric; `buckets` are the upper bounds of a histogram."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


REQUEST_DURATION = MetricSpec(
    "tierline_request_duration_seconds",
    "Time from a sample's arrival at this node to its answer.",
    ("stage", "exit", "tier"),
    DURATION_BUCKETS_S,
)
QUEUE_DURATION = MetricSpec(
    "tierline_queue_duration_seconds", "Time a sample waited at this node.", (), DURATION_BUCKETS_S
)
BATCH_SIZE = MetricSpec("tierline_batch_size", "Samples per run of the engine.", (), SIZE_BUCKETS)
EXIT_TOTAL = MetricSpec("tierline_exit_total", "Samples answered, by the exit that answered.", ("exit",))
DEGRADED_TOTAL = MetricSpec("tierline_degraded_total", "Samples answered by a lower exit than wished.", ("reason",))
WIRE_BYTES_TOTAL = MetricSpec("tierline_wire_bytes_total", "Payload bytes sent and received.", ("direction", "codec"))
ERRORS_TOTAL = MetricSpec("tierline_errors_total", "Errors, by their stable code.", ("code",))
SOURCE_DROPPED_TOTAL = MetricSpec("tierline_source_dropped_total", "Inputs overwritten by newer ones.", ("view",))
SAMPLES_IN_FLIGHT = MetricSpec("tierline_samples_in_flight", "Samples accepted and not answered yet.")
NODE_CONNECTED = MetricSpec("tierline_node_connected", "1 while the link to this node stands, else 0.", ("node",))
BUILD_INFO = MetricSpec("tierline_build_info", "Always 1; the labels tell what runs.", ("version", "node", "tier"))


class Counter:
    """A number that only grows."""

    kind = "counter"

    def __init__(self, spec: MetricSpec) -> None:
        self._lock = threading.Lock()
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        if amount < 0:
            raise ValueError(f"a counter cannot fall by {-amount:g}")
        with self._lock:
            self.value += amount

    def samples(self) -> list[tuple[str, str, float]]:
        """(suffix of the name, further label, value) of each exported line."""
        return [("", "", self.value)]


class Gauge(Counter):
    """A number that goes up and down."""

    kind = "gauge"

    def set(self, value: float) -> None:
        with self._lock:
            self.value = float(value)

    def inc(self, amount: float = 1.0) -> None:
        with self._lock:
            self.value += amount


class Histogram:
    """Counts of values by fixed upper bounds, with their sum."""

    kind = "histogram"

    def __init__(self, spec: MetricSpec) -> None:
        if not spec.buckets or list(spec.buckets) != sorted(set(spec.buckets)):
            raise ValueError(f"{spec.name}: a histogram needs rising buckets, got {spec.buckets}")
        self._lock = threading.Lock()
        self._bounds = spec.buckets
        self._counts = [0] * (len(spec.buckets) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        with self._lock:
            self._counts[bisect_left(self._bounds, value)] += 1
            self._sum += value

    def samples(self) -> list[tuple[str, str, float]]:
        with self._lock:
            counts, total = list(self._counts), self._sum
        lines, below = [], 0
        for bound, count in zip((*self._bounds, float("inf")), counts, strict=True):
            below += count
            lines.append(("_bucket", f'le="{_number(bound)}"', float(below)))
        return [*lines, ("_sum", "", total), ("_count", "", float(below))]


M = TypeVar("M", bound=Counter | Histogram)


class Family(Generic[M]):
    """One metric with its label values; `family.at(exit="edge")` is the metric to keep and update."""

    def __init__(self, spec: MetricSpec, make: Callable[[MetricSpec], M]) -> None:
        self.spec, self._make = spec, make
        self._members: dict[tuple[str, ...], M] = {}
        self._lock = threading.Lock()

    def at(self, **labels: str) -> M:
        """The member with these label values, made on first use. Raises ValueError unless all labels are given."""
        if set(labels) != set(self.spec.labels):
            raise ValueError(f"{self.spec.name} has the labels {self.spec.labels}, got {tuple(labels)}")
        key = tuple(str(labels[name]) for name in self.spec.labels)
        with self._lock:
            if key not in self._members:
                self._members[key] = self._make(self.spec)
            return self._members[key]

    def render(self, kind: str) -> list[str]:
        name = self.spec.name
        lines: list[str] = []
        with self._lock:
            members = sorted(self._members.items())
        for values, member in members:
            pairs = [f'{label}="{_escape(value)}"' for label, value in zip(self.spec.labels, values, strict=True)]
            for suffix, further, number in member.samples():
                inside = ",".join([*pairs, further] if further else pairs)
                lines.append(f"{name}{suffix}{f'{{{inside}}}' if inside else ''} {_number(number)}")
        help_text = self.spec.help.replace("\\", "\\\\").replace("\n", "\\n")
        return [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}", *lines]


class Registry:
    """All metrics of one process. Asking twice for one spec gives the same family; safe from any thread."""

    def __init__(self) -> None:
        self._families: dict[str, tuple[type[Any], Family[Any]]] = {}
        self._lock = threading.Lock()

    def counter(self, spec: MetricSpec) -> Family[Counter]:
        return self._family(spec, Counter)

    def gauge(self, spec: MetricSpec) -> Family[Gauge]:
        return self._family(spec, Gauge)

    def histogram(self, spec: MetricSpec) -> Family[Histogram]:
        return self._family(spec, Histogram)

    def render(self) -> str:
        """Everything in Prometheus' text format, version 0.0.4."""
        with self._lock:
            families = sorted(self._families.items())
        lines = [line for _, (cls, family) in families for line in family.render(cls.kind)]
        return "\n".join(lines) + "\n" if lines else ""

    def _family(self, spec: MetricSpec, cls: type[M]) -> Family[M]:
        with self._lock:
            known, family = self._families.setdefault(spec.name, (cls, Family(spec, cls)))
        if known is not cls or family.spec != spec:
            raise ValueError(f"{spec.name} is registered already as another {known.kind}")
        return family


async def serve_metrics(registry: Registry, address: str, unhealthy: Callable[[], str] = lambda: "") -> asyncio.Server:
    """Answer `/metrics` and `/healthz` over HTTP on `HOST:PORT`; close the returned server to stop.

    `unhealthy` returns why this node cannot serve, or nothing: `/healthz` is then 503 with the reason, else 200.
    Raises ConfigError for a bad address and PortInUse for a taken one.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"metrics address {address!r}: expected HOST:PORT")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _REQUEST_TIMEOUT_S)
            writer.write(_respond(registry, unhealthy, request.split(b"\r\n", 1)[0].decode("latin-1").split()))
            await writer.drain()
        except (asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # no HTTP client: nothing to answer
        finally:
            writer.close()

    try:
        return await asyncio.start_server(answer, host.strip("[]"), int(port), limit=_REQUEST_BYTES)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(f"metrics address {address} is taken; choose another one in [metrics] listen") from error
        raise ConfigError(f"metrics address {address}: {error.strerror or error}") from error


_REQUEST_TIMEOUT_S = 5.0
_REQUEST_BYTES = 8192


def _respond(registry: Registry, unhealthy: Callable[[], str], request: Sequence[str]) -> bytes:
    status, kind, body = "200 OK", CONTENT_TYPE, ""
    method, path = (*request, "", "")[:2]
    path = path.partition("?")[0]
    if method not in ("GET", "HEAD"):
        status, body = "405 Method Not Allowed", "only GET\n"
    elif path == "/metrics":
        body = registry.render()
    elif path == "/healthz":
        reason = unhealthy()
        status, body = ("503 Service Unavailable", f"{reason}\n") if reason else ("200 OK", "ok\n")
    else:
        status, body = "404 Not Found", "see /metrics and /healthz\n"
    payload = body.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
    return head.encode() + (b"" if method == "HEAD" else payload)


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
