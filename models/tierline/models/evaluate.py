"""A Bundle run in one process over a whole split: what the hierarchy computes, without the hierarchy.

Shapes: N views, S samples, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tierline.core.bundle import Bundle
from tierline.core.decide import leaves
from tierline.core.flow.levels import LOGITS, engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.types import Array
from tierline.models.train.ddnn import Views


@dataclass(frozen=True)
class ExitOutputs:
    """Outputs of every exit over a split."""

    views: list[str]
    devices: Array | None
    """float32 (N, S, K): logits of each device alone, zeros where the view is absent; None without an exit there."""
    logits: Mapping[str, Array]
    """By exit name, from the sensor upwards: float32 (S, K)."""
    scores: Mapping[str, Array]
    """By exit name: float32 (S,), 0 is certain."""
    labels: Array
    view_labels: Array
    """int64 (N, S), -1 where absent."""

    def accuracy(self) -> dict[str, float]:
        """Of each exit answering alone; `device:VIEW` counts an absent view as wrong, as the paper does."""
        alone = () if self.devices is None else zip(self.views, self.devices, self.view_labels, strict=True)
        result = {f"device:{view}": float((logits.argmax(-1) == labels).mean()) for view, logits, labels in alone}
        for name, logits in self.logits.items():
            result[name] = float((logits.argmax(-1) == self.labels).mean())
        return result


def disagreement(outputs: ExitOutputs, logits: Mapping[str, Array]) -> dict[str, float]:
    """By exit, the share of samples for which other logits of the same exit, (S, K), name another class."""
    return {name: float((own.argmax(-1) != logits[name].argmax(-1)).mean()) for name, own in outputs.logits.items()}


@dataclass(frozen=True)
class Routed:
    """What a vector of thresholds makes of a split."""

    accuracy: float
    exit_share: dict[str, float]


def route(outputs: ExitOutputs, thresholds: Mapping[str, float]) -> Routed:
    """Let every sample leave at the first exit with T >= 1 or score < T; the last exit takes the rest."""
    names = list(outputs.logits)
    waiting = np.ones(len(outputs.labels), bool)
    num_right, share = 0, {}
    for name in names:
        threshold = 1.0 if name == names[-1] else thresholds[name]
        here = waiting & leaves(outputs.scores[name], threshold)
        num_right += int((outputs.logits[name].argmax(-1) == outputs.labels)[here].sum())
        share[name] = float(here.mean())
        waiting &= ~here
    return Routed(num_right / len(outputs.labels), share)


def without_device(data: Views, view: int) -> Views:
    """The split as the hierarchy sees it once a device is dead."""
    view_labels = data.view_labels.copy()
    view_labels[view] = -1
    return Views(data.images, data.labels, view_labels)


def run_bundle(bundle: Bundle, data: Views, batch_size: int = 512, engine: str = "onnxruntime") -> ExitOutputs:
    """Run every Section over a split, all levels for all samples, with the numerics that nodes use."""
    oracle = Oracle(bundle, engine_maker(engine))
    parts = []
    try:
        for start in range(0, len(data.labels), batch_size):
            rows = slice(start, start + batch_size)
            parts.append(oracle.exits(np.ascontiguousarray(data.images[:, rows]), data.present[:, rows]))
    finally:
        oracle.levels.close()
    names = bundle.manifest.exits()
    devices = [part.device_logits_NBK for part in parts if part.device_logits_NBK is not None]
    return ExitOutputs(
        bundle.manifest.views,
        np.concatenate(devices, axis=1) * data.present[:, :, None] if devices else None,
        {name: np.concatenate([part.outputs[name][LOGITS] for part in parts]) for name in names},
        {name: np.concatenate([part.scores[name] for part in parts]) for name in names},
        data.labels,
        data.view_labels,
    )
