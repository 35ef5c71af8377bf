"""Detectors of one's own on real processes: cut, they answer as the uncut network; as a cascade, hard images climb."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_detectors import SIDE, linear_network, write_images

from tierline.cli.supervisor import Fleet
from tierline.cli.trial.answers import Answers
from tierline.cli.trial.hierarchy import trial_spec
from tierline.core.bundle import Bundle
from tierline.core.telemetry.record import answer_of, truth_of
from tierline.core.telemetry.report import LatencyReport
from tierline.core.types import Answer
from tierline.models.captures import find_captures
from tierline.models.cascade import Stage
from tierline.models.judged import Judged
from tierline.models.own import Meaning, import_cascade, import_model, preprocess_of

NUM_IMAGES = 10
MEANING = Meaning("detection", ["a", "b", "c"])


def first_round(bundle: Bundle, images: Path, run_dir: Path) -> list[dict[str, Any]]:
    """The first answer to every image, in the folder's order."""
    spec, files = trial_spec(bundle, images, run_dir, in_flight=3)
    answers, (view,) = Answers(files), bundle.manifest.views
    with Fleet(spec, run_dir) as fleet:
        until = time.monotonic() + 40
        while len(found := answers.samples(view, NUM_IMAGES, 1)) < NUM_IMAGES:
            assert time.monotonic() < until, answers.records
            fleet.check()
            time.sleep(0.05)
            answers.poll()
    return [dict(found[index]) for index in range(NUM_IMAGES)]


def assert_same(answer: Answer, expected: Answer) -> None:
    assert answer.boxes is not None and expected.boxes is not None and len(answer.boxes) == len(expected.boxes) > 0
    for box, other in zip(answer.boxes, expected.boxes, strict=True):
        assert (box.index, box.label) == (other.index, other.label)
        assert np.abs(np.subtract(box.corners, other.corners)).max() < 1e-5
        assert abs(box.confidence - other.confidence) < 1e-5


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", NUM_IMAGES)
    (tmp_path / "images" / "003.txt").write_text("2 0.5 0.5 0.25 0.5\n")
    return tmp_path / "images"


def test_a_cut_detector_answers_with_the_uncut_ones_boxes(images: Path, tmp_path: Path) -> None:
    network = linear_network((7, 60))
    captures, preprocess = find_captures(images, "detection", (SIDE, SIDE)), preprocess_of(network, None, (0,), (1,))
    _, uncut = import_model(network, captures, tmp_path / "whole", name="own", preprocess=preprocess, meaning=MEANING)
    bundle, _ = import_model(
        network,
        captures,
        tmp_path / "cut",
        name="own",
        preprocess=preprocess,
        meaning=MEANING,
        cuts=[("conv",), ("relu",)],
    )
    records = first_round(bundle, images, tmp_path / "run")
    for record, expected in zip(records, uncut.answers["device"], strict=True):
        assert record["exit"] == "cloud" and [hop["tier"] for hop in record["hops"]] == ["device", "edge", "cloud"]
        assert_same(answer_of(record), expected)
    assert uncut.truths is not None and [truth_of(record) for record in records] == uncut.truths
    quality = LatencyReport.of(records).to_dict()["quality"]
    assert quality["measure"] == "f1_iou50" and quality["overall"] == quality["cloud"]
    assert quality["overall"] == pytest.approx(uncut.quality()["device"], abs=1e-4)


def test_in_a_cascade_hard_images_climb_as_jpeg(images: Path, tmp_path: Path) -> None:
    stages = [
        Stage(network, preprocess_of(network, None, (0.5,), (1,)))
        for network in (linear_network((7, 30), "small", seed=1), linear_network((7, 60), "large", seed=2))
    ]
    judged: Judged
    bundle, judged = import_cascade(
        stages,
        find_captures(images, "detection", (SIDE, SIDE)),
        tmp_path / "cascade",
        name="own",
        meaning=MEANING,
        goal="target_exit_share=0.5",
    )
    assert bundle.manifest.calibration is not None
    threshold = bundle.manifest.calibration.thresholds["device"]
    records = first_round(bundle, images, tmp_path / "run")
    exits = ["device" if score < threshold else "cloud" for score in judged.scores["device"]]
    assert [record["exit"] for record in records] == exits and exits.count("device") == NUM_IMAGES // 2
    for index, record in enumerate(records):
        assert_same(answer_of(record), judged.answers[record["exit"]][index])
        assert len(record["hops"]) == (1 if record["exit"] == "device" else 2)
