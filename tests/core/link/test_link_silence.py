"""Real channels on loopback: a peer that says nothing."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.support.links import Desk, child, parent, relay, run, until

from tierline.core.link import dial, fleet_service
from tierline.core.link.fleet import Hello
from tierline.core.link.fleet_service import FleetService
from tierline.v1 import fleet_pb2, fleet_pb2_grpc


def test_a_silent_child_is_declared_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_service, "HEARTBEAT_S", 0.05)

    async def main() -> None:
        desk = Desk()
        desk.heartbeat_s = 60.0  # so this child never beats again
        async with parent(desk=desk) as listener, child("a", listener.address) as a:
            await until(lambda: desk.up == ["a"])
            await until(lambda: desk.down[:1] == ["a"])
            await until(lambda: len(desk.up) >= 2, "and may come back, for it is not refused")
            assert not a.task.done()

    run(main)


def test_a_silent_parent_is_declared_dead() -> None:
    async def main() -> None:
        desk = Desk()
        desk.heartbeat_s = 0.05
        async with parent(desk=desk) as listener, relay(listener.address) as (address, cut), child("a", address) as a:
            await until(lambda: a.link.is_up and len(desk.beats) >= 3)
            cut.freeze()
            await until(lambda: a.changes[:2] == [True, False])
            assert "no sign of life" in a.dialler.last_error
            cut()
            await until(lambda: a.changes[:3] == [True, False, True])

    run(main)


def test_a_parent_that_never_says_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "JOIN_TIMEOUT_S", 0.1)

    async def main() -> None:
        async def exchange(requests: Any, context: Any) -> None:
            await asyncio.Event().wait()

        async with parent() as real:
            server = grpc.aio.server()
            fleet_pb2_grpc.add_FleetServicer_to_server(FleetService(real, real._desk), server)
            handler = grpc.stream_stream_rpc_method_handler(exchange)
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler("tierline.v1.Inference", {"Exchange": handler}),)
            )
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            async with child("a", f"127.0.0.1:{port}") as a:
                await until(lambda: a.dialler.last_error)
                assert not a.task.done() and a.changes == []
            await server.stop(0)

    run(main)


def test_heartbeats_of_a_stranger_are_refused() -> None:
    async def main() -> None:
        desk = Desk()
        async with parent(desk=desk) as listener, grpc.aio.insecure_channel(listener.address) as channel:
            listener.join(Hello("a", "device", 1, (), "", (), ""))
            fleet: Any = fleet_pb2_grpc.FleetStub(channel)

            async def attend(*nodes: str) -> grpc.StatusCode:
                call = fleet.Attend()
                with suppress(grpc.aio.AioRpcError):
                    for node in nodes:
                        await call.write(fleet_pb2.Heartbeat(node=node, status=b"{}"))
                        if await call.read() is grpc.aio.EOF:
                            break
                return grpc.StatusCode(await call.code())

            assert await attend("stranger") is grpc.StatusCode.FAILED_PRECONDITION
            assert await attend("a", "b") is grpc.StatusCode.INVALID_ARGUMENT
            assert [beat.node for beat in desk.beats] == ["a"]

    run(main)
