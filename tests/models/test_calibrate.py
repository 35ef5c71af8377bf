from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tierline.core.bundle import Bundle, Preprocess
from tierline.core.errors import ConfigError
from tierline.models.calibrate import (
    MAX_POINTS,
    calibrate,
    ddnn_bytes,
    feature_bytes,
    parse_goal,
    payload_bytes,
)
from tierline.models.ddnn import DDNN, DDNNConfig
from tierline.models.evaluate import ExitOutputs, route
from tierline.models.export import make_bundle, with_calibration

EXITS = ("local", "edge", "cloud")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(0)
    model = DDNN(DDNNConfig(2, 3, (3, 8, 6), device_filters=4, edge_filters=2, cloud_filters=2)).eval()
    preprocess = Preprocess(size=(8, 6), channels=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    folder = tmp_path_factory.mktemp("bundle")
    return make_bundle(model, folder, name="t", labels=["a", "b", "c"], preprocess=preprocess)


@pytest.fixture(scope="module")
def outputs() -> ExitOutputs:
    """Exits that know more the higher they are, and are surer where they are right."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400)
    logits, scores = {}, {}
    for exit_name, quality in zip(EXITS, (1.0, 2.0, 4.0), strict=True):
        logits[exit_name] = (np.eye(3)[labels] * quality + rng.standard_normal((400, 3))).astype(np.float32)
        ordered = np.sort(logits[exit_name], axis=1)
        scores[exit_name] = np.exp(ordered[:, 1] - ordered[:, 2]).astype(np.float32)
    devices = np.stack([logits["local"]] * 2)
    return ExitOutputs(["view-0", "view-1"], devices, logits, scores, labels, np.stack([labels, np.full(400, -1)]))


def test_exit_share_is_monotone_in_t(outputs: ExitOutputs) -> None:
    grid = np.linspace(0, 1, 21)
    for edge in (0.0, 0.5, 1.0):
        shares = [route(outputs, {"local": t, "edge": edge}).exit_share["local"] for t in grid]
        assert shares == sorted(shares)
        assert (shares[0], shares[-1]) == (0.0, 1.0)
    edges = [route(outputs, {"local": 0.4, "edge": t}).exit_share["edge"] for t in grid]
    assert edges == sorted(edges) and edges[0] == 0.0 and edges[-1] > 0.0


def test_ends_of_the_range_are_the_exits_alone(outputs: ExitOutputs) -> None:
    alone = outputs.accuracy()
    for thresholds, name in (((1.0, 0.0), "local"), ((0.0, 1.0), "edge"), ((0.0, 0.0), "cloud")):
        routed = route(outputs, dict(zip(EXITS, thresholds, strict=False)))
        assert routed.exit_share[name] == 1.0
        assert routed.accuracy == alone[name]
    assert alone["device:view-1"] == 0.0  # an absent view is wrong


def test_route_equals_walking_sample_by_sample(outputs: ExitOutputs) -> None:
    thresholds = {"local": 0.35, "edge": 0.6}
    right, left = 0, dict.fromkeys(EXITS, 0)
    for row, label in enumerate(outputs.labels):
        name = next((n for n in EXITS[:2] if outputs.scores[n][row] < thresholds[n]), "cloud")
        left[name] += 1
        right += int(outputs.logits[name][row].argmax() == label)
    routed = route(outputs, thresholds)
    assert routed.accuracy == right / 400
    assert routed.exit_share == {name: num / 400 for name, num in left.items()}


def test_goals_choose_as_they_say(bundle: Bundle, outputs: ExitOutputs) -> None:
    grid = [step / 20 for step in range(21)]
    everything = [route(outputs, {"local": a, "edge": b}) for a, b in itertools.product(grid, grid)]
    best = calibrate(bundle, outputs, "best_accuracy")
    assert route(outputs, best.thresholds).accuracy == max(r.accuracy for r in everything)
    cheap = calibrate(bundle, outputs, "target_accuracy=0.8")
    chosen = route(outputs, cheap.thresholds)
    assert chosen.accuracy >= 0.8
    assert chosen.exit_share["local"] == max(r.exit_share["local"] for r in everything if r.accuracy >= 0.8)
    half = calibrate(bundle, outputs, "target_exit_share=0.5")
    assert route(outputs, half.thresholds).exit_share["local"] >= 0.5
    lower = {**half.thresholds, "local": half.thresholds["local"] - 0.05}
    assert route(outputs, lower).exit_share["local"] < 0.5
    assert half.chosen_by == "target_exit_share=0.5"


def test_unreachable_accuracy_warns_and_takes_the_best(bundle: Bundle, outputs: ExitOutputs) -> None:
    with pytest.warns(UserWarning, match="no thresholds reach"):
        calibration = calibrate(bundle, outputs, "target_accuracy=1.0")
    assert calibration.thresholds == calibrate(bundle, outputs, "best_accuracy").thresholds


@pytest.mark.parametrize("goal", ["best", "target_accuracy", "target_accuracy=2", "target_exit_share=x", ""])
def test_unreadable_goals_are_refused(goal: str) -> None:
    with pytest.raises(ConfigError, match="threshold goal"):
        parse_goal(goal)


def test_curve_is_bounded_whole_and_survives_the_manifest(bundle: Bundle, outputs: ExitOutputs) -> None:
    calibration = calibrate(bundle, outputs, "target_exit_share=0.3")
    vectors = [tuple(point.thresholds.values()) for point in calibration.curve]
    assert len(vectors) == len(set(vectors)) <= MAX_POINTS
    assert {(step / 20, step / 20) for step in range(21)} <= set(vectors)
    assert tuple(calibration.thresholds.values()) in vectors
    for point in calibration.curve:
        routed = route(outputs, point.thresholds)
        assert point.accuracy == pytest.approx(routed.accuracy, abs=1e-6)
        assert point.exit_share == pytest.approx(routed.exit_share, abs=1e-6)
    written = with_calibration(bundle, calibration, {"made": "here"})
    assert written.manifest.origin == {"made": "here"} and written.manifest.files == bundle.manifest.files
    assert Bundle.open(written.folder).manifest.calibration == calibration


def test_bytes_follow_the_formula(bundle: Bundle) -> None:
    # 4 filters of 4x3 bits from 8x6 pixels: 6 bytes; the edge's 2 filters of 4x3 bits: 3 bytes.
    assert feature_bytes(bundle.manifest, 0) == 6.0
    assert feature_bytes(bundle.manifest, 1) == 3.0
    links = payload_bytes(bundle.manifest, {"local": 0.6, "edge": 0.3, "cloud": 0.1})
    assert links == pytest.approx({"device": 4 * 3 + 0.4 * 6, "edge": 0.1 * 3})


def test_formulas_give_the_published_bytes() -> None:
    # 3 classes, 4 filters of 256 bits: the paper's 140 bytes at no local exit, 62 at 60.82 %.
    assert ddnn_bytes(3, 0.0, 128) == 140
    assert round(ddnn_bytes(3, 0.6082, 128)) == 62
    assert ddnn_bytes(3, 1.0, 128) == 12
