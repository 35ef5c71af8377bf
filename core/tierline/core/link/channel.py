"""gRPC's channels and streams, as both ends of our links use them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from tierline.core import errors
from tierline.core.link.fleet import CHANNEL_OPTIONS
from tierline.core.link.status import from_rpc


def open_channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    """A new channel, which dials when it is first used; without TLS where there are no credentials."""
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)


def reader(stream: Any) -> Callable[[], Awaitable[bytes | None]]:
    """Reads a call or a context; None at the end."""

    async def read() -> bytes | None:
        raw = await stream.read()
        return None if raw is grpc.aio.EOF else raw

    return read


def writer(call: Any) -> Callable[[bytes], Awaitable[None]]:
    """Writes to a call. Once the stream has ended nothing is written: the reader learns why."""

    async def write(raw: bytes) -> None:
        with contextlib.suppress(asyncio.InvalidStateError):
            await call.write(raw)

    return write


def why_ended(code: grpc.StatusCode, details: str, peer: str) -> errors.TierlineError:
    """Why a stream ended without an exception."""
    if code is grpc.StatusCode.OK:
        return errors.LinkUnavailable(f"{peer}: the parent ended the stream")
    return from_rpc(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details), peer)
