"""Ask a running hierarchy from a program.

    async with Client("127.0.0.1:7450") as client:
        record = await client.infer({"cam-1": image})        # a uint8 HW or HWC array per view
        async for record in client.subscribe():              # every answer of the node, from now on
            ...

Records have the shape that the `jsonl` sink writes (`core.telemetry.record`).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from tierline.core.errors import ShapeMismatch
from tierline.core.link.ask import Asker
from tierline.core.link.tls import TlsFiles, require_tls
from tierline.core.types import Array, Payload

__all__ = ["Client"]

MAX_IMAGE_BYTES = 32 << 20


class Client:
    """A connection to one node: an agent that hosts views and listens, or, for `status`, any node that listens."""

    def __init__(self, address: str, *, tls: TlsFiles | None = None, insecure: bool = False) -> None:
        """`address` is host:port. Raises SecurityError for an address beyond this machine without TLS."""
        require_tls(address, tls, insecure)
        self.address = address
        self._asker = Asker(address, tls)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._asker.channel.close()

    async def infer(
        self, images: Mapping[str, Array], *, seq: int | None = None, budget_ms: float = 0.0, timeout_s: float = 30.0
    ) -> dict[str, Any]:
        """Answer one sample: a raw uint8 image (HW or HWC) for each of its views that the node hosts.

        `seq` joins it with other nodes' views where the hierarchy joins by sequence. `budget_ms` 0: the Plan's.
        Raises ShapeMismatch, PlanError (no such view here), LinkUnavailable.
        """
        if not images:
            raise ShapeMismatch("infer: no image given; give one for each view of the sample that the node hosts")
        payloads = {}
        for view, given in images.items():
            image = np.asarray(given)
            if image.dtype != np.uint8 or image.ndim not in (2, 3):
                raise ShapeMismatch(f"view {view!r}: expected uint8 HW or HWC, got {image.dtype}{list(image.shape)}")
            if image.nbytes > MAX_IMAGE_BYTES:
                raise ShapeMismatch(f"view {view!r}: {image.nbytes} bytes, an image may have {MAX_IMAGE_BYTES}")
            payloads[view] = Payload("raw", "uint8", image.shape, image.tobytes())
        return _record(await self._asker.infer(payloads, seq, budget_ms, timeout_s))

    async def subscribe(self, views: Sequence[str] = ()) -> AsyncIterator[dict[str, Any]]:
        """Outcomes of the node's views from now on; all of them where none is named."""
        async for raw in self._asker.subscribe(views):
            yield _record(raw)

    async def status(self, *, timeout_s: float = 5.0) -> dict[str, Any]:
        """The node and everything below it, by node id."""
        return await self._asker.status(timeout_s)


def _record(raw: bytes) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(raw)
    return record
