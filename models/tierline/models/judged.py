"""What every exit of a Bundle answers to a user's images, links and their codecs included, and thresholds from it.

Works for every task: quality is the task's own, and where nothing is known of the images, thresholds follow from how
far an exit agrees with the root.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tierline.core.bundle import Bundle, Calibration, CurvePoint
from tierline.core.coding import codec_for
from tierline.core.decide import leaves
from tierline.core.errors import DataError
from tierline.core.flow.coding import encode_fused
from tierline.core.flow.levels import FEATURE, LOGITS, Levels, engine_maker
from tierline.core.preprocess import Preprocessor
from tierline.core.protocols import Capture, Task
from tierline.core.types import Answer, Array, Truth
from tierline.models.calibrate import GOALS, choose, each_short, parse_goal, short, thin

AGREEMENT = "target_agreement"
_BATCH = 32
_STEPS = {1: 20, 2: 10}
"""Thresholds tried of each exit, by the number of exits that have one."""


@dataclass(frozen=True)
class Judged:
    """A Bundle of one view on S images."""

    task: Task
    answers: dict[str, list[Answer]]
    """By exit, from the sensor upwards: what it says to every image."""
    scores: dict[str, Array]
    """By exit but the last: float32 (S,)."""
    truths: list[Truth] | None
    """None where they are not known of every image."""
    sent_bytes: dict[str, float]
    """Mean coded bytes of an image that climbs, by the lower level's tier."""
    climbs_from: dict[str, str]
    """By such a tier, the last exit passed on the way; empty where there is none."""

    @property
    def num_samples(self) -> int:
        return len(next(iter(self.answers.values())))

    def quality(self) -> dict[str, float]:
        """Of each exit if it alone answered; its agreement with the root where nothing is known."""
        return {name: self.worth(found) for name, found in self.answers.items()}

    def worth(self, answers: Sequence[Answer]) -> float:
        if self.truths is not None:
            return self.task.quality(answers, self.truths)
        return self.agreement(answers)

    def agreement(self, answers: Sequence[Answer]) -> float:
        """Mean agreement with the root's answers."""
        root = next(reversed(self.answers.values()))
        return float(np.mean([self.task.agreement(a, b) for a, b in zip(answers, root, strict=True)]))


def judge(bundle: Bundle, captures: Iterable[Capture], engine: str = "onnxruntime") -> Judged:
    """Run every image through all levels. Raises DataError where there is none."""
    manifest = bundle.manifest
    views, exits = manifest.views, manifest.exits()
    runs = set(range(1, len(manifest.levels)))
    levels = Levels(bundle, engine_maker(engine), views={view: view for view in views}, joins=True, runs=runs)
    preprocess, total_bytes = Preprocessor(manifest.preprocess), dict[str, float]()
    answers: dict[str, list[Answer]] = {name: [] for name in exits}
    scores: dict[str, list[Array]] = {name: [] for name in exits[:-1]}
    truths: list[Truth | None] = []
    try:
        for batch in _batches(captures):
            truths += [capture.truth for capture in batch]
            x_B = np.stack([preprocess(capture.image) for capture in batch])
            for index, level in enumerate(manifest.levels):
                runner = levels[index]
                part = runner.run(runner.parts[0], x_B)
                if runner.has_exit:
                    outputs = runner.own_outputs(part[LOGITS])
                    answers[runner.exit_name] += levels.task.decode(outputs)
                    if runner.exit_name in scores:
                        scores[runner.exit_name].append(runner.rule.score(outputs))
                if runner.feature_spec is not None:
                    payload = encode_fused(level.feature_codec, part[FEATURE])
                    total_bytes[level.tier.value] = total_bytes.get(level.tier.value, 0.0) + payload.num_bytes
                    x_B = codec_for(payload.codec).decode(payload, runner.feature_spec)
    finally:
        levels.close()
    if not truths:
        raise DataError("no image to judge the network by")
    known = [truth for truth in truths if truth is not None]
    is_known = len(known) == len(truths) and any(truth != () for truth in known)
    passed, climbs_from = "", dict[str, str]()
    for level in manifest.levels[:-1]:
        passed = level.exit.name if level.exit is not None else passed
        climbs_from[level.tier.value] = passed
    return Judged(
        levels.task,
        answers,
        {name: np.concatenate(found) for name, found in scores.items()},
        known if is_known else None,
        {tier: num / len(truths) for tier, num in total_bytes.items()},
        climbs_from,
    )


def calibration_of(judged: Judged, goal: str) -> Calibration:
    """Thresholds by a goal of `calibrate`, or by `target_agreement=X`: most samples leave low, X agree with the root.

    Raises ConfigError for a goal that cannot be read.
    """
    name, target = parse_goal(goal, (*GOALS, AGREEMENT))
    grids = [_thresholds(judged.scores[exit], _STEPS.get(len(judged.scores), 5)) for exit in judged.scores]
    points, agreements = [], dict[tuple[float, ...], float]()
    for vector in itertools.product(*grids):
        point, routed = _point(judged, dict(zip(judged.scores, vector, strict=True)))
        points.append(point)
        if name == AGREEMENT:
            agreements[vector] = judged.agreement(routed)
    first = next(iter(judged.answers))
    if name == AGREEMENT:
        points_that_agree = [p for p in points if agreements[tuple(p.thresholds.values())] >= target]
        chosen = max(points_that_agree, key=lambda p: (*p.exit_share.values(), p.accuracy))
    else:
        chosen = choose(points, first, name, target) if judged.scores else points[0]
    return Calibration(
        num_samples=judged.num_samples,
        accuracy=each_short(judged.quality()),
        thresholds=chosen.thresholds,
        chosen_by=goal,
        curve=thin(points, chosen, first),
    )


def _point(judged: Judged, thresholds: dict[str, float]) -> tuple[CurvePoint, list[Answer]]:
    """The images at one vector of thresholds, and their answers."""
    names = list(judged.answers)
    exit_S = np.full(judged.num_samples, len(names) - 1)
    for index in reversed(range(len(names) - 1)):
        exit_S[leaves(judged.scores[names[index]], thresholds[names[index]])] = index
    routed = [judged.answers[names[at]][row] for row, at in enumerate(exit_S.tolist())]
    share = {name: float((exit_S == index).mean()) for index, name in enumerate(names)}
    sent = {}
    for tier, num_bytes in judged.sent_bytes.items():
        passed = judged.climbs_from[tier]
        below = sum(share[name] for name in names[: names.index(passed) + 1]) if passed else 0.0
        sent[tier] = (1.0 - below) * num_bytes
    return CurvePoint(thresholds, short(judged.worth(routed)), each_short(share), each_short(sent)), routed


def _thresholds(score_S: Array, steps: int) -> list[float]:
    """Between the scores, so that about every `steps`-th part of the samples leaves at each; 0 for none, 1 for all."""
    ordered = np.sort(score_S.astype(np.float64))
    found = {0.0, 1.0}
    for step in range(1, steps):
        at = round(step * len(ordered) / steps)
        if 0 < at < len(ordered) and ordered[at] > ordered[at - 1]:
            found.add(short(float(ordered[at - 1] + ordered[at]) / 2))
    return sorted(found)


def _batches(captures: Iterable[Capture]) -> Iterable[list[Capture]]:
    pending = iter(captures)
    while batch := list(itertools.islice(pending, _BATCH)):
        yield batch
