"""Detection and regression: what outputs mean, how answers are judged, scored, written down and read again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tierline.core import catalog
from tierline.core.boxes import iou, kept, num_matches
from tierline.core.errors import ConfigError, DataError, ShapeMismatch
from tierline.core.protocols import Outcome
from tierline.core.sink.stdout import Stdout
from tierline.core.source.folder import Folder
from tierline.core.task.detection import Detection
from tierline.core.task.regression import Regression
from tierline.core.telemetry.ledger import SPANS, Hop
from tierline.core.telemetry.record import answer_of, outcome_line, outcome_record, truth_of
from tierline.core.telemetry.report import LatencyReport
from tierline.core.types import Answer, Box, NodeId, SampleId

DETECTION = Detection(labels=["car", "dog"])
VALUES = Regression(labels=["x", "y"])
LEFT, RIGHT = (0.0, 0.0, 0.4, 0.4), (0.5, 0.5, 0.9, 0.9)


def row(corners: tuple[float, ...], score: float, index: int) -> list[float]:
    return [*corners, score, index]


def logits(*images: list[list[float]]) -> dict[str, np.ndarray]:
    table = np.zeros((len(images), 5, 6), np.float32)
    for image, rows in zip(table, images, strict=True):
        image[: len(rows)] = np.array(rows).reshape(-1, 6)
    return {"logits": table}


def box(corners: tuple[float, float, float, float], index: int = 0, confidence: float = 1.0) -> Box:
    return Box(index, "", confidence, corners)


def outcome(answer: Answer, truth: Any = None, exit: str = "cloud") -> Outcome:
    ledger = (Hop("d", "device", 5_000_000, (0,) * len(SPANS)),)
    return Outcome(SampleId(NodeId("d"), 1, 2), "cam", answer, exit, False, "", 1, 1, ledger, truth, "run")


def test_overlap_by_hand() -> None:
    a = np.array([[0, 0, 2, 2], [1, 1, 1, 1]], np.float32)
    b = np.array([[1, 0, 3, 2], [5, 5, 6, 6], [2, 2, 0, 0]], np.float32)
    assert iou(a, b).tolist() == [[pytest.approx(1 / 3), 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_doubles_of_a_class_go_and_others_stay() -> None:
    near = (0.02, 0.0, 0.42, 0.4)
    rows = np.array([row(near, 0.6, 0), row(LEFT, 0.9, 0), row(near, 0.7, 1), row(RIGHT, 0.3, 0), row(LEFT, 0.1, 1)])
    found = kept(rows.astype(np.float32), 0.2)
    assert found[:, 4:].tolist() == [[pytest.approx(0.9), 0], [pytest.approx(0.7), 1], [pytest.approx(0.3), 0]]
    broken = np.array([row((0, 0, np.nan, 1), 0.9, 0), row(LEFT, np.inf, 0), row(LEFT, 0.5, 0)], np.float32)
    assert kept(broken, 0.2)[:, 4].tolist() == [0.5]


def test_decodes_the_objects_of_each_image() -> None:
    first, second = DETECTION.decode(logits([row(LEFT, 0.5, 1), row(RIGHT, 0.75, 0)], []))
    assert (first.index, first.label, first.confidence) == (0, "car", 0.75)
    assert first.boxes is not None and [b.label for b in first.boxes] == ["car", "dog"]
    assert first.boxes[1].corners == pytest.approx(LEFT)
    assert second == Answer(-1, "", 0.0, boxes=())
    with pytest.raises(ShapeMismatch, match="class 2, the Bundle names 2 labels"):
        DETECTION.decode(logits([row(LEFT, 0.5, 2)]))
    with pytest.raises(ShapeMismatch, match=r"candidates, 6\), got float32\[1, 3\]"):
        DETECTION.decode({"logits": np.zeros((1, 3), np.float32)})
    with pytest.raises(ShapeMismatch, match="no output named"):
        DETECTION.decode({})


def test_each_object_is_found_once_by_the_surest_box_of_its_class() -> None:
    truth = [box(LEFT), box(RIGHT, 1)]
    assert num_matches([box(LEFT), box(LEFT, 0, 0.5)], truth) == 1
    assert num_matches([box(LEFT), box(RIGHT)], truth) == 1
    assert num_matches([box(RIGHT, 1), box(LEFT)], truth) == 2
    assert num_matches([box((0.0, 0.0, 0.4, 0.19))], truth) == 0
    assert num_matches([], truth) == num_matches(truth, []) == 0


def test_quality_of_detection_is_f1_over_all_objects() -> None:
    right, none = Answer(0, "", 1.0, boxes=(box(LEFT),)), Answer(-1, "", 0.0, boxes=())
    assert DETECTION.quality([right, none], [(box(LEFT),), ()]) == 1.0
    assert DETECTION.quality([right, none], [(box(LEFT), box(RIGHT, 1)), (box(LEFT),)]) == pytest.approx(2 / 4)
    assert DETECTION.quality([], []) == 1.0
    assert DETECTION.agreement(right, none) == 0.0 and DETECTION.agreement(none, none) == 1.0
    with pytest.raises(DataError, match="not 3"):
        DETECTION.quality([right], [3])


def test_regression_by_hand() -> None:
    first, second = VALUES.decode({"logits": np.array([[1, -2, 0, 0], [3, 4, np.log(9), np.log(9)]], np.float32)})
    assert first.values == (1.0, -2.0) and first.label == "x 1, y -2" and first.confidence == 0.5
    assert second.confidence == pytest.approx(0.25)
    assert VALUES.decode({"logits": np.ones((1, 2), np.float32)})[0].confidence == 0.0
    assert VALUES.quality([first, second], [(1.0, -2.0), (3.0, 4.0)]) == 1.0
    assert VALUES.quality([first, first], [(1.0, -2.0), (3.0, 4.0)]) == 0.0
    assert VALUES.quality([first, second], [(2.0, -2.0), (4.0, 4.0)]) == pytest.approx((0.0 + 1.0) / 2)
    assert VALUES.agreement(first, first) == 1.0
    assert VALUES.agreement(first, second) == pytest.approx((1 - 2 / 4) / 2)
    with pytest.raises(ShapeMismatch, match="3 values, the Bundle names 2"):
        VALUES.decode({"logits": np.zeros((1, 3), np.float32)})
    with pytest.raises(DataError, match="2 numbers"):
        VALUES.quality([first], [(1.0,)])


def test_an_unclear_box_scores_high() -> None:
    rule = catalog.make("exit", "box_margin")
    images = [[], [row(LEFT, 1.0, 0)], [row(LEFT, 1.0, 0), row(RIGHT, 0.5, 1)], [row(LEFT, 0.9, 0), row(LEFT, 0.5, 0)]]
    score_B = rule.score(logits(*images))
    assert score_B.dtype == np.float32 and score_B.tolist() == pytest.approx([0.0, 0.0, 1.0, 0.2], abs=1e-6)
    assert rule.score(logits([row((0, 0, 1, np.nan), 0.0, 0)])).tolist() == [1.0]
    assert rule.score(logits()).shape == (0,)


def test_a_wide_variance_scores_high() -> None:
    rule = catalog.make("exit", "spread")
    x_BK = np.array([[5, np.log(1)], [5, np.log(9)], [5, -np.inf], [np.nan, 0], [0, np.inf], [0, 300]], np.float32)
    assert rule.score({"logits": x_BK}).tolist() == pytest.approx([0.5, 0.75, 0.0, 1.0, 1.0, 1.0])
    with pytest.raises(ShapeMismatch, match="3 columns"):
        rule.score({"logits": np.zeros((1, 3), np.float32)})


def test_records_hold_boxes_and_numbers_and_come_back(capsys: pytest.CaptureFixture[str]) -> None:
    found = Answer(0, "car", 0.9, boxes=(Box(0, "car", 0.9, LEFT), Box(1, "dog", 0.5, RIGHT)))
    for answer, truth in (
        (found, (Box(0, "", 1.0, LEFT),)),
        (Answer(-1, "", 0.0, boxes=()), ()),
        (Answer(0, "3.5", 0.5, values=(3.5,)), (3.0,)),
        (Answer(1, "dog", 0.5), "dog"),
    ):
        told = outcome(answer, truth)
        record = json.loads(outcome_line(told))
        assert (answer_of(record), truth_of(record)) == (answer, truth)
        asyncio.run(Stdout().put(told))
    lines = [line.split(": ", 1)[1].split(" at ")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["car 0.90, dog 0.50", "nothing", "3.5", "dog 0.50"]
    assert "boxes" not in outcome_record(outcome(Answer(1, "dog", 0.5)))


def test_a_report_judges_each_kind_by_its_own_measure() -> None:
    right, wrong = Answer(0, "", 0.9, boxes=(box(LEFT),)), Answer(0, "", 0.9, boxes=(box(RIGHT),))
    told = [outcome(right, (box(LEFT),), "device"), outcome(wrong, (box(LEFT),))]
    report = LatencyReport.of(map(outcome_record, told)).to_dict()
    assert report["quality"] == {"measure": "f1_iou50", "overall": 0.5, "device": 1.0, "cloud": 0.0}
    assert "accuracy" not in report
    assert "quality" not in LatencyReport.of([outcome_record(outcome(right, 3))]).to_dict()
    numbers = [outcome(Answer(0, "", 0.0, values=(float(x),)), (float(x),)) for x in range(3)]
    assert LatencyReport.of(map(outcome_record, numbers)).to_dict()["quality"]["overall"] == 1.0


def truths(folder: Path, kind: str) -> list[Any]:
    async def go() -> list[Any]:
        source = Folder(location=str(folder), view="cam", view_index=0, truth=kind)
        await source.open()
        found = []
        while (capture := await source.capture()) is not None:
            found.append(capture.truth)
        return found

    return asyncio.run(go())


def test_folders_tell_objects_numbers_and_labels(tmp_path: Path) -> None:
    for name in ("images/a.png", "images/b.png", "c.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "b.txt").write_text("1 0.5 0.25 0.5 0.5\n\n0 0.5 0.5 1 1\n")
    (tmp_path / "c.txt").write_text("1 0.5 0.5 0.2 0.2")
    assert [len(x) for x in truths(tmp_path, "boxes")] == [1, 0, 2]
    assert truths(tmp_path, "boxes")[2][0] == Box(1, "", 1.0, (0.25, 0.0, 0.75, 0.5))
    assert truths(tmp_path, "label") == [None, "images", "images"]
    assert truths(tmp_path, "none") == [None] * 3
    (tmp_path / "values.csv").write_text("file,speed\nimages/b.png,2.5\nc.png,-1\n")
    assert truths(tmp_path, "values") == [(-1.0,), None, (2.5,)]
    (tmp_path / "values.csv").write_text("file,speed\nc.png,fast\n")
    with pytest.raises(DataError, match=r"values.csv:2: not a file and numbers"):
        truths(tmp_path, "values")
    (tmp_path / "c.txt").write_text("1 0.5")
    with pytest.raises(DataError, match=r"c.txt:1: not `class x y w h`"):
        truths(tmp_path, "boxes")
    with pytest.raises(ConfigError, match='nearest is "boxes"'):
        truths(tmp_path, "boxe")
