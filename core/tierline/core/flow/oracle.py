"""The whole hierarchy in one process: same Bundle, same engines, same thresholds, no links.

The distributed system must give the same predictions, sample for sample; calibration and tests use it.

Shape legend: N views, B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tierline.core.bundle import Bundle
from tierline.core.decide import leaves
from tierline.core.flow.levels import FEATURE, LOGITS, LevelRunner, Levels, MakeEngine
from tierline.core.types import FLOAT32, Array, Arrays


@dataclass(frozen=True, slots=True)
class ExitOutputs:
    """What every exit would say to every sample."""

    outputs: Mapping[str, Arrays]
    """By exit name."""
    scores: Mapping[str, Array]
    device_logits_NBK: Array | None
    """None where level 0 has no exit."""


class Oracle:
    """Runs a Bundle end to end, all of it in one precision."""

    def __init__(self, bundle: Bundle, make_engine: MakeEngine, precision: str = FLOAT32) -> None:
        manifest = bundle.manifest
        self.levels = Levels(
            bundle,
            make_engine,
            views={view: view for view in manifest.views},
            joins=True,
            runs=set(range(1, len(manifest.levels))),
            precision=precision,
        )

    def exits(self, views_NB: Array, present_NB: Array | None = None) -> ExitOutputs:
        """All exits' outputs for preprocessed views (N, B, C, H, W)."""
        first = self.levels[0]
        num_views, num_rows = views_NB.shape[:2]
        present = np.ones((num_views, num_rows), dtype=np.bool_) if present_NB is None else present_NB
        parts = [first.run(name, views_NB[n]) for n, name in enumerate(first.parts)]
        outputs: dict[str, Arrays] = {}
        scores: dict[str, Array] = {}

        def decide(runner: LevelRunner, logits_NBK: Array, present_NB: Array) -> None:
            decision = runner.decide(logits_NBK, present_NB)
            outputs[runner.exit_name], scores[runner.exit_name] = decision.outputs, decision.score_B

        device_logits_NBK = None
        if first.has_exit:
            device_logits_NBK = np.stack([part[LOGITS] for part in parts])
            decide(first, device_logits_NBK, present)
        feature = None
        if len(self.levels) > 1:
            feature = first.fuse_features(np.stack([part[FEATURE] for part in parts]), present)
        for index in range(1, len(self.levels)):
            runner = self.levels[index]
            assert feature is not None
            part = runner.run("*", feature)
            if runner.has_exit:
                decide(runner, part[LOGITS][np.newaxis], np.ones((1, num_rows), dtype=np.bool_))
            feature = part.get(FEATURE)
        return ExitOutputs(outputs, scores, device_logits_NBK)

    def leaving(self, found: ExitOutputs, thresholds: Mapping[str, float]) -> Array:
        """The exit of each sample, by its position from the sensor upwards."""
        names = list(found.outputs)
        exit_B = np.full(len(found.scores[names[0]]), len(names) - 1)
        for index in reversed(range(len(names) - 1)):
            exit_B[leaves(found.scores[names[index]], thresholds[names[index]])] = index
        return exit_B

    def answers(
        self, views_NB: Array, thresholds: Mapping[str, float], present_NB: Array | None = None
    ) -> tuple[list[str], Array]:
        """Exit name and class index of each sample under the Plan's thresholds."""
        found = self.exits(views_NB, present_NB)
        names, exit_B = list(found.outputs), self.leaving(found, thresholds)
        index_B = np.empty(len(exit_B), dtype=np.int64)
        for position, name in enumerate(names):
            mine = exit_B == position
            index_B[mine] = found.outputs[name][LOGITS][mine].argmax(axis=1)
        return [names[i] for i in exit_B], index_B
