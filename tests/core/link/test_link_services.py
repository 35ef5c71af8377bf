"""Real channels on loopback: health, status, files, ports."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.support.links import Desk, code_of, parent, run

from tierline.core import errors
from tierline.v1 import fleet_pb2, fleet_pb2_grpc


def test_health_answers_the_usual_client() -> None:
    async def main() -> None:
        desk = Desk()
        async with parent(desk=desk) as listener, grpc.aio.insecure_channel(listener.address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
            for name in ("", "tierline.v1.Fleet", "tierline.v1.Inference"):
                assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == serving
            desk.sections = {"edge": True, "cloud": False}
            for name, state in (("section/edge", serving), ("section/cloud", not_serving)):
                assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == state
            for name in ("nonesuch", "n" * 500, "section/", "section/nonesuch"):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await health.Check(health_pb2.HealthCheckRequest(service=name))
                assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            watch = health.Watch(health_pb2.HealthCheckRequest(service=""))
            assert (await watch.read()).status == serving
            desk.serving = False
            assert (await health.Check(health_pb2.HealthCheckRequest())).status == not_serving
            assert (await watch.read()).status == not_serving
            watch.cancel()
            unknown = health.Watch(health_pb2.HealthCheckRequest(service="nonesuch"))
            assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            unknown.cancel()

    run(main)


def test_a_file_that_is_not_there_and_status() -> None:
    async def main() -> None:
        async with parent() as listener, grpc.aio.insecure_channel(listener.address) as channel:
            fleet: Any = fleet_pb2_grpc.FleetStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await fleet.Fetch(fleet_pb2.FetchRequest(digest="f2")).read()
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION and code_of(caught.value) == "bundle"
            assert (await fleet.Status(fleet_pb2.StatusRequest())).status == b'{"p": {}}'

    run(main)


def test_a_port_that_is_taken() -> None:
    async def main() -> None:
        async with parent() as listener:
            with pytest.raises(errors.PortInUse, match=listener.address):
                async with parent(listener.address):
                    pass

    run(main)
