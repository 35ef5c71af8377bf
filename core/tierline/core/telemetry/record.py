"""The JSON shape of an Outcome: what sinks write and reports read. Durations in ms, written from integer ns.

    {"id": {"origin", "epoch", "seq"}, "view", "label", "index", "confidence", "exit", "degraded", "reason",
     "num_views", "plan", "truth", "total_ms", "hops": [{"node", "tier", "residence_ms", "spans_ms": {...}}],
     "run", "trace"}

`total_ms` is the residence at the origin, 0 without a ledger; spans of 0 are left out.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec

from tierline.core.protocols import Outcome
from tierline.core.types import SampleId

_NS_PER_MS = 1e6


def outcome_record(outcome: Outcome) -> dict[str, Any]:
    """The record of one outcome, of plain JSON values."""
    answer = outcome.answer
    return {
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
        "truth": outcome.truth,
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


def trace_id(run: str, sample: SampleId) -> str:
    """W3C trace id of a sample (32 hexadecimal digits): the same at every node, so that records can be joined."""
    return blake2b(f"{run}/{sample}".encode(), digest_size=16).hexdigest()


def outcome_line(outcome: Outcome) -> bytes:
    """The record as one line of JSON with its newline."""
    return msgspec.json.encode(outcome_record(outcome)) + b"\n"
