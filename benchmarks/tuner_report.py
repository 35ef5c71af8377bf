"""What `bench_tuner.py` reports beside single Plans: the work's place by bandwidth, and how the Tuner did in all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from tierline.cli.chart import Axis, Series, chart
from tierline.cloud.tuner.choice import Point
from tierline.cloud.tuner.space import Space
from tierline.core.profile import Profile
from tierline.core.types import Tier

RTT_MS = 5.0
"""Of all links, so that bandwidth alone differs."""


def sweep(
    tune: Callable[[Profile, Space | None], Point],
    base: Profile,
    one_cut: Space,
    work: Mapping[str, float],
) -> list[dict[str, Any]]:
    """By bandwidth: the device's cut and the share of the network's work below it (`work`), for the best single cut
    without exits and for the Tuner."""
    rows = []
    for mbit in np.geomspace(0.05, 500, 17).tolist():
        link = msgspec.structs.replace(base.links["device"], up_bps=mbit * 1e6, down_bps=mbit * 1e6, rtt_ms=RTT_MS)
        profile = msgspec.structs.replace(base, links={"device": link})
        row: dict[str, Any] = {"mbit": round(mbit, 4)}
        for name, space in (("single_cut", one_cut), ("tuner", None)):
            point = tune(profile, space)
            cut = point.choice.cuts[Tier.DEVICE]
            row |= {f"{name}_cut": cut, f"{name}_work": work[cut]}
            row[f"{name}_ms"] = round(point.predicted.latency_mean_ms, 3)
            row[f"{name}_codec"] = point.choice.codecs.get(Tier.DEVICE, "")
        rows.append(row)
    return rows


def picture(rows: Sequence[Mapping[str, Any]]) -> str:
    """Share of the work below the cut, by bandwidth."""
    names = {"single_cut": "best single cut, no exits", "tuner": "Tuner: cut, codec, exits, thresholds"}
    series = [
        Series(
            label,
            [(row["mbit"], row[f"{name}_work"]) for row in rows],
            [f"{row[f'{name}_cut']}, {row[f'{name}_codec']}, {row[f'{name}_ms']} ms" for row in rows],
            steps=True,
        )
        for name, label in names.items()
    ]
    return chart(
        series,
        Axis("Mbit/s of the link", logarithmic=True),
        Axis("share of the network's work below the device's cut"),
        f"The cut moves towards the device as bandwidth falls (round trip {RTT_MS:g} ms, predicted)",
    )


def verdict(errors: Sequence[float], gaps: Sequence[float], table: Mapping[str, Any], limit: float) -> dict[str, Any]:
    """How many predictions held, and by link how the Tuner compares."""
    size = np.abs(np.array(errors))
    found: dict[str, Any] = {
        "kind": "verdict",
        "plans": len(errors),
        "within_15_percent": int((size <= limit).sum()),
        "largest_error": round(float(size.max()), 4),
        "largest_gap": round(max(gaps), 4),
    }
    for link, lines in table.items():
        others = {name: line["measured_ms"] for name, line in lines.items() if name != "tuner"}
        best = min(others, key=lambda name: others[name])
        tuner = lines["tuner"]["measured_ms"]
        found[link] = {
            "tuner_ms": tuner, "best_baseline": best, "best_baseline_ms": others[best],
            "against_cloud_only": round(others["cloud_only"] / tuner, 2),
            "against_neurosurgeon": round(others["neurosurgeon"] / tuner, 2),
            "device_only_ms": others["device_only"],
            "accuracy_loss": round(lines["cloud_only"]["accuracy"] - lines["tuner"]["accuracy"], 4),
        }  # fmt: skip
    return found
