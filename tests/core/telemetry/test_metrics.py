"""The metrics registry, its text format, and the HTTP endpoint over a real socket."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from tierline.core.errors import ConfigError, PortInUse
from tierline.core.telemetry import metrics
from tierline.core.telemetry.metrics import MetricSpec, Registry, serve_metrics


def test_counters_and_gauges_render_with_sorted_members_and_escaped_labels() -> None:
    registry = Registry()
    exits = registry.counter(metrics.EXIT_TOTAL)
    exits.at(exit="local").inc(3)
    exits.at(exit="cloud").inc()
    exits.at(exit="local").inc()
    registry.gauge(metrics.NODE_CONNECTED).at(node='a"\\\n').set(1)
    registry.gauge(metrics.SAMPLES_IN_FLIGHT).at().inc(2.5)
    assert registry.render() == (
        "# HELP tierline_exit_total Samples answered, by the exit that answered.\n"
        "# TYPE tierline_exit_total counter\n"
        'tierline_exit_total{exit="cloud"} 1\n'
        'tierline_exit_total{exit="local"} 4\n'
        "# HELP tierline_node_connected 1 while the link to this node stands, else 0.\n"
        "# TYPE tierline_node_connected gauge\n"
        'tierline_node_connected{node="a\\"\\\\\\n"} 1\n'
        "# HELP tierline_samples_in_flight Samples accepted and not answered yet.\n"
        "# TYPE tierline_samples_in_flight gauge\n"
        "tierline_samples_in_flight 2.5\n"
    )


def test_a_histogram_is_cumulative_and_its_bounds_are_inclusive() -> None:
    registry = Registry()
    sizes = registry.histogram(MetricSpec("size", "Sizes.", ("tier",), (1.0, 2.5))).at(tier="edge")
    for value in (1, 2, 2.5, 9):
        sizes.observe(value)
    assert registry.render().splitlines()[2:] == [
        'size_bucket{tier="edge",le="1"} 1',
        'size_bucket{tier="edge",le="2.5"} 3',
        'size_bucket{tier="edge",le="+Inf"} 4',
        'size_sum{tier="edge"} 14.5',
        'size_count{tier="edge"} 4',
    ]


def test_misuse_is_refused() -> None:
    registry = Registry()
    exits = registry.counter(metrics.EXIT_TOTAL)
    assert registry.counter(metrics.EXIT_TOTAL) is exits
    with pytest.raises(ValueError, match="cannot fall"):
        exits.at(exit="local").inc(-1)
    with pytest.raises(ValueError, match="has the labels"):
        exits.at(tier="edge")
    with pytest.raises(ValueError, match="registered already as another counter"):
        registry.gauge(metrics.EXIT_TOTAL)
    with pytest.raises(ValueError, match="rising buckets"):
        registry.histogram(MetricSpec("x", "", (), (2.0, 1.0))).at()


def test_exported_names_follow_the_conventions() -> None:
    specs = [value for value in vars(metrics).values() if isinstance(value, MetricSpec)]
    assert len({spec.name for spec in specs}) == len(specs) >= 10
    assert all(spec.name.startswith("tierline_") and spec.help.endswith(".") for spec in specs)


@contextlib.asynccontextmanager
async def serving(reason: str = "") -> AsyncIterator[tuple[Registry, int]]:
    registry = Registry()
    server = await serve_metrics(registry, "127.0.0.1:0", lambda: reason)
    yield registry, server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


async def get(port: int, request: bytes) -> tuple[str, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return head, body


def test_the_endpoint_serves_metrics_and_health() -> None:
    async def run() -> None:
        async with serving() as (registry, port):
            registry.counter(metrics.EXIT_TOTAL).at(exit="local").inc()
            head, body = await get(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert head.startswith("HTTP/1.1 200 OK")
            assert "text/plain; version=0.0.4" in head
            assert body == registry.render()
            assert (await get(port, b"GET /healthz?x=1 HTTP/1.1\r\n\r\n"))[1] == "ok\n"
            assert "404" in (await get(port, b"GET / HTTP/1.1\r\n\r\n"))[0]
            assert "405" in (await get(port, b"POST /metrics HTTP/1.1\r\n\r\n"))[0]
            head, body = await get(port, b"HEAD /metrics HTTP/1.1\r\n\r\n")
            assert "200 OK" in head and body == ""
            assert (await get(port, b"x" * 9000 + b"\r\n\r\n")) == ("", ""), "not HTTP: closed without an answer"
            assert (await get(port, b"\r\n\r\n"))[0].startswith("HTTP/1.1 405")
        async with serving(reason="no parent") as (_, port):
            head, body = await get(port, b"GET /healthz HTTP/1.1\r\n\r\n")
            assert head.startswith("HTTP/1.1 503") and body == "no parent\n"

    asyncio.run(run())


def test_a_taken_port_and_a_bad_address_are_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(PortInUse, match=address):
            asyncio.run(_serve(address))
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        asyncio.run(_serve("9464"))


async def _serve(address: str) -> None:
    await serve_metrics(Registry(), address)
