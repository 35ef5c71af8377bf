"""Asking a node for its status over a real connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from tierline.core.errors import BadFrame, ConfigError, LinkUnavailable, PeerRejected
from tierline.core.link.ask import ask_status
from tierline.v1 import fleet_pb2, fleet_pb2_grpc


class Service(fleet_pb2_grpc.FleetServicer):
    def __init__(self, status: bytes) -> None:
        self.status = status

    async def Status(self, request: fleet_pb2.StatusRequest, context: Any) -> fleet_pb2.StatusReply:  # noqa: N802
        return fleet_pb2.StatusReply(status=self.status)


@asynccontextmanager
async def serving(status: bytes | None) -> AsyncIterator[str]:
    server = grpc.aio.server()
    if status is not None:
        fleet_pb2_grpc.add_FleetServicer_to_server(Service(status), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def ask(status: bytes | None) -> dict[str, Any]:
    async def scenario() -> dict[str, Any]:
        async with serving(status) as address:
            return await ask_status(address)

    return asyncio.run(scenario())


def test_the_status_of_a_node_and_all_below_it() -> None:
    nodes = {"cloud": {"tier": "cloud"}, "edge": {"tier": "edge"}}
    assert ask(json.dumps(nodes).encode()) == nodes


@pytest.mark.parametrize("status", [b"\xff", b"[]", b"{"])
def test_strange_answers_are_named(status: bytes) -> None:
    with pytest.raises(BadFrame, match="is this a tierline node"):
        ask(status)


def test_other_programs_and_nobody() -> None:
    with pytest.raises(PeerRejected, match="UNIMPLEMENTED"):
        ask(None)
    with pytest.raises(LinkUnavailable, match=r"^127.0.0.1:9: no node answers here without TLS"):
        asyncio.run(ask_status("127.0.0.1:9"))
    with pytest.raises(ConfigError, match="expected host:port"):
        asyncio.run(ask_status("nowhere"))
