"""What a trial showed, as the JSON that `tierline demo` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tierline.cli.trial.answers import Record
from tierline.cli.trial.hierarchy import EDGE, device_of
from tierline.core.bundle import Bundle, Level
from tierline.core.coding import codec_for
from tierline.core.flow.levels import LOGITS, engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.preprocess import Preprocessor
from tierline.core.telemetry.report import LatencyReport
from tierline.core.types import Array

Answered = Mapping[str, Mapping[int, Record]]
"""The answer of each view to each sample."""


def load_samples(path: Path, bundle: Bundle) -> tuple[Array, Array]:
    """Preprocessed views (N, S, C, h, w) and labels (S,) of the file that the sources read."""
    preprocess = Preprocessor(bundle.manifest.preprocess)
    with np.load(path) as file:
        labels = file["labels"]
        if "views" in file:
            images = file["views"]
            return np.stack([preprocess.many(images[:, n], n) for n in range(images.shape[1])]), labels
        return preprocess.views(file["images"]), labels


class OneProcess:
    """The same Bundle and engine without links: accuracy of each exit alone, and the answers to compare with."""

    def __init__(self, bundle: Bundle, samples: Path, thresholds: Mapping[str, float], most: int) -> None:
        """At most so many samples of the file."""
        views_NS, labels = load_samples(samples, bundle)
        views_NS, self.labels = views_NS[:, :most], labels[:most]
        oracle = Oracle(bundle, engine_maker("onnxruntime"))
        outputs = oracle.exits(views_NS)
        self.exit_names, self.index_S = oracle.answers(views_NS, thresholds)
        alone = outputs.device_logits_NBK
        self.devices = [
            float((logits.argmax(axis=1) == self.labels).mean()) for logits in (() if alone is None else alone)
        ]
        self.exits = {
            name: float((found[LOGITS].argmax(axis=1) == self.labels).mean()) for name, found in outputs.outputs.items()
        }

    def num_equal(self, answers: Answered) -> int:
        """Samples of which every view has the same exit and class as here."""
        return sum(
            all(found[sample]["index"] == index and found[sample]["exit"] == exit_name for found in answers.values())
            for sample, (index, exit_name) in enumerate(zip(self.index_S, self.exit_names, strict=True))
        )


def records(answers: Answered) -> list[Record]:
    return [record for found in answers.values() for record in found.values()]


def accuracy(answered: Sequence[Record]) -> float:
    return float(np.mean([record["index"] == record["truth"] for record in answered]))


def torch_disagreement(origin: Mapping[str, str]) -> dict[str, float]:
    """By exit, the share of validation samples where torch names another class; from a manifest's `local 0.0000, ...`.

    Empty where the Bundle does not tell.
    """
    told = [part.split() for part in origin.get("torch_disagreement", "").split(",") if part.strip()]
    return {name: float(share) for name, share in told}


def link_bytes(status: Mapping[str, Any], bundle: Bundle) -> dict[str, Any]:
    """Payload and framing per sample of the links upwards, from the nodes' own counters."""
    devices = [status[device_of(view)] for view in bundle.manifest.views]
    parent = devices[0]["parent"]
    samples = [max(1, sum(n for key, n in node["counts"].items() if key.startswith("exit:"))) for node in devices]

    def mean(key: str) -> float:
        values = [node["links"]["parent"][key] / n for node, n in zip(devices, samples, strict=True)]
        return round(float(np.mean(values)), 2)

    found: dict[str, Any] = {"device_edge": mean("sent_payload_bytes")}
    framing = {"device_edge": mean("sent_framing_bytes")}
    if parent == EDGE:
        link, n = status[EDGE]["links"]["parent"], max(samples)
        found["edge_cloud"] = round(link["sent_payload_bytes"] / n, 2)
        framing["edge_cloud"] = round(link["sent_framing_bytes"] / n, 2)
    found["framing"] = framing
    return found


def formula_bytes(bundle: Bundle, local_share: float, codec: str = "") -> float:
    """DDNN's `4 |C| + (1 - l) f o / 8`: what a device sends per sample, framing apart.

    f o / 8 is of binary features; of others, or with a `codec` of its own, it is the codec's largest size.

    A lone device scores its own exit (BranchyNet) and has nobody to send `4 |C|` bytes of scores to.
    """
    level: Level = bundle.manifest.levels[0]
    section = next(iter(level.sections.values()))
    _, coded = codec_for(codec or level.feature_codec).size_bounds(section.outputs["feature"].spec)
    scores = section.outputs[LOGITS].spec.nbytes() if len(bundle.manifest.views) > 1 else 0
    return round(scores + (1.0 - local_share) * coded, 2)


def raw_bytes(bundle: Bundle) -> int:
    """One view's pixels as a camera would send them: a byte per channel."""
    preprocess = bundle.manifest.preprocess
    rows, columns = preprocess.grid
    return preprocess.channels * (preprocess.size[0] // rows) * (preprocess.size[1] // columns)


def report(
    bundle: Bundle,
    thresholds: Mapping[str, float],
    answers: Answered,
    alone: OneProcess,
    status: Mapping[str, Any],
    world: Mapping[str, Any],
    codec: str = "",
) -> dict[str, Any]:
    """Everything but the lost device; all of it from the same answers, one per sample and view."""
    answered = records(answers)
    measured = LatencyReport.of(answered).to_dict()
    exits = [record["exit"] for record in answered]
    share = {name: exits.count(name) / len(exits) for name in bundle.manifest.exits()}
    sizes, first = link_bytes(status, bundle), bundle.manifest.levels[0].exit
    sizes["raw"] = raw_bytes(bundle)
    sizes["formula"] = formula_bytes(bundle, share[first.name] if first is not None else 0.0, codec)
    return {
        "accuracy": {"device": alone.devices, **alone.exits, "overall": accuracy(answered)},
        "exit_share": share,
        "bytes_per_sample": sizes,
        "accuracy_by_exit": measured["accuracy_by_exit"],
        "latency_ms": measured["latency_ms"],
        "thresholds": dict(thresholds),
        "predictions": {
            "samples": len(alone.labels),
            "equal_to_one_process": alone.num_equal(answers),
            "torch_disagreement": torch_disagreement(bundle.manifest.origin),
        },
        "model": f"{bundle.manifest.name}@{bundle.manifest.version}",
        "environment": dict(world),
    }
