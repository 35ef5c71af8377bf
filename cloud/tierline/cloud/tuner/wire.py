"""Bytes that messages really have: a feature on its way up, an answer on its way down, with all that frames them."""

from __future__ import annotations

from functools import lru_cache

from tierline.core.link import messages as m
from tierline.core.telemetry.ledger import SPANS
from tierline.core.types import NodeId, Payload, SampleId
from tierline.core.wire import FRAME_OVERHEAD_BYTES, frame_to_wire

_IDS = (SampleId(NodeId("device-1"), 1 << 50, 1 << 20),)
_TOKEN = "affine:4"


def _size(body: m.Body) -> int:
    return frame_to_wire(m.Frame(1 << 12, 1 << 12, body)).ByteSize() + FRAME_OVERHEAD_BYTES


@lru_cache(maxsize=1)
def part_framing() -> int:
    """What a feature of one sample costs beside its payload."""
    payload = Payload(_TOKEN, "float32", (1, 16, 8, 8), bytes(1024))
    part = m.Part(0, "view-1", _IDS, 1, (1000.0,), {}, payload, fused=True, num_views=(1,))
    return _size(part) - 1024


@lru_cache(maxsize=64)
def verdict_bytes(num_classes: int, num_hops: int) -> int:
    """An answer with the ledger of so many nodes."""
    times = (5_000_000, *(500_000 for _ in SPANS))
    logits = Payload("raw", "float32", (1, num_classes), bytes(4 * num_classes))
    hops = tuple(m.HopTimes("cloud", "cloud", (times,)) for _ in range(num_hops))
    return _size(m.Verdict("view-1", _IDS, ("end",), {"logits": logits}, (1,), ("",), hops, 1))
