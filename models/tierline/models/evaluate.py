"""A Bundle run in one process over a whole split: what the hierarchy computes, without the hierarchy.

Shapes: N views, S samples, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch

from tierline.core.bundle import Bundle, Section
from tierline.core.types import Array
from tierline.models.aggregate import combine
from tierline.models.train.ddnn import Views


@dataclass(frozen=True)
class ExitOutputs:
    """Outputs of every exit over a split."""

    devices: Array
    """float32 (N, S, K): logits of each device alone, zeros where the view is absent."""
    logits: Mapping[str, Array]
    """By exit name, from the sensor upwards: float32 (S, K)."""
    scores: Mapping[str, Array]
    """By exit name: float32 (S,), 0 is certain."""
    labels: Array
    view_labels: Array
    """int64 (N, S), -1 where absent."""

    def accuracy(self) -> dict[str, float]:
        """Of each exit answering alone; `device:VIEW` counts an absent view as wrong, as the paper does."""
        result = {
            f"device:view-{i}": float((logits.argmax(-1) == self.view_labels[i]).mean())
            for i, logits in enumerate(self.devices)
        }
        for name, logits in self.logits.items():
            result[name] = float((logits.argmax(-1) == self.labels).mean())
        return result


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
        leaves = waiting.copy()
        if name != names[-1] and thresholds[name] < 1.0:
            leaves &= outputs.scores[name] < thresholds[name]
        num_right += int((outputs.logits[name].argmax(-1) == outputs.labels)[leaves].sum())
        share[name] = float(leaves.mean())
        waiting &= ~leaves
    return Routed(num_right / len(outputs.labels), share)


def without_device(data: Views, view: int) -> Views:
    """The split as the hierarchy sees it once a device is dead."""
    view_labels = data.view_labels.copy()
    view_labels[view] = -1
    return Views(data.images, data.labels, view_labels)


def run_bundle(bundle: Bundle, data: Views, batch_size: int = 512) -> ExitOutputs:
    """Run every Section over a split, all levels for all samples."""
    runner = _Runner(bundle)
    parts = []
    for start in range(0, len(data.labels), batch_size):
        rows = slice(start, start + batch_size)
        parts.append(runner.run(data.images[:, rows], data.present[:, rows]))
    names = bundle.manifest.exits()
    return ExitOutputs(
        np.concatenate([part.devices for part in parts], axis=1),
        {name: np.concatenate([part.logits[name] for part in parts]) for name in names},
        {name: np.concatenate([part.scores[name] for part in parts]) for name in names},
        data.labels,
        data.view_labels,
    )


class _Runner:
    """The Sections of a Bundle, level by level."""

    def __init__(self, bundle: Bundle) -> None:
        self._manifest = bundle.manifest
        self._levels = [
            {key: _Section(bundle, section) for key, section in level.sections.items()}
            for level in bundle.manifest.levels
        ]
        self._heads = [
            None if level.exit.head is None else _Section(bundle, level.exit.head) for level in bundle.manifest.levels
        ]

    def run(self, images_NB: Array, present_NB: Array) -> ExitOutputs:
        """One batch; labels are left to the caller."""
        logits: dict[str, Array] = {}
        scores: dict[str, Array] = {}
        devices: Array | None = None
        inputs_NB, present = images_NB, present_NB
        for level, sections, head in zip(self._manifest.levels, self._levels, self._heads, strict=True):
            outputs = [section.run(x) for section, x in zip(sections.values(), inputs_NB, strict=True)]
            parts_NB = np.stack([o["logits"] for o in outputs]) * present[:, :, None]
            devices = parts_NB if devices is None else devices
            fused = _combine(level.exit.aggregator, parts_NB, present)
            logits[level.exit.name] = fused if head is None else head.run(fused)["logits"]
            scores[level.exit.name] = _entropy(logits[level.exit.name])
            if "feature" in outputs[0]:
                features_NB = np.stack([o["feature"] for o in outputs])
                inputs_NB = _combine(level.feature_aggregator, features_NB, present)[None]
                present = np.ones((1, len(inputs_NB[0])), bool)
        assert devices is not None
        nobody = np.zeros(0, np.int64)
        return ExitOutputs(devices, logits, scores, nobody, nobody)


class _Section:
    def __init__(self, bundle: Bundle, section: Section) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            bundle.read(section.file), options, providers=["CPUExecutionProvider"]
        )
        (self._input,) = section.inputs
        self._outputs = list(section.outputs)

    def run(self, x_B: Array) -> dict[str, Array]:
        return dict(zip(self._outputs, self._session.run(self._outputs, {self._input: x_B}), strict=True))


def _combine(name: str, parts_NB: Array, present_NB: Array) -> Array:
    fused: Array = combine(name, torch.from_numpy(parts_NB), torch.from_numpy(present_NB)).numpy()
    return fused


def _entropy(logits_BK: Array) -> Array:
    shifted = logits_BK - logits_BK.max(-1, keepdims=True)
    p = np.exp(shifted)
    p /= p.sum(-1, keepdims=True)
    score: Array = -(p * np.log(p + 1e-9)).sum(-1) / np.log(logits_BK.shape[-1])
    return score
