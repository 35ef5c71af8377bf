"""Plain networks, as users bring them: exported from torch, with weights that matter, and a folder of images."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import torch
from PIL import Image

from tierline.core import catalog
from tierline.models.graph import Network, network_of
from tierline.models.torch_export import export
from tierline.models.zoo import resnet20

SHAPES = {"mlp": (1, 8, 8), "lenet": (1, 28, 28), "residual": (3, 8, 8)}
NUM_CLASSES = 5


class Residual(torch.nn.Module):
    """Two residual blocks, the second of which halves the sides."""

    def __init__(self) -> None:
        super().__init__()
        conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = torch.nn.Sequential(conv, *(resnet20._Block(4, n, "batch", "float32") for n in (4, 8)))
        self.out = torch.nn.Linear(8, NUM_CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.out(self.blocks(x).mean((2, 3)))
        return y


@cache
def make_onnx(name: str) -> bytes:
    """A network of SHAPES; statistics of batch-norm as after training, not those of an identity."""
    torch.manual_seed(3)
    own = name == "residual"
    net = Residual() if own else catalog.make("model", name, input_shape=SHAPES[name], num_classes=NUM_CLASSES)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0.0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
    return export(net, SHAPES[name])


def make_network(name: str) -> Network:
    return network_of(onnx.load_model_from_string(make_onnx(name)), name)


def make_images(folder: Path, name: str, each: int = 4) -> np.ndarray:
    """`CLASS/NAME.png` below `folder` for the classes c0 to c4; the same images as uint8 (S, H, W[, C])."""
    channels, height, width = SHAPES[name]
    images = np.random.default_rng(5).integers(0, 256, (NUM_CLASSES * each, height, width, channels), dtype=np.uint8)
    images = images[..., 0] if channels == 1 else images
    for index, image in enumerate(images):
        path = folder / f"c{index // each}" / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return images
