"""`grpc.health.v1.Health` on the main port, under the same TLS as everything else.

The two messages are one field each, so they are read and written here by hand (HealthCheckRequest: string service = 1;
HealthCheckResponse: enum status = 1) and nodes need no further package. Wire format:
https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

SERVICE = "grpc.health.v1.Health"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"
SECTION = "section/"
WATCH_S = 0.5
"""How often Watch looks for a change."""


def health_handler(services: frozenset[str], is_serving: Callable[[str], bool | None]) -> grpc.GenericRpcHandler:
    """The service for `services` (the empty name is the whole server), all of which share one state, and for
    `section/NAME`: `is_serving` is asked for a Section by name, or for the server by an empty one."""

    def status(service: str | None) -> bytes:
        if service is None or service == SECTION:
            return SERVICE_UNKNOWN
        is_section = service.startswith(SECTION)
        if service and not is_section and service not in services:
            return SERVICE_UNKNOWN
        serves = is_serving(service[len(SECTION) :] if is_section else "")
        if serves is None:
            return SERVICE_UNKNOWN
        return SERVING if serves else NOT_SERVING

    async def check(request: bytes, context: Any) -> bytes:
        found = status(_service_of(request))
        if found == SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return found

    async def watch(request: bytes, context: Any) -> AsyncIterator[bytes]:
        service, last = _service_of(request), b""
        while True:
            now = status(service)
            if now != last:
                yield now
                last = now
            await asyncio.sleep(WATCH_S)

    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Check": grpc.unary_unary_rpc_method_handler(check),
            "Watch": grpc.unary_stream_rpc_method_handler(watch),
        },
    )


def _service_of(request: bytes) -> str | None:
    """The one string field; None for bytes that are no such message."""
    if not request:
        return ""
    if len(request) < 2 or request[0] != 0x0A or request[1] != len(request) - 2:
        return None
    return request[2:].decode("utf-8", "replace")
