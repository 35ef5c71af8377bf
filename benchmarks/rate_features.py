"""Real features for `bench_rate.py`: trains two small networks once and keeps what crosses their cuts as `.npz`.

    python benchmarks/rate_features.py            # both, into TIERLINE_CACHE_DIR or ~/.cache/tierline

- `ddnn`: a DDNN in full precision (device and edge features are ReLU maps, not +-1) on MNIST, 6 devices.
- `cnn`: a ReLU network with batch normalisation and a residual block on CIFAR-10. Cuts, each after a ReLU:
  `pool1` 32x16x16 and `pool2` 64x8x8 (after max-pooling), `relu3` and `relu4` 128x8x8 (`relu4` after the residual sum).

Features are those of test images, from networks that trained on other images. Seed 0 everywhere; accuracy is printed
and stored beside the features. One thread; the CNN takes some minutes, the DDNN one.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tierline.core.bundle import MANIFEST, Bundle
from tierline.kernels.build import cache_dir
from tierline.models.data.dataset import Dataset
from tierline.models.data.load import load
from tierline.models.evaluate import run_bundle
from tierline.models.make import train_bundle
from tierline.models.views import prepare

SEED = 0
NUM_ROWS = 512
"""Test images whose features are kept."""
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
NETWORKS = ("ddnn", "cnn")


class Cnn(nn.Module):
    """conv 32, pool, conv 64, pool, conv 128, residual conv 128, mean, FC."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 128)
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b))
            for a, b in itertools.pairwise(widths)
        )
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and the feature at every cut."""
        pool1 = functional.max_pool2d(self.convs[0](x).relu(), 2)
        pool2 = functional.max_pool2d(self.convs[1](pool1).relu(), 2)
        relu3 = self.convs[2](pool2).relu()
        relu4 = (self.convs[3](relu3) + relu3).relu()
        cuts = {"pool1": pool1, "pool2": pool2, "relu3": relu3, "relu4": relu4}
        return self.fc(relu4.mean((2, 3))), cuts


def train_cnn(epochs: int) -> dict[str, Any]:
    """SGD with momentum and one cycle of the learning rate; mirrored images, nothing else."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    data = load("cifar10", SEED)
    images, test = _images(data.train.images), _images(data.test.images)
    labels = torch.from_numpy(data.train.labels)
    model = Cnn().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = len(images) // 128 * epochs
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.2, total_steps=steps, pct_start=0.3)
    for epoch in range(epochs):
        began, total = time.perf_counter(), 0.0
        model.train()
        for rows in torch.split(torch.randperm(len(images), generator=generator), 128)[: len(images) // 128]:
            x = images[rows]
            mirrored = torch.rand(len(rows), generator=generator) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
            loss = functional.cross_entropy(model(x)[0], labels[rows])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            rate.step()
            total += loss.item() * 128 * epochs / (steps * 128)
        print(f"cnn epoch {epoch + 1}/{epochs} loss {total:.3f} {time.perf_counter() - began:.0f} s", file=sys.stderr)
    model.eval()
    with torch.no_grad():
        hits = [model(x)[0].argmax(1) for x in torch.split(test, 500)]
        cuts = model(test[:NUM_ROWS])[1]
    accuracy = float((torch.cat(hits).numpy() == data.test.labels).mean())
    return {"accuracy": accuracy, **{name: x.contiguous().numpy() for name, x in cuts.items()}}


def train_ddnn_bundle(epochs: int = 2) -> tuple[Bundle, Dataset]:
    """The Bundle and its data; trained once, then read from the cache folder."""
    folder = cache_dir() / "rate" / f"ddnn-seed{SEED}"
    if (folder / MANIFEST).is_file():
        return Bundle.open(folder), load("mnist", SEED)
    torch.set_num_threads(1)
    return train_bundle(
        "mnist",
        folder,
        seed=SEED,
        model={"device_precision": "full", "edge_precision": "full"},
        training={"epochs": epochs},
        progress=lambda r: print(f"ddnn epoch {r.epoch}/{r.epochs} {r.accuracy}", file=sys.stderr),
    )


def train_ddnn(epochs: int) -> dict[str, Any]:
    """Features of device 0 and of the edge Section, which takes the fused ones of all six."""
    bundle, data = train_ddnn_bundle(epochs)
    test = prepare(data.test, bundle.manifest.preprocess)
    outputs = run_bundle(bundle, test)
    accuracy = float((outputs.logits["cloud"].argmax(1) == data.test.labels).mean())
    return {"accuracy": accuracy, **_ddnn_cuts(bundle, test.images[:, :NUM_ROWS])}


def _ddnn_cuts(bundle: Any, images_NB: Any) -> dict[str, Any]:
    from tierline.core.flow.levels import FEATURE, engine_maker
    from tierline.core.flow.oracle import Oracle

    levels = Oracle(bundle, engine_maker("onnxruntime")).levels
    parts = levels[0].parts
    device_NB = np.stack([levels[0].run(part, images_NB[n])[FEATURE] for n, part in enumerate(parts)])
    fused_B = levels[0].fuse_features(device_NB, np.ones(device_NB.shape[:2], dtype=np.bool_))
    return {"device": device_NB[0], "edge": levels[1].run("*", fused_B)[FEATURE]}


def _images(images_B: Any) -> Tensor:
    x = torch.from_numpy(images_B).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    return x.contiguous(memory_format=torch.channels_last)


def features(network: str, epochs: int | None = None) -> dict[str, Any]:
    """`accuracy` (test split) and the feature at each cut, (512, C, H, W) float32; trained once, then read."""
    path = cache_dir() / "rate" / f"{network}-seed{SEED}.npz"
    if not path.is_file():
        torch.set_num_threads(1)
        made = train_cnn(epochs or 4) if network == "cnn" else train_ddnn(epochs or 2)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **made)
    with np.load(path) as file:
        return dict(file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, choices=[*NETWORKS, []])
    for name in parser.parse_args().networks:
        found = features(name)
        print(name, {k: v.shape or round(float(v), 4) for k, v in found.items()})
