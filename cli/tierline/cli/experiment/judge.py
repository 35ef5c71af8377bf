"""What came out: one row per arm, and one per expectation."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tierline.cli.experiment.record import Record
from tierline.core.catalog import nearest
from tierline.core.errors import ConfigError
from tierline.learning.experiment.file import METRICS, Expectation, Measure

DERIVED = ("best_test_accuracy", "rounds_to_target")

_CLAIM = re.compile(r"(\S+)\s*(>=|<=|==|>|<)\s*(\S+)")
_HOLDS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}

Runs = Mapping[str, Sequence[Record]]
"""The runs of each arm, one per seed."""


def check_claims(expectations: Sequence[Expectation], arms: Sequence[str]) -> None:
    """Raise ConfigError for a claim that cannot be read, before anything is trained."""
    for index, expected in enumerate(expectations):
        where = f"expect[{index}]"
        match = _CLAIM.fullmatch(expected.claim.strip())
        if not match:
            raise ConfigError(f"{where}.claim = {expected.claim!r}: write ARM > ARM, or a number on one side")
        for side in (match[1], match[3]):
            if side not in arms and _number(side) is None:
                raise ConfigError(f"{where}.claim: no arm {side!r}{nearest(side, list(arms))}")
        if expected.metric not in (*METRICS, *DERIVED):
            raise ConfigError(f"{where}.metric: no metric {expected.metric!r}{nearest(expected.metric, METRICS)}")


def value_of(run: Record, metric: str, target: float | None) -> float | None:
    """A metric's last value, or what is derived from all; None where the run did not come so far."""
    if run.error:
        return None
    if metric == "best_test_accuracy":
        return max((value for _, value in run.values("test_accuracy")), default=None)
    if metric == "rounds_to_target":
        rounds = [round for round, value in run.values("test_accuracy") if target is not None and value >= target]
        return float(rounds[0]) if rounds else None
    values = run.values(metric)
    return values[-1][1] if values else None


def summary(runs: Runs, measure: Measure) -> list[dict[str, Any]]:
    """One row per arm: mean over seeds of each metric's last value, with its standard deviation where there are
    several."""
    metrics = [*measure.metrics, *(["rounds_to_target"] if measure.target is not None else [])]
    rows = []
    for arm, of_arm in runs.items():
        row: dict[str, Any] = {"arm": arm, "seeds": len(of_arm), "failed": sum(bool(run.error) for run in of_arm)}
        for metric in metrics:
            values = [v for run in of_arm if (v := value_of(run, metric, measure.target)) is not None]
            row[metric] = _told(values) if values else None
        rows.append(row)
    return rows


def judge(expectations: Sequence[Expectation], runs: Runs, target: float | None) -> list[dict[str, Any]]:
    """One row per expectation: held, not held, or not comparable, with the figures."""
    rows = []
    for expected in expectations:
        match = _CLAIM.fullmatch(expected.claim.strip())
        assert match
        left, right = (_side(side, runs, expected.metric, target) for side in (match[1], match[3]))
        if expected.not_comparable:
            verdict = f"not comparable: {expected.not_comparable}"
        elif left is None or right is None:
            verdict = "not comparable: an arm did not run, failed, or has no such figure"
        else:
            verdict = "held" if _holds(left, match[2], right, expected.margin) else "not held"
        figures = " ".join(("none" if v is None else f"{v:.6g}") for v in (left, right))
        rows.append(
            {
                "claim": expected.claim,
                "metric": expected.metric,
                "verdict": verdict,
                "figures": figures,
                "source": expected.source,
            }
        )
    return rows


def _holds(left: float, sign: str, right: float, margin: float) -> bool:
    if sign == "==":
        return abs(left - right) <= margin
    return bool(_HOLDS[sign](left - margin if sign[0] == ">" else left + margin, right))


def _side(side: str, runs: Runs, metric: str, target: float | None) -> float | None:
    number = _number(side)
    if number is not None and side not in runs:
        return number
    values = [value_of(run, metric, target) for run in runs.get(side, ())]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _told(values: Sequence[float]) -> str:
    mean = f"{np.mean(values):.6g}"
    return mean if len(values) == 1 else f"{mean} +- {np.std(values, ddof=1):.2g}"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
