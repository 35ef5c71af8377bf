"""From outcome records to a latency report: percentiles per exit and per span, the ledger's residual, exit shares.

A record is what a node's sink gets for one answer (`telemetry.record`). Its hops run from the origin upwards. The
`send` span of a hop is its wait for the parent less the parent's residence, so for hop h of n

    residual_h = residence_h - sum(spans_h) - residence_{h+1},        residence_n = 0,

and the spans and residuals of all hops add up to `residence_0`, the end-to-end latency. Percentiles are numpy's linear
ones. Times are milliseconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tierline.core.errors import DataError
from tierline.core.task._judge import judge
from tierline.core.telemetry.ledger import SPAN_INDEX
from tierline.core.telemetry.record import answer_of, truth_of

RESIDUAL = "residual"
"""Shown beside the spans: the residence of a node that no span explains."""

Record = Mapping[str, Any]
Percentiles = dict[str, float]


@dataclass(frozen=True)
class LatencyReport:
    """What the answers cost. Exits are keyed by name, `spans` by tier, then span.

    Answers without a ledger count in the shares and the accuracy, not in the latencies.
    """

    total: Percentiles
    by_exit: Mapping[str, Percentiles]
    spans: Mapping[str, Mapping[str, Percentiles]]
    residual_share_p50: Mapping[str, float]
    mean_ledger: Mapping[str, Mapping[str, Mapping[str, float]]]
    exit_share: Mapping[str, float]
    degraded_share: float
    accuracy: Mapping[str, float]
    """Or what else judges such answers, see `measure`: overall, and of the answers of each exit."""
    measure: str
    plans: tuple[str, ...]

    @classmethod
    def of(cls, records: Iterable[Record]) -> LatencyReport:
        """Raises DataError when no record has a ledger."""
        rows = list(records)
        timed = [row for row in rows if row["hops"]]
        if not timed:
            raise DataError(f"none of {len(rows)} outcome records has a ledger, so there is no latency to report")
        seen: dict[str, list[Record]] = defaultdict(list)
        for row in rows:
            seen[row["exit"]].append(row)
        exits = {name: seen[name] for name in sorted(seen, key=lambda name: _height(seen[name]))}
        timed_exits = {name: [row for row in members if row["hops"]] for name, members in exits.items()}
        measure, quality = _quality(rows, exits)
        return cls(
            total=_percentiles([_total_ms(row) for row in timed]),
            by_exit={
                name: _percentiles([_total_ms(row) for row in members])
                for name, members in timed_exits.items()
                if members
            },
            spans=_spans_by_tier(timed),
            residual_share_p50=_residual_share_p50(timed),
            mean_ledger={name: _mean_ledger(members) for name, members in timed_exits.items() if members},
            exit_share={name: len(members) / len(rows) for name, members in exits.items()},
            degraded_share=sum(bool(row["degraded"]) for row in rows) / len(rows),
            accuracy=quality,
            measure=measure,
            plans=tuple(sorted({str(row["plan"]) for row in rows})),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `mean_ledger` is what the picture draws, `accuracy_by_exit` that of the answers given there."""
        found: dict[str, Any] = {
            "latency_ms": {
                "total": _rounded(self.total),
                "by_exit": {name: _rounded(values) for name, values in self.by_exit.items()},
                "spans": {
                    tier: {span: _rounded(values) for span, values in spans.items()}
                    for tier, spans in self.spans.items()
                },
                "residual_share_p50": _rounded(self.residual_share_p50),
                "mean_ledger": {
                    name: {tier: _rounded(spans) for tier, spans in tiers.items()}
                    for name, tiers in self.mean_ledger.items()
                },
            },
            "exit_share": _rounded(self.exit_share),
            "degraded_share": round(self.degraded_share, 4),
            "plans": list(self.plans),
        }
        by_exit = {name: value for name, value in self.accuracy.items() if name != "overall"}
        if self.accuracy and self.measure != "accuracy":
            found["quality"] = {"measure": self.measure, **_rounded(self.accuracy)}
        elif self.accuracy:
            found["accuracy"] = {"overall": round(self.accuracy["overall"], 4)}
            found["accuracy_by_exit"] = _rounded(by_exit)
        return found


def residuals_ms(hops: Sequence[Mapping[str, Any]]) -> list[float]:
    """Residence of each hop that neither its spans nor the hop above explain."""
    above = [hop["residence_ms"] for hop in hops[1:]] + [0.0]
    return [
        float(hop["residence_ms"] - sum(hop["spans_ms"].values()) - parent_ms)
        for hop, parent_ms in zip(hops, above, strict=True)
    ]


def _visits(rows: Iterable[Record]) -> dict[str, list[dict[str, float]]]:
    """The spans of every visit to a tier, with the residual; tiers from the origin upwards."""
    visits: dict[str, list[dict[str, float]]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: -len(row["hops"])):  # the longest journey names the tiers in order
        for hop, residual_ms in zip(row["hops"], residuals_ms(row["hops"]), strict=True):
            visits[hop["tier"]].append({**hop["spans_ms"], RESIDUAL: residual_ms})
    return visits


def _spans_by_tier(rows: Iterable[Record]) -> dict[str, dict[str, Percentiles]]:
    """Percentiles of each span over the visits to a tier in which it occurred; `count` tells how many."""
    return {
        tier: {name: _percentiles([visit[name] for visit in seen if name in visit]) for name in _span_names(seen)}
        for tier, seen in _visits(rows).items()
    }


def _residual_share_p50(rows: Iterable[Record]) -> dict[str, float]:
    """Median over all visits to a tier of the residual by the residence."""
    shares: dict[str, list[float]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: -len(row["hops"])):
        for hop, residual_ms in zip(row["hops"], residuals_ms(row["hops"]), strict=True):
            shares[hop["tier"]].append(residual_ms / hop["residence_ms"] if hop["residence_ms"] else 0.0)
    return {tier: float(np.percentile(values, 50)) for tier, values in shares.items()}


def _mean_ledger(rows: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Mean milliseconds per answer by tier and span; all of it adds up to the mean total."""
    return {
        tier: {name: sum(visit.get(name, 0.0) for visit in seen) / len(rows) for name in _span_names(seen)}
        for tier, seen in _visits(rows).items()
    }


def _span_names(visits: Iterable[Mapping[str, float]]) -> list[str]:
    """Names that occur, in the ledger's order; unknown ones (from a newer node) before the residual."""
    names = {name for visit in visits for name in visit}
    last = len(SPAN_INDEX)
    return sorted(names, key=lambda name: (SPAN_INDEX.get(name, last + (name == RESIDUAL)), name))


def _quality(rows: Sequence[Record], exits: Mapping[str, Sequence[Record]]) -> tuple[str, dict[str, float]]:
    """What is measured, and it overall and of each exit's answers; nothing where no truth is known."""
    measure, found = "accuracy", {}
    for name, members in {"overall": rows, **exits}.items():
        judged = judge([answer_of(row) for row in members], [truth_of(row) for row in members])
        if judged is not None:
            measure, found[name] = judged
    return measure, found


def _height(rows: Sequence[Record]) -> tuple[float, float]:
    """Sorts exits from the sensor upwards: by the mean number of hops their answers saw, then by mean latency."""
    num_hops = sum(len(row["hops"]) for row in rows)
    return num_hops / len(rows), sum(_total_ms(row) for row in rows if row["hops"]) / len(rows)


def _total_ms(row: Record) -> float:
    return float(row["hops"][0]["residence_ms"])


def _percentiles(values: Sequence[float]) -> Percentiles:
    p50, p90, p99 = np.percentile(np.asarray(values, dtype=np.float64), (50, 90, 99))
    return {"count": len(values), "p50": float(p50), "p90": float(p90), "p99": float(p99)}


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    """Four decimals: a tenth of a microsecond, a hundredth of a percent."""
    return {name: round(value, 4) for name, value in values.items()}
