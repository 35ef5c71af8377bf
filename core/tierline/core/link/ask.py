"""Calls of a program to a node: status, inference, subscription. Messages in, plain values out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

import grpc
import grpc.aio

from tierline.core.link.fleet import CHANNEL_OPTIONS
from tierline.core.link.status import from_rpc
from tierline.core.link.tls import TlsFiles, channel_credentials
from tierline.core.types import Payload
from tierline.core.wire import tensor_to_wire
from tierline.v1 import fleet_pb2, fleet_pb2_grpc, inference_pb2, inference_pb2_grpc


class Asker:
    """One channel to one node; every failed call raises the TierlineError it stands for."""

    def __init__(self, address: str, tls: TlsFiles | None) -> None:
        self._address = address
        self.channel = (
            grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
            if tls is None
            else grpc.aio.secure_channel(address, channel_credentials(tls), options=CHANNEL_OPTIONS)
        )
        self._inference = inference_pb2_grpc.InferenceStub(self.channel)
        self._fleet = fleet_pb2_grpc.FleetStub(self.channel)

    async def infer(self, images: Mapping[str, Payload], seq: int | None, budget_ms: float, timeout_s: float) -> bytes:
        """The outcome as one JSON document."""
        request = inference_pb2.InferRequest(budget_ms=budget_ms)
        if seq is not None:
            request.seq = seq
        for view, payload in images.items():
            tensor_to_wire(payload, request.images[view])
        try:
            return (await self._inference.Infer(request, timeout=timeout_s)).outcome
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self._address) from error

    async def subscribe(self, views: Sequence[str]) -> AsyncIterator[bytes]:
        try:
            async for reply in self._inference.Subscribe(inference_pb2.SubscribeRequest(views=views)):
                yield reply.outcome
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self._address) from error

    async def status(self, timeout_s: float) -> bytes:
        try:
            return (await self._fleet.Status(fleet_pb2.StatusRequest(), timeout=timeout_s)).status
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self._address) from error
