from __future__ import annotations

import json

from tierline.core.protocols import Outcome
from tierline.core.telemetry.ledger import SPANS, Hop
from tierline.core.telemetry.record import outcome_line, outcome_record, trace_id
from tierline.core.types import Answer, NodeId, SampleId

SPANS_NS = tuple(1_000_003 * i for i in range(len(SPANS)))
OUTCOME = Outcome(
    id=SampleId(NodeId("dev-1"), 3, 42),
    view="cam-1",
    answer=Answer(2, "dög", 0.75),
    exit="cloud",
    degraded=True,
    reason="deadline",
    num_views=6,
    plan=5,
    ledger=(Hop("dev-1", "device", 12_345_678, SPANS_NS), Hop("cloud", "cloud", 1, (0,) * len(SPANS))),
    truth=2,
    run="cloud-1f",
)


def test_the_shape_is_fixed() -> None:
    record = outcome_record(OUTCOME)
    hops = record.pop("hops")
    assert record == {
        "id": {"origin": "dev-1", "epoch": 3, "seq": 42},
        "view": "cam-1",
        "label": "dög",
        "index": 2,
        "confidence": 0.75,
        "exit": "cloud",
        "degraded": True,
        "reason": "deadline",
        "num_views": 6,
        "plan": 5,
        "truth": 2,
        "total_ms": 12.345678,
        "run": "cloud-1f",
        "trace": trace_id("cloud-1f", OUTCOME.id),
    }
    assert hops[0]["node"] == "dev-1" and hops[0]["tier"] == "device" and hops[0]["residence_ms"] == 12.345678
    assert hops[0]["spans_ms"]["preprocess"] == 1.000003 and "capture" not in hops[0]["spans_ms"]
    assert hops[1] == {"node": "cloud", "tier": "cloud", "residence_ms": 1e-6, "spans_ms": {}}


def test_a_line_is_one_line_of_json() -> None:
    line = outcome_line(OUTCOME)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert json.loads(line) == outcome_record(OUTCOME)


def test_every_nanosecond_survives_the_milliseconds() -> None:
    for ns in (*range(1, 3_000_000, 7919), 86_400_000_000_001):
        hop = Hop("dev-1", "device", ns, (ns, *(0,) * (len(SPANS) - 1)))
        line = outcome_line(Outcome(OUTCOME.id, "v", Answer(0, "a", 1.0), "local", False, "", 1, 0, (hop,)))
        (read,) = json.loads(line)["hops"]
        assert [round(1e6 * ms) for ms in (read["residence_ms"], read["spans_ms"][SPANS[0]])] == [ns, ns]


def test_without_ledger_and_truth() -> None:
    bare = Outcome(OUTCOME.id, "v", Answer(0, "a", 1.0), "local", False, "", 1, 0, ())
    assert outcome_record(bare)["total_ms"] == 0.0
    assert outcome_record(bare)["truth"] is None and outcome_record(bare)["hops"] == []
