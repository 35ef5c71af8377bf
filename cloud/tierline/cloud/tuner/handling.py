"""What a node spends on a sample beside Sections and waiting for its parent: joining, deciding, threads, messages.

Read from the ledgers of answers under any Plan; the median over samples, so that a pause of the machine is no rule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_ELSEWHERE = ("section", "send", "pull", "capture")
"""Spans that the cost model has from the Profile, and waiting for the sensor."""


def handling(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Milliseconds by node, of records as `telemetry.record` writes them. Time for a Plan's codecs is in it, so take
    answers under a Plan whose codecs are quick."""
    found: dict[str, list[float]] = defaultdict(list)
    for record in records:
        hops = record["hops"]
        above = [hop["residence_ms"] for hop in hops[1:]] + [0.0]
        for hop, above_ms in zip(hops, above, strict=True):
            known = sum(hop["spans_ms"].get(name, 0.0) for name in _ELSEWHERE)
            found[hop["node"]].append(hop["residence_ms"] - known - above_ms)
    return {node: max(0.0, float(np.median(values))) for node, values in found.items()}
