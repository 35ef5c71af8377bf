"""The latency report against ledgers whose sums are known by hand."""

from typing import Any

import numpy as np
import pytest

from tierline.core.errors import DataError
from tierline.core.telemetry.report import LatencyReport, residuals_ms


def hop(tier: str, residence_ms: float, **spans_ms: float) -> dict[str, Any]:
    return {"node": f"{tier}-1", "tier": tier, "residence_ms": residence_ms, "spans_ms": spans_ms}


def record(exit: str, hops: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    plain = {
        "id": {"origin": "d", "epoch": 1, "seq": 0},
        "label": "3",
        "index": 3,
        "exit": exit,
        "degraded": False,
        "plan": 1,
        "truth": None,
        "hops": hops,
    }
    return {**plain, **fields}


def local(total_ms: float, **fields: Any) -> dict[str, Any]:
    return record(
        "local", [hop("device", total_ms, section=total_ms - 3, send=2), hop("edge", 0.5, exit=0.5)], **fields
    )


CLIMBED = [
    hop("device", 20.0, section=2, encode=1, send=6),
    hop("edge", 10.5, decode=0.5, section=3, send=4),
    hop("cloud", 2.0, section=1.8),
]


def test_residuals_are_what_neither_spans_nor_the_parent_explain() -> None:
    assert residuals_ms(CLIMBED) == pytest.approx([0.5, 1.0, 0.2])


def test_percentiles_are_numpys_and_totals_are_the_origins_residence() -> None:
    totals = [10.0, 11.0, 15.0, 40.0]
    report = LatencyReport.of([local(total) for total in totals]).to_dict()
    expected = {f"p{q}": pytest.approx(np.percentile(totals, q), abs=1e-4) for q in (50, 90, 99)}
    assert report["latency_ms"]["total"] == {"count": 4, **expected}
    assert report["latency_ms"]["by_exit"] == {"local": {"count": 4, **expected}}


def test_exits_with_as_many_hops_stand_by_their_latency() -> None:
    answered_by_edge = record("edge", [hop("device", 15, send=14), hop("edge", 5, section=5)])
    assert list(LatencyReport.of([answered_by_edge, local(9)]).by_exit) == ["local", "edge"]


def test_exits_stand_from_the_sensor_upwards_with_their_shares() -> None:
    report = LatencyReport.of([record("cloud", CLIMBED), local(10), local(12), local(14, degraded=True)]).to_dict()
    assert list(report["exit_share"].items()) == [("local", 0.75), ("cloud", 0.25)]
    assert report["degraded_share"] == 0.25
    assert report["plans"] == ["1"]


def test_spans_stand_by_tier_and_count_the_visits_they_occurred_in() -> None:
    spans = LatencyReport.of([record("cloud", CLIMBED), local(10.0)]).to_dict()["latency_ms"]["spans"]
    assert list(spans) == ["device", "edge", "cloud"]
    assert list(spans["device"]) == ["section", "encode", "send", "residual"], "in the ledger's order"
    assert spans["device"]["encode"] == {"count": 1, "p50": 1.0, "p90": 1.0, "p99": 1.0}
    assert spans["device"]["send"]["count"] == 2
    assert spans["device"]["send"]["p50"] == 4.0
    assert spans["cloud"]["section"] == {"count": 1, "p50": 1.8, "p90": 1.8, "p99": 1.8}


def test_the_mean_ledger_adds_up_to_the_mean_total() -> None:
    report = LatencyReport.of([record("cloud", CLIMBED), local(10.0), local(14.0)])
    for exit_name, mean_ms in {"local": 12.0, "cloud": 20.0}.items():
        assert sum(ms for spans in report.mean_ledger[exit_name].values() for ms in spans.values()) == pytest.approx(
            mean_ms
        )


def test_the_residual_share_is_the_median_over_visits() -> None:
    shares = LatencyReport.of([record("cloud", CLIMBED)]).residual_share_p50
    assert shares == pytest.approx({"device": 0.5 / 20, "edge": 1 / 10.5, "cloud": 0.1})


def test_accuracy_judges_only_answers_with_a_truth() -> None:
    rows = [local(10, truth=3), local(10, truth=4), local(10, truth="3"), local(10), record("cloud", CLIMBED)]
    report = LatencyReport.of(rows).to_dict()
    assert report["accuracy"] == {"overall": pytest.approx(2 / 3, abs=1e-4)}
    assert report["accuracy_by_exit"] == {"local": pytest.approx(2 / 3, abs=1e-4)}
    assert "accuracy" not in LatencyReport.of([local(10)]).to_dict()


def test_an_answer_without_a_ledger_counts_in_the_shares_only() -> None:
    report = LatencyReport.of([local(10), record("none", [], degraded=True)]).to_dict()
    assert report["latency_ms"]["total"]["count"] == 1
    assert report["exit_share"] == {"none": 0.5, "local": 0.5}
    assert "none" not in report["latency_ms"]["by_exit"]


@pytest.mark.parametrize("rows", [[], [record("local", [])]])
def test_nothing_measured_is_an_error(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(DataError, match="no latency to report"):
        LatencyReport.of(rows)
