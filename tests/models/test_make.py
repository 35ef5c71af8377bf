from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tierline.core.bundle import Bundle
from tierline.core.errors import ConfigError
from tierline.models.data.dataset import Dataset, Split
from tierline.models.ddnn import DDNNConfig
from tierline.models.evaluate import route, run_bundle, without_device
from tierline.models.make import train_bundle
from tierline.models.recipe import build
from tierline.models.train.ddnn import EpochReport, TrainConfig
from tierline.models.views import prepare


def test_digits_from_name_to_bundle(tmp_path: Path) -> None:
    reports: list[EpochReport] = []
    bundle, data = train_bundle(
        "digits", tmp_path, devices=4, seed=1, training={"epochs": 6}, progress=reports.append, command="make"
    )
    assert [r.epoch for r in reports] == [1, 2, 3, 4, 5, 6] and reports[-1].epochs == 6
    assert reports[-1].loss < 0.8 * reports[0].loss
    manifest = Bundle.open(tmp_path).manifest
    assert manifest == bundle.manifest
    assert manifest.labels == [str(i) for i in range(10)] and manifest.preprocess.grid == (2, 2)
    assert manifest.origin["data"] == "digits" and manifest.origin["command"] == "make"
    assert manifest.origin["torch_disagreement"].startswith("local 0.0")
    calibration = manifest.calibration
    assert calibration is not None and calibration.num_samples == len(data.validation)
    assert calibration.chosen_by == "target_exit_share=0.4"
    test = prepare(data.test, manifest.preprocess)
    outputs = run_bundle(bundle, test)
    accuracy, routed = outputs.accuracy(), route(outputs, calibration.thresholds)
    assert accuracy["cloud"] > 0.75 and accuracy["local"] > 0.5  # chance is 0.1
    assert accuracy["cloud"] > max(accuracy[f"device:view-{i}"] for i in range(4))
    assert routed.accuracy > 0.65 and routed.exit_share["local"] > 0.2
    assert run_bundle(bundle, without_device(test, 2)).accuracy()["device:view-2"] == 0.0


def test_the_seed_alone_decides_the_bundle(tmp_path: Path) -> None:
    """Neither threads, which stay as they were, nor somebody who watches change a byte; another seed does."""

    def watch(report: EpochReport) -> None:
        assert report.epochs == 2

    before, made = torch.get_num_threads(), []
    try:
        for i, (seed, threads, progress) in enumerate(((5, 1, None), (5, 2, watch), (6, 1, None))):
            torch.set_num_threads(threads)
            options: dict[str, Any] = {"devices": 2, "training": {"epochs": 2}, "progress": progress}
            made.append(train_bundle("digits", tmp_path / str(i), seed=seed, **options)[0])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert made[0].digest == made[1].digest
    assert made[0].manifest.files != made[2].manifest.files


def test_training_leaves_nothing_in_the_temporary_folder(tmp_path: Path) -> None:
    # In a process of its own: torch makes its folder once, when the first optimizer is made.
    script = (
        "import os, torch; from tierline.models.train.torch_process import no_compiler_cache\n"
        "with no_compiler_cache(): torch.optim.Adam([torch.zeros(1, requires_grad=True)])\n"
        "assert 'TORCHINDUCTOR_CACHE_DIR' not in os.environ"
    )
    kept = {key: value for key, value in os.environ.items() if key != "TORCHINDUCTOR_CACHE_DIR"}
    subprocess.run([sys.executable, "-c", script], env={**kept, "TMPDIR": str(tmp_path)}, check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_one_view_without_edge(tmp_path: Path) -> None:
    bundle, data = train_bundle(
        "digits", tmp_path, devices=1, model={"edge_filters": 0}, training={"epochs": 3, "device_dropout": 0.0}
    )
    outputs = run_bundle(bundle, prepare(data.test, bundle.manifest.preprocess))
    assert bundle.manifest.exits() == ["local", "cloud"]
    assert outputs.accuracy()["cloud"] > 0.7
    np.testing.assert_array_equal(outputs.devices[0], outputs.logits["local"])


def test_cameras_that_do_not_always_see(tmp_path: Path) -> None:
    """Three cameras, two kinds of objects told apart by colour, each camera blind to some of them."""
    rng = np.random.default_rng(0)

    def split(num: int) -> Split:
        labels = rng.integers(0, 2, num)
        view_labels = np.where(rng.random((num, 3)) < 0.6, labels[:, None], -1)
        view_labels[:, 0] = np.where(view_labels.max(1) < 0, labels, view_labels[:, 0])
        images = rng.integers(0, 60, (num, 3, 8, 8, 3))
        images[..., 0] += np.where(view_labels == 1, 150, 0)[:, :, None, None]
        images[view_labels < 0] = 0
        return Split(images.astype(np.uint8), labels, view_labels)

    data = Dataset("cameras", ["a", "b"], split(200), split(80), split(80))
    bundle, _ = train_bundle(data, tmp_path, training={"epochs": 4, "batch_size": 32})
    assert bundle.manifest.preprocess.grid == (1, 1) and len(bundle.manifest.views) == 3
    outputs = run_bundle(bundle, prepare(data.test, bundle.manifest.preprocess))
    accuracy, seen = outputs.accuracy(), (outputs.view_labels >= 0).mean(1)
    assert accuracy["cloud"] > 0.95
    for i, share in enumerate(seen):
        assert accuracy[f"device:view-{i}"] <= share  # blind is wrong


def test_wrong_options_cost_no_training(tmp_path: Path) -> None:
    def never(report: EpochReport) -> None:
        raise AssertionError("trained")

    for options in (
        {"thresholds": "best"},
        {"model": {"device_filter": 3}},
        {"training": {"epochs": 0}},
        {"training": {"device_dropout": 1.0}},
        {"training": {"learning_rate": float("nan")}},
        {"devices": -1},
    ):
        with pytest.raises(ConfigError):
            train_bundle("digits", tmp_path, progress=never, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="batch_size"):
        TrainConfig(batch_size=1)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training.epochs", "abc", r"^training\.epochs = 'abc': expected a whole number$"),
        ("training.epochs", 2.5, r"^training\.epochs = 2\.5: expected a whole number$"),
        ("training.batch_size", True, "expected a whole number"),
        ("training.learning_rate", "fast", r"^training\.learning_rate = 'fast': expected a number$"),
        ("training.exit_weights", 2, "expected numbers by name of an exit"),
        ("training.epoch", 2, "training: no option 'epoch'; nearest is \"epochs\""),
        ("training.seed", 2, r"^training\.seed: follows from"),
        ("model.num_views", 3, r"^model\.num_views: follows from"),
        ("model.binary_exits", 1, r"^model\.binary_exits = 1: expected true or false$"),
        ("model.exit_rule", 4, r"^model\.exit_rule = 4: expected a word$"),
    ],
)
def test_overrides_are_checked_by_type(tmp_path: Path, key: str, value: object, message: str) -> None:
    section, _, name = key.partition(".")
    with pytest.raises(ConfigError, match=message):
        train_bundle("digits", tmp_path, **{section: {name: value}})  # type: ignore[arg-type]


def test_every_option_has_a_type_to_check() -> None:
    given = {"learning_rate": 1, "exit_weights": {"cloud": 2}}
    assert build(TrainConfig, "training", {"seed": 3}, {"epochs": 2}, given) == TrainConfig(
        2, 64, 1, 0.12, {"cloud": 2}, 3
    )
    fixed = {"num_views": 2, "num_classes": 2, "view_shape": (1, 8, 8)}
    for cls, known in ((TrainConfig, {}), (DDNNConfig, fixed)):
        made = build(cls, "any", known, {}, {})
        again = {f.name: getattr(made, f.name) for f in fields(made) if f.name not in known}
        assert build(cls, "any", known, {}, again) == made
