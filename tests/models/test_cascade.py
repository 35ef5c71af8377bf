"""Cascades: each level answers as its network alone, the image climbs unchanged, thresholds follow agreement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from own_detectors import SIDE, linear, linear_network, write_images

from tierline.cli.main import main
from tierline.core import catalog
from tierline.core.bundle import Bundle, Preprocess
from tierline.core.errors import BundleError, ConfigError
from tierline.core.flow.levels import FEATURE, LOGITS, engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.preprocess import Preprocessor
from tierline.core.types import Answer, Tier
from tierline.models.captures import find_captures
from tierline.models.cascade import Stage
from tierline.models.graph import Network
from tierline.models.judged import Judged, calibration_of
from tierline.models.own import import_cascade, preprocess_of


def stage(network: Network, mean: float, std: float) -> Stage:
    return Stage(network, preprocess_of(network, None, (mean,), (std,)))


def alone(network: Network, preprocess: Preprocess, pixels: Any) -> Any:
    engine = catalog.make("engine", "onnxruntime", model=network.model.SerializeToString(), name="alone", threads=1)
    return engine.run({network.input: Preprocessor(preprocess).many(pixels)})[network.output]


def test_each_level_answers_as_its_network_alone(tmp_path: Path) -> None:
    pixels = write_images(tmp_path / "images", 12, classes=4)
    stages = [
        stage(linear_network((4,), "small", seed=1), 0.4, 0.2),
        stage(linear_network((4,), "middle", seed=2), 0.5, 0.3),
        stage(linear_network((4,), "large", seed=3), 0.1, 0.7),
    ]
    captures = find_captures(tmp_path / "images", "classification", (SIDE, SIDE))
    bundle, _ = import_cascade(stages, captures, tmp_path / "bundle", name="own", codec="raw")
    assert [level.tier for level in bundle.manifest.levels] == [Tier.DEVICE, Tier.EDGE, Tier.CLOUD]
    assert bundle.manifest.exits() == ["device", "edge", "cloud"]
    for kind in ("onnxruntime", "reference"):
        oracle = Oracle(Bundle.open(tmp_path / "bundle"), engine_maker(kind))
        x_B = Preprocessor(bundle.manifest.preprocess).many(pixels)
        found = oracle.exits(x_B[np.newaxis])
        climbed = oracle.levels[0].run("view-0", x_B)[FEATURE]
        assert climbed.dtype == np.uint8 and np.array_equal(climbed.transpose(0, 2, 3, 1), pixels)
        for name, one in zip(bundle.manifest.exits(), stages, strict=True):
            expected = alone(one.network, one.preprocess, pixels)
            assert np.abs(found.outputs[name][LOGITS] - expected).max() < 1e-3 * np.abs(expected).max()
        oracle.levels.close()


@pytest.mark.parametrize("side", [4, 5])
def test_a_smaller_network_sees_a_smaller_picture(tmp_path: Path, side: int) -> None:
    """Means of 2x2 pixels at half the side; bilinear between."""
    pixels = write_images(tmp_path / "images", 6, classes=2)
    small = stage(linear_network((2,), "small", side=side), 0.0, 1.0)
    captures = find_captures(tmp_path / "images", "classification", (SIDE, SIDE))
    stages = [small, stage(linear_network((2,), "large", seed=1), 0.0, 1.0)]
    bundle, _ = import_cascade(stages, captures, tmp_path / "bundle", name="own", codec="raw")
    assert bundle.manifest.preprocess.size == (SIDE, SIDE)
    oracle = Oracle(Bundle.open(tmp_path / "bundle"), engine_maker("onnxruntime"))
    found = oracle.exits(Preprocessor(bundle.manifest.preprocess).many(pixels)[np.newaxis]).outputs["device"][LOGITS]
    oracle.levels.close()
    if side == 4:
        shrunk = pixels.reshape(6, 4, 2, 4, 2, 3).mean((2, 4))
    else:
        at = (np.arange(side) + 0.5) * SIDE / side - 0.5
        low = np.floor(at).astype(int)
        part = (at - low)[:, None]
        rows = pixels[:, low] * (1 - part[:, None]) + pixels[:, np.minimum(low + 1, SIDE - 1)] * part[:, None]
        shrunk = rows[:, :, low] * (1 - part) + rows[:, :, np.minimum(low + 1, SIDE - 1)] * part
    engine = catalog.make("engine", "onnxruntime", model=small.network.model.SerializeToString(), name="x", threads=1)
    expected = engine.run({"image": (shrunk.transpose(0, 3, 1, 2) / 255).astype(np.float32)})["out"]
    assert np.abs(found - expected).max() < 1e-4 * max(1.0, np.abs(expected).max())


class Same:
    """A task whose answers agree where their indices do."""

    measure = "accuracy"

    def decode(self, outputs: Any) -> list[Answer]:
        raise NotImplementedError

    def quality(self, answers: Any, truths: Any) -> float:
        return float(np.mean([answer.index == truth for answer, truth in zip(answers, truths, strict=True)]))

    def agreement(self, a: Answer, b: Answer) -> float:
        return float(a.index == b.index)


def judged(truths: list[Any] | None) -> Judged:
    """Twenty samples; the device differs from the cloud on the last five, of which its scores tell."""
    index = np.arange(20)
    below, above = [Answer(int(i >= 15), "", 0.5) for i in index], [Answer(0, "", 0.5)] * 20
    score = (index / 20).astype(np.float32)
    return Judged(
        Same(), {"device": below, "cloud": above}, {"device": score}, truths, {"device": 100.0}, {"device": "device"}
    )


def test_thresholds_by_agreement_with_the_root_need_no_truth() -> None:
    for goal, share in (("target_agreement=1", 0.75), ("target_agreement=0.9", 0.85), ("target_agreement=0.5", 1.0)):
        found = calibration_of(judged(None), goal)
        (point,) = [p for p in found.curve if p.thresholds == found.thresholds]
        assert found.chosen_by == goal and point.exit_share == {"device": share, "cloud": pytest.approx(1 - share)}
        assert point.bytes_per_sample == {"device": pytest.approx(100 * (1 - share))}
    assert found.accuracy == {"device": 0.75, "cloud": 1.0}


def test_thresholds_by_quality_and_by_share() -> None:
    truths = [0] * 15 + [1] * 5
    best = calibration_of(judged(truths), "best_accuracy")
    assert best.accuracy == {"device": 1.0, "cloud": 0.75} and best.thresholds == {"device": 1.0}
    half = calibration_of(judged(truths), "target_exit_share=0.5")
    assert half.thresholds["device"] == pytest.approx(0.475)
    with pytest.raises(ConfigError, match='nearest is "target_agreement"'):
        calibration_of(judged(truths), "agreement=1")


def test_networks_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, 4, classes=4)
    captures = find_captures(tmp_path, "classification", (SIDE, SIDE))
    four = stage(linear_network((4,), "four.onnx"), 0.0, 1.0)

    def attempt(*stages: Stage) -> None:
        import_cascade(stages, captures, tmp_path / "bundle", name="own")

    with pytest.raises(BundleError, match=r"five.onnx: its output is \(batch, 5\), there are 4 labels"):
        attempt(four, stage(linear_network((5,), "five.onnx"), 0.0, 1.0))
    with pytest.raises(ConfigError, match="a cascade of 1 networks"):
        attempt(four)
    with pytest.raises(ConfigError, match="a cascade of 4 networks"):
        attempt(four, four, four, four)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", 20)
    onnx.save(linear((1,)), "small.onnx")
    onnx.save(linear((2,)), "large.onnx")
    arguments = ["model", "cascade", "small.onnx", "large.onnx", "--data", "images", "--format", "json"]
    detection = ["--task", "detection", "--labels", "a,b,c"]
    assert main([*arguments, "--task", "regression", "--out", "made"]) == 4
    assert "small.onnx: gives [1] for an image, large.onnx gives [2]" in capsys.readouterr().err
    onnx.save(linear((7, 60), seed=1, batch=1), "small.onnx")
    onnx.save(linear((160, 7), seed=2), "large.onnx")
    assert main([*arguments, *detection, "--out", "made", "--goal", "target_exit_share=0.5"]) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert [row["tier"] for row in rows] == ["device", "cloud"] and rows[0]["gives"] == "logits 100x6, feature 3x8x8"
    assert rows[0]["mean_bytes"] == pytest.approx(rows[0]["coded_bytes"] / 2, abs=0.1) and rows[0]["coded_bytes"] > 500
    assert "agreement with the last exit on 20 images" in err and "device 50.0%, cloud 50.0%" in err
    manifest = Bundle.open(tmp_path / "made").manifest
    assert manifest.levels[0].feature_codec == "jpeg:quality=90" and manifest.task == "detection"
    for more, code, says in (
        (["--mean", "0", "--mean", "0", "--mean", "0"], 2, "--mean: given 3 times for 2 networks"),
        (["--goal", "nix"], 2, "no such goal"),
        (["--data", "nowhere"], 3, "nowhere: no such folder or file"),
    ):
        assert main([*arguments, *detection, "--out", "bad", *more]) == code, more
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1 and not Path("bad").exists()
