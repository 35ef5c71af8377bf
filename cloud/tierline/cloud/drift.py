"""Tells when what is measured has left the ranges that a Plan was chosen for, and stays out of them.

A pure function of measurements and their times. Three things keep it from flapping: a range is left only beyond a
margin, the quantity has to stay out for a while, and after word was given there is a rest, in which a new Plan can
show what it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MARGIN = 0.1
"""Of the nearer end of a range."""
HOLD_S = 10.0
"""So long it has to be out, at every measurement."""
REST_S = 60.0
"""Between two words."""

Ranges = Mapping[str, tuple[float, float]]


class Drift:
    """One hierarchy's measurements against the Plan in force."""

    def __init__(self, *, hold_s: float = HOLD_S, rest_s: float = REST_S) -> None:
        self._hold_s, self._rest_s = hold_s, rest_s
        self._version = 0
        self._out_since: dict[str, float] = {}
        self._told_s = float("-inf")

    def look(self, now_s: float, version: int, ranges: Ranges, measured: Mapping[str, float]) -> list[str]:
        """What has drifted, in words; empty where nothing has, or where that was said not long ago. Quantities that
        were not measured this time neither begin nor end anything."""
        if version != self._version:
            self._version, self._out_since = version, {}
        for name, value in measured.items():
            if name not in ranges:
                continue
            low, high = ranges[name]
            if low * (1 - MARGIN) <= value <= high * (1 + MARGIN):
                self._out_since.pop(name, None)
            else:
                self._out_since.setdefault(name, now_s)
        out = sorted(x for x, since_s in self._out_since.items() if x in measured and now_s - since_s >= self._hold_s)
        if not out or now_s - self._told_s < self._rest_s:
            return []
        self._told_s = now_s
        return [
            f"{name} is {measured[name]:g}, the Plan was chosen for {ranges[name][0]:g} to {ranges[name][1]:g}"
            for name in out
        ]


def measured(status: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """What a hierarchy's status says of its links: `rtt_ms:NODE`, from a node to its parent."""
    found = {}
    for node, record in status.items():
        links = record.get("links")
        link = links.get("parent") if isinstance(links, dict) else None  # children may write what they like
        rtt_ms = link.get("rtt_ms") if isinstance(link, dict) else None
        if record.get("connected") and isinstance(rtt_ms, int | float) and rtt_ms > 0:
            found[f"rtt_ms:{node}"] = float(rtt_ms)
    return found
