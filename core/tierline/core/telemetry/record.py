"""The JSON shape of an Outcome: what sinks write and reports read. Durations in ms, written from integer ns.

    {"id": {"origin", "epoch", "seq"}, "view", "label", "index", "confidence", "exit", "degraded", "reason",
     "num_views", "plan", "truth", "total_ms", "hops": [{"node", "tier", "residence_ms", "spans_ms": {...}}],
     "run", "trace"}

Of a detector, `boxes` are [{"label", "index", "confidence", "corners"}], of a regression `values` are numbers; `truth`
is like them. `total_ms` is the residence at the origin, 0 without a ledger; spans of 0 are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from tierline.core.protocols import Outcome
from tierline.core.types import Answer, Box, SampleId, Truth

_NS_PER_MS = 1e6


def outcome_record(outcome: Outcome) -> dict[str, Any]:
    """The record of one outcome, of plain JSON values."""
    answer = outcome.answer
    record = {
        "id": {"origin": str(outcome.id.origin), "epoch": outcome.id.epoch, "seq": outcome.id.seq},
        "view": outcome.view,
        "label": answer.label,
        "index": answer.index,
        "confidence": float(answer.confidence),
        "exit": outcome.exit,
        "degraded": outcome.degraded,
        "reason": outcome.reason,
        "num_views": outcome.num_views,
        "plan": outcome.plan,
        "truth": _boxes(outcome.truth) if isinstance(outcome.truth, tuple) else outcome.truth,
        "total_ms": outcome.ledger[0].residence_ns / _NS_PER_MS if outcome.ledger else 0.0,
        "hops": [
            {
                "node": hop.node,
                "tier": hop.tier,
                "residence_ms": hop.residence_ns / _NS_PER_MS,
                "spans_ms": {name: ns / _NS_PER_MS for name, ns in hop.named().items()},
            }
            for hop in outcome.ledger
        ],
        "run": outcome.run,
        "trace": trace_id(outcome.run, outcome.id),
    }
    if answer.boxes is not None:
        record["boxes"] = _boxes(answer.boxes)
    if answer.values is not None:
        record["values"] = list(answer.values)
    return record


def answer_of(record: Mapping[str, Any]) -> Answer:
    """The answer in a record."""
    boxes, values = record.get("boxes"), record.get("values")
    return Answer(
        record["index"],
        record["label"],
        record.get("confidence", 0.0),
        None if boxes is None else tuple(map(_box, boxes)),
        None if values is None else tuple(values),
    )


def truth_of(record: Mapping[str, Any]) -> Truth | None:
    """What a record says is true."""
    truth = record["truth"]
    if isinstance(truth, list):
        return tuple(_box(x) if isinstance(x, Mapping) else x for x in truth)
    known: Truth | None = truth
    return known


def trace_id(run: str, sample: SampleId) -> str:
    """W3C trace id of a sample (32 hexadecimal digits): the same at every node, so that records can be joined."""
    return blake2b(f"{run}/{sample}".encode(), digest_size=16).hexdigest()


def outcome_line(outcome: Outcome) -> bytes:
    """The record as one line of JSON with its newline."""
    return msgspec.json.encode(outcome_record(outcome)) + b"\n"


def _boxes(items: tuple[Any, ...]) -> list[Any]:
    """Boxes as JSON values; numbers stay."""
    return [msgspec.to_builtins(item) for item in items]


def _box(record: Mapping[str, Any]) -> Box:
    left, top, right, bottom = record["corners"]
    return Box(record["index"], record["label"], record["confidence"], (left, top, right, bottom))
