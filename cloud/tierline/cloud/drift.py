"""Tells when what is measured has left the ranges that a Plan was chosen for, and stays out of them.

A pure function of measurements and their times. A range is about one quantity while the others are as they were: where
several have moved far from that, they count as out together, whatever their ranges.

Three things keep it from flapping: a range is left only beyond a margin, the quantity has to stay out for a while, and
after word was given there is a rest, in which a new Plan can show what it does. A word that comes soon after the rest
before it doubles the rest: a world that goes to and fro is followed ever more slowly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tierline.cloud.tuner.world import RTT, SLOWER, UP
from tierline.core.flow.engines import READY

MARGIN = 0.1
"""Of the nearer end of a range."""
FAR_OFF = 1.5
"""Two quantities or more that are off by such a factor are out together."""
HOLD_S = 10.0
"""So long it has to be out, at every measurement."""
REST_S = 60.0
"""Between two words."""
SOON, MOST_RESTS = 4, 16
"""A word within so many rests of the one before doubles the rest, up to so many times the first."""

Ranges = Mapping[str, tuple[float, float]]
Expected = Mapping[str, Mapping[str, Mapping[int, float]]]
"""Milliseconds by node, level and rows of a batch."""


@dataclass(frozen=True, slots=True)
class Drifted:
    """One quantity that is not what the Plan was chosen for, alone or with others."""

    name: str
    value: float
    low: float
    high: float

    def told(self) -> str:
        """In words."""
        return f"{self.name} is {self.value:.4g}, the Plan holds for {self.low:.4g} to {self.high:.4g}"


class Drift:
    """One hierarchy's measurements against the Plan in force."""

    def __init__(self, *, hold_s: float = HOLD_S, rest_s: float = REST_S) -> None:
        self._hold_s, self._shortest_s = hold_s, rest_s
        self._version = 0
        self._out_since: dict[str, float] = {}
        self._far_off: set[str] = set()
        self._told_s, self._rest_s = float("-inf"), rest_s

    def look(
        self,
        now_s: float,
        version: int,
        ranges: Ranges,
        measured: Mapping[str, float],
        base: Mapping[str, float] | None = None,
        is_known: Callable[[Sequence[Drifted]], bool] = lambda found: False,
    ) -> list[Drifted]:
        """What has drifted; empty where nothing has, or where that was said not long ago. `base`: the values that the
        Plan was chosen at. Quantities that were not measured this time neither begin nor end anything. What `is_known`
        needs no word, and begins no rest."""
        if version != self._version:
            self._version, self._out_since, self._far_off = version, {}, set()
        known = {name: value for name, value in measured.items() if name in ranges}
        for name, value in known.items():
            chosen_at = (base or {}).get(name, value)
            is_far = max(value, chosen_at) > FAR_OFF * min(value, chosen_at)
            self._far_off = self._far_off | {name} if is_far else self._far_off - {name}
        for name, value in known.items():
            low, high = ranges[name]
            is_in = low * (1 - MARGIN) <= value <= high * (1 + MARGIN)
            if is_in and (name not in self._far_off or len(self._far_off) < 2):
                self._out_since.pop(name, None)
            else:
                self._out_since.setdefault(name, now_s)
        out = sorted(x for x, since_s in self._out_since.items() if x in measured and now_s - since_s >= self._hold_s)
        if not out or now_s - self._told_s < self._rest_s:
            return []
        found = [Drifted(name, measured[name], *ranges[name]) for name in out]
        if is_known(found):
            return []
        is_soon = now_s - self._told_s < SOON * self._rest_s
        self._rest_s = min(2 * self._rest_s, MOST_RESTS * self._shortest_s) if is_soon else self._shortest_s
        self._told_s = now_s
        return found


def measured(status: Mapping[str, Mapping[str, Any]], expected: Expected | None = None) -> dict[str, float]:
    """What a hierarchy's status says, by the names of `tuner.world`: `rtt_ms:NODE` and `up_mbps:NODE` of the link to
    the parent, `slower:NODE` where it is known how long Sections should take.

    Of a node that measures itself nothing counts: that takes time of its Sections and of its link. Nor do the times of
    one that builds an engine while another answers.
    """
    found: dict[str, float] = {}
    for node, record in status.items():
        if not record.get("connected") or record.get("profiling"):
            continue
        way = record.get("way")
        for kind in (RTT, UP):
            value = _number(way, kind)
            if value:
                found[f"{kind}:{node}"] = value
        ratio = _slower(record.get("sections"), (expected or {}).get(node, {}))
        if ratio and not _is_building(record.get("engines")):
            found[f"{SLOWER}:{node}"] = ratio
    return found


def _is_building(engines: Any) -> bool:
    return isinstance(engines, dict) and any(state != READY for state in engines.values())


def _slower(sections: Any, expected: Mapping[str, Mapping[int, float]]) -> float:
    """Time of the Sections that ran by what they should take; 0 where nothing tells."""
    took = should = 0.0
    for level, by_batch in expected.items():
        told = sections.get(level) if isinstance(sections, dict) else None
        ms, rows = _number(told, "ms"), _number(told, "rows")
        if ms and rows:
            took, should = took + ms, should + _of_batch(by_batch, rows)
    return took / should if should else 0.0


def _of_batch(by_batch: Mapping[int, float], rows: float) -> float:
    """Between two measured sizes on the straight line, beyond the last in proportion."""
    sizes = sorted(by_batch)
    above = next((size for size in sizes if size >= rows), 0)
    below = max((size for size in sizes if size <= rows), default=0)
    if not above or not below or above == below:
        nearest = above or sizes[-1]
        return by_batch[nearest] * (1.0 if above else rows / nearest)
    share = (rows - below) / (above - below)
    return by_batch[below] + share * (by_batch[above] - by_batch[below])


def _number(table: Any, key: str) -> float:
    """One above zero, or 0: children may write what they like."""
    value = table.get(key) if isinstance(table, dict) else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
    return float(value) if value is not None and is_number else 0.0
