"""One question to a running node: how are you, and everything below you?"""

from __future__ import annotations

import json
from typing import Any

import grpc
import grpc.aio

from tierline.core.errors import BadFrame, LinkUnavailable
from tierline.core.link.fleet import CHANNEL_OPTIONS
from tierline.core.link.status import from_rpc
from tierline.core.link.tls import TlsFiles, channel_credentials, explain_failure, split_address
from tierline.v1 import fleet_pb2, fleet_pb2_grpc


async def ask_status(address: str, tls: TlsFiles | None = None, *, timeout_s: float = 5.0) -> dict[str, Any]:
    """Status by node id of the node at `address` and of all below it.

    Raises LinkUnavailable, SecurityError, BadFrame (another program listens there) or PeerRejected.
    """
    split_address(address)
    if tls is None:
        channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    else:
        channel = grpc.aio.secure_channel(address, channel_credentials(tls), options=CHANNEL_OPTIONS)
    async with channel:
        try:
            stub: Any = fleet_pb2_grpc.FleetStub(channel)
            reply = await stub.Status(fleet_pb2.StatusRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            reason = from_rpc(error, address)
            if not isinstance(reason, LinkUnavailable):
                raise reason from error
            if tls is not None:
                raise await explain_failure(address, tls.ca.read_bytes(), tls) from error
            raise LinkUnavailable(
                f"{address}: no node answers here without TLS; is it running, and is this its address?"
            ) from error
    try:
        nodes = json.loads(reply.status)
    except ValueError as error:
        raise BadFrame(f"{address}: its status is not JSON; is this a tierline node?") from error
    if not isinstance(nodes, dict):
        raise BadFrame(f"{address}: its status is not a table; is this a tierline node?")
    return nodes
