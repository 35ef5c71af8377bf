"""From the name of a data set to a calibrated Bundle: what `tierline train` and `tierline demo --retrain` call."""

from __future__ import annotations

import platform
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from tierline.core.bundle import Bundle
from tierline.models.calibrate import calibrate, parse_goal
from tierline.models.data.dataset import Dataset, Report
from tierline.models.data.load import load
from tierline.models.ddnn import DDNNConfig
from tierline.models.evaluate import disagreement, run_bundle
from tierline.models.export import make_bundle, with_calibration
from tierline.models.recipe import build
from tierline.models.train.ddnn import Progress, TrainConfig, predict, train
from tierline.models.views import prepare, preprocess_for

SMALL = 5000
"""Training splits below this many samples need more passes."""


def train_bundle(
    data: str | Path | Dataset,
    out: Path,
    *,
    devices: int | None = None,
    seed: int = 0,
    model: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    thresholds: str = "target_exit_share=0.4",
    progress: Progress | None = None,
    report: Report | None = None,
    command: str = "",
) -> tuple[Bundle, Dataset]:
    """Train on the training split, choose thresholds on the validation split, write the Bundle into `out`.

    `devices` defaults to the data set's own number of views, else 6. `model` and `training` override single values of
    DDNNConfig and TrainConfig. Returns the Bundle and the data set, whose test split is untouched. Raises DataError,
    ConfigError.
    """
    parse_goal(thresholds)  # a typing error should not cost a training run
    dataset = data if isinstance(data, Dataset) else load(data, seed, report)
    preprocess = preprocess_for(dataset, devices or dataset.num_views or 6)
    fitted, validation = prepare(dataset.train, preprocess), prepare(dataset.validation, preprocess)
    shape = fitted.images.shape
    measured = {"num_views": shape[0], "num_classes": len(dataset.labels), "view_shape": tuple(shape[2:])}
    config = build(DDNNConfig, "model", measured, {}, model or {})
    how = build(TrainConfig, "training", {"seed": seed}, training_defaults(shape[1]), training or {})
    trained = train(config, fitted, validation, how, progress)
    origin = {
        "command": command,
        "data": dataset.name,
        "seed": str(seed),
        "epochs": str(how.epochs),
        "device_dropout": str(how.device_dropout),
        "torch": str(torch.__version__),
        "onnx": onnx.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    plain = make_bundle(trained, out, name=dataset.name, labels=dataset.labels, preprocess=preprocess, origin=origin)
    outputs = run_bundle(plain, validation)
    differ = disagreement(outputs, predict(trained, validation))
    told = {"torch_disagreement": ", ".join(f"{name} {share:.4f}" for name, share in differ.items())}
    return with_calibration(plain, calibrate(plain, outputs, thresholds), told), dataset


def training_defaults(num_samples: int) -> dict[str, Any]:
    """Passes and batch by size of the training split: small sets need passes, large ones large batches."""
    return {"epochs": 40, "batch_size": 64} if num_samples < SMALL else {"epochs": 8, "batch_size": 128}


def write_samples(path: Path, dataset: Dataset, num: int | None = None) -> None:
    """Write the first `num` test samples (default: all) as the `.npz` that `dataset:` sources read.

    Keys: `images` uint8 (S, H, W[, C]) or, with own images per view, `views` (S, N, H, W, C) and `present` bool (S, N);
    `labels` int64 (S,).
    """
    test = dataset.test.take(np.arange(len(dataset.test) if num is None else min(num, len(dataset.test))))
    arrays = {"labels": test.labels, "views" if test.images.ndim == 5 else "images": test.images}
    if test.view_labels is not None:
        arrays["present"] = test.view_labels >= 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
