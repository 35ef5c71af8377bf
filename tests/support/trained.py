"""Small Bundles with candidate cuts and exits that were trained on real data, for tests that need real statistics."""

from __future__ import annotations

import zipfile
from pathlib import Path

from tierline.core.bundle import Bundle


def lenet_mnist(folder: Path) -> Bundle:
    """LeNet with an exit after its first pooling (test accuracy 0.988, whole network 0.994), as `tierline model zoo
    lenet-mnist --data mnist` makes it; its outcomes are those of MNIST's validation split of 6,000. Unpacked into
    `folder`."""
    with zipfile.ZipFile(Path(__file__).with_name("lenet_mnist.zip")) as archive:
        archive.extractall(folder)
    return Bundle.open(folder)
