"""Chooses the exit thresholds of a Bundle on a validation split, and keeps the whole curve for later choices.

Deviation from the DDNN authors' code, which tuned T on the test split: here T never sees it.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from tierline.core.bundle import Bundle, Calibration, CurvePoint, Manifest
from tierline.core.catalog import nearest
from tierline.core.coding import codec_for
from tierline.core.errors import ConfigError
from tierline.models.evaluate import ExitOutputs, Routed, route

STEPS = 20
"""Thresholds tried are 0, 1/STEPS, ..., 1; fewer where several exits make more than MAX_TRIED combinations."""
MAX_TRIED = 10_000
MAX_POINTS = 60

GOALS = ("best_accuracy", "target_accuracy", "target_exit_share")


def ddnn_bytes(num_classes: int, local_share: float, feature_bytes: float) -> float:
    """Payload bytes of one device per sample: 4 |C| + (1 - l) f o / 8, with f o / 8 given as `feature_bytes`.

    The published form (DDNN, ICDCS 2017, section IV): class scores always climb, features only from hard samples.
    """
    return 4.0 * num_classes + (1.0 - local_share) * feature_bytes


def feature_bytes(manifest: Manifest, level: int) -> float:
    """Coded bytes of one row of a level's feature (level 0: of one device)."""
    section = next(iter(manifest.levels[level].sections.values()))
    codec = codec_for(manifest.levels[level].feature_codec)
    return float(codec.size_bounds(section.outputs["feature"].spec)[1])


def payload_bytes(manifest: Manifest, exit_share: Mapping[str, float]) -> dict[str, float]:
    """Payload bytes per sample on each link, by the lower level's tier; `device` is one device's link.

    A device that is one of several and has an exit sends its logits always, its feature for samples that do not leave
    locally. All others send their feature with the samples that climb.
    """
    links: dict[str, float] = {}
    climbs = 1.0
    for index, level in enumerate(manifest.levels[:-1]):
        climbs -= exit_share[level.exit.name] if level.exit is not None else 0.0
        size = feature_bytes(manifest, index)
        if index == 0 and level.exit is not None and len(manifest.views) > 1:
            links[level.tier.value] = ddnn_bytes(len(manifest.labels), 1.0 - climbs, size)
        else:
            links[level.tier.value] = max(0.0, climbs) * size
    return links


def calibrate(bundle: Bundle, outputs: ExitOutputs, goal: str = "best_accuracy") -> Calibration:
    """Measure the curve and choose T by `goal`: `best_accuracy`, `target_accuracy=X` or `target_exit_share=X`.

    Raises ConfigError for a goal that cannot be read; warns where no point reaches it and takes the nearest.
    """
    return calibrate_by(bundle.manifest, len(outputs.labels), outputs.accuracy(), partial(route, outputs), goal)


def calibrate_by(
    manifest: Manifest,
    num_samples: int,
    accuracy: Mapping[str, float],
    route: Callable[[dict[str, float]], Routed],
    goal: str = "best_accuracy",
) -> Calibration:
    """As `calibrate`, for whatever says what a vector of thresholds makes of the split; `accuracy` by exit alone."""
    name, target = parse_goal(goal)
    inner = manifest.exits()[:-1]
    steps = max(step for step in range(1, STEPS + 1) if step == 1 or (step + 1) ** len(inner) <= MAX_TRIED)
    grid = [step / steps for step in range(steps + 1)]
    points = [
        _point(manifest, route, dict(zip(inner, t, strict=True))) for t in itertools.product(grid, repeat=len(inner))
    ]
    first = manifest.exits()[0]
    chosen = choose(points, first, name, target) if inner else points[0]
    return Calibration(
        num_samples=num_samples,
        accuracy=each_short(accuracy),
        thresholds=chosen.thresholds,
        chosen_by=goal,
        curve=thin(points, chosen, first),
    )


def parse_goal(goal: str, goals: Sequence[str] = GOALS) -> tuple[str, float]:
    """Name and value of one of `goals`; the value of `best_accuracy` is 0. Raises ConfigError."""
    name, _, value = goal.partition("=")
    if name not in goals:
        raise ConfigError(f"threshold goal {goal!r}: no such goal{nearest(name, list(goals))}")
    if name == "best_accuracy" and not value:
        return name, 0.0
    try:
        target = float(value)
    except ValueError:
        target = -1.0
    if name == "best_accuracy" or not 0.0 <= target <= 1.0:
        raise ConfigError(
            f"threshold goal {goal!r}: write best_accuracy, target_accuracy=0.95 or target_exit_share=0.5"
        )
    return name, target


def _point(manifest: Manifest, route: Callable[[dict[str, float]], Routed], thresholds: dict[str, float]) -> CurvePoint:
    routed = route(thresholds)
    links = payload_bytes(manifest, routed.exit_share)
    return CurvePoint(thresholds, short(routed.accuracy), each_short(routed.exit_share), each_short(links))


def short(value: float) -> float:
    """Six decimals: no split is large enough for more, and manifests are read by people."""
    return round(value, 6)


def each_short(values: Mapping[str, float]) -> dict[str, float]:
    return {name: short(value) for name, value in values.items()}


def choose(points: list[CurvePoint], first: str, name: str, target: float) -> CurvePoint:
    """The best point; where several are equal, the one that leaves most samples lowest."""
    if name == "target_exit_share":
        # The smallest local T that reaches the share, then the most accurate of the thresholds above it.
        enough = [p for p in points if p.exit_share[first] >= target]
        lowest = min(p.thresholds[first] for p in enough)
        return max((p for p in enough if p.thresholds[first] == lowest), key=lambda p: (p.accuracy, _lowness(p)))
    best = max(points, key=lambda p: (p.accuracy, _lowness(p)))
    if name == "best_accuracy":
        return best
    enough = [p for p in points if p.accuracy >= target]
    if not enough:
        warnings.warn(
            f"no thresholds reach target_accuracy={target:g} on the validation split; best is {best.accuracy:.3f}",
            stacklevel=3,
        )
        return best
    return max(enough, key=lambda p: (_lowness(p), p.accuracy))


def _lowness(point: CurvePoint) -> tuple[float, ...]:
    """Exit shares from the sensor upwards: larger leaves earlier."""
    return tuple(point.exit_share.values())


def thin(points: list[CurvePoint], chosen: CurvePoint, first: str) -> list[CurvePoint]:
    """One T for all exits, the chosen point, and the best points of the joint grid, in order of the local exit's T.

    A joint point is kept where no point that leaves as many samples at the first exit is more accurate.
    """
    keep = {tuple(p.thresholds.values()): p for p in points if len(set(p.thresholds.values())) == 1}
    keep[tuple(chosen.thresholds.values())] = chosen
    best_accuracy = -1.0
    for point in sorted(points, key=lambda p: (_lowness(p), p.accuracy), reverse=True):
        if point.accuracy > best_accuracy and len(keep) < MAX_POINTS:
            best_accuracy = point.accuracy
            keep.setdefault(tuple(point.thresholds.values()), point)
    return [keep[key] for key in sorted(keep)]
