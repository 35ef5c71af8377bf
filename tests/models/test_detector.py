"""Detectors from ONNX: candidates picked in the graph are those that NumPy picks, cut or not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_detectors import SIDE, linear_network, write_images

from tierline.core import catalog
from tierline.core.boxes import kept
from tierline.core.bundle import Bundle
from tierline.core.errors import BundleError, ConfigError, MissingDependency
from tierline.core.flow.levels import LOGITS, engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.preprocess import Preprocessor
from tierline.core.types import Array
from tierline.models.captures import find_captures
from tierline.models.cut import cut
from tierline.models.detector import MAX_CANDIDATES, BoxForm, parse_form, with_candidates
from tierline.models.graph import Network
from tierline.models.own import Meaning, import_model, preprocess_of

NUM_CLASSES = 3


def run(model: bytes, x_B: Array) -> Array:
    engine = catalog.make("engine", "onnxruntime", model=model, name="test", threads=1)
    found: Array = next(iter(engine.run({next(iter(engine.spec.inputs)): x_B}).values()))
    return found


def images(num: int) -> Array:
    return np.random.default_rng(1).random((num, 3, SIDE, SIDE)).astype(np.float32)


def picked(rows_BNC: Array, form: BoxForm, has_object: bool) -> Array:
    """The candidates of (B, N, 4 + K) or (B, N, 5 + K), the best first."""
    a, b, c, d = np.moveaxis(rows_BNC[..., :4], -1, 0)
    corners = [a, b, c, d] if form.corners == "xyxy" else [a - c / 2, b - d / 2, a + c / 2, b + d / 2]
    score = rows_BNC[..., 5:] * rows_BNC[..., 4:5] if has_object else rows_BNC[..., 4:]
    unit = SIDE if form.unit == "pixels" else 1
    table = np.stack([*(x / unit for x in corners), score.max(2), score.argmax(2)], axis=2)
    order = np.argsort(-table[..., 4], axis=1, kind="stable")[:, :MAX_CANDIDATES]
    return np.take_along_axis(table, order[..., None], axis=1)


@pytest.mark.parametrize(
    ("shape", "form"),
    [
        ((4 + NUM_CLASSES, 144), "cxcywh"),
        ((144, 4 + NUM_CLASSES), "xyxy:shares"),
        ((20, 5 + NUM_CLASSES), "cxcywh:shares"),
        ((5 + NUM_CLASSES, 20), "xyxy"),
    ],
)
def test_candidates_are_the_best_places(shape: tuple[int, int], form: str) -> None:
    network = linear_network(shape)
    raw = run(network.model.SerializeToString(), images(3))
    rows = raw.transpose(0, 2, 1) if shape[0] < 10 else raw
    expected = picked(rows, parse_form(form), has_object=5 + NUM_CLASSES in shape)
    found = with_candidates(network, NUM_CLASSES, parse_form(form))
    assert found.tensors[found.output].shape == (MAX_CANDIDATES, 6)
    rows, num = run(found.model.SerializeToString(), images(3)), expected.shape[1]
    assert np.abs(rows[:, :num] - expected).max() < 1e-5 and not rows[:, num:].any()
    assert expected[:, 0, 4].min() > 0.25 and len(set(expected[..., 5].ravel())) == NUM_CLASSES


@pytest.mark.parametrize("batch", ["batch", 1])
def test_sections_give_the_uncut_candidates(batch: Any) -> None:
    network = with_candidates(linear_network((7, 60), batch=batch), NUM_CLASSES)
    whole = run(network.model.SerializeToString(), images(4))
    points = [point for point in network.cut_points() if point.share_below < 1.0]
    assert len(points) > 5
    for point in points[1:]:
        found = images(4)
        for piece in cut(network, [point.tensors]):
            found = run(piece.model, found)
        assert np.abs(found - whole).max() < 1e-5


def test_outputs_of_no_detector_are_refused() -> None:
    with pytest.raises(BundleError, match=r"gives \(batch, 7, N\), \(batch, N, 7\) or, .* \(batch, N, 8\)"):
        with_candidates(linear_network((9, 60)), NUM_CLASSES)
    with pytest.raises(BundleError, match=r"its output is \(batch, 7\)"):
        with_candidates(linear_network((7,)), NUM_CLASSES)
    old = linear_network((7, 60))
    old.model.opset_import[0].version = 12
    with pytest.raises(BundleError, match="opset 12"):
        with_candidates(old, NUM_CLASSES)
    with pytest.raises(ConfigError, match="write cxcywh or xyxy"):
        parse_form("yxyx")


def import_detector(network: Network, folder: Path) -> tuple[Any, Any]:
    return import_model(
        network,
        find_captures(folder / "images", "detection", (SIDE, SIDE)),
        folder / "bundle",
        name="own",
        preprocess=preprocess_of(network, None, (0.5,), (0.5,)),
        meaning=Meaning("detection", ["a", "b", "c"]),
        cuts=[("relu",)],
        codec="affine",
    )


def test_a_bundle_answers_with_the_uncut_networks_boxes(tmp_path: Path) -> None:
    pixels, network = write_images(tmp_path / "images", 6), linear_network((7, 60))
    bundle, judged = import_detector(network, tmp_path)
    assert judged.truths is None and bundle.manifest.origin["measure"] == "agreement with the last exit"
    assert (
        bundle.manifest.calibration.accuracy == {"cloud": 1.0} and bundle.manifest.levels[-1].exit.rule == "box_margin"
    )
    x_B = Preprocessor(bundle.manifest.preprocess).many(pixels)
    whole = with_candidates(network, NUM_CLASSES)
    expected = [kept(rows, 0.25) for rows in run(whole.model.SerializeToString(), x_B)]
    oracle = Oracle(Bundle.open(tmp_path / "bundle"), engine_maker("onnxruntime"))
    found = oracle.levels.task.decode({LOGITS: oracle.exits(x_B[np.newaxis]).outputs["cloud"][LOGITS]})
    oracle.levels.close()
    for answer, rows in zip(found, expected, strict=True):
        assert answer.boxes is not None and len(answer.boxes) == len(rows) > 0
        assert [box.label for box in answer.boxes] == ["abc"[int(row[5])] for row in rows]
        assert np.abs(np.array([box.corners for box in answer.boxes]) - rows[:, :4]).max() < 1e-5
    device, link = bundle.manifest.levels[0], judged.sent_bytes["device"]
    assert device.feature_codec == "affine" and link < 4 * SIDE * SIDE * 4 / 3


def test_annotated_images_are_judged(tmp_path: Path) -> None:
    pixels, network = write_images(tmp_path / "images", 4), linear_network((7, 60))
    x_B = Preprocessor(preprocess_of(network, None, (0.5,), (0.5,))).many(pixels)
    for index, rows in enumerate(run(with_candidates(network, NUM_CLASSES).model.SerializeToString(), x_B)):
        lines = [f"{int(i)} {(l + r) / 2} {(t + b) / 2} {r - l} {b - t}\n" for l, t, r, b, _, i in kept(rows, 0.25)]
        (tmp_path / "images" / f"{index:03}.txt").write_text("".join(lines))
    _, judged = import_detector(network, tmp_path)
    (quality,) = judged.quality().values()
    assert judged.truths is not None and quality > 0.95  # of its own boxes; the codec moves some
    (tmp_path / "images" / "000.txt").write_text("0 0.5 0.5 0.001 0.001\n")
    _, less = import_detector(network, tmp_path)
    assert less.quality()["cloud"] < quality - 0.1


FFMPEG = """#!{python} -S
import os, re, sys
width, height = map(int, re.search(r"scale=(\\d+):(\\d+)", " ".join(sys.argv)).groups())
for value in range(5):
    os.write(1, bytes([50 * value]) * (width * height * 3))
"""


def test_frames_of_a_video_are_judged_as_nodes_will_see_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "film.mp4").write_bytes(b"")
    program = tmp_path / "ffmpeg"
    program.write_text(FFMPEG.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    captures = find_captures(tmp_path / "film.mp4", "detection", (SIDE, SIDE), most=4)
    assert [int(capture.image.mean()) for capture in captures] == [0, 50, 100, 150]
    network = linear_network((7, 60))
    _, judged = import_model(
        network,
        captures,
        tmp_path / "bundle",
        name="own",
        preprocess=preprocess_of(network, None, (0.0,), (1.0,)),
        meaning=Meaning("detection", ["a", "b", "c"]),
    )
    assert judged.num_samples == 4 and judged.truths is None


def test_a_video_needs_ffmpeg_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = tmp_path / "film.mjpeg"
    film.write_bytes(b"")
    captures = find_captures(film, "detection", (SIDE, SIDE))
    assert captures.uri == f"video:{film}?width={SIDE}&height={SIDE}" and captures.labels == []
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependency, match="ffmpeg is not installed"):
        list(captures)
