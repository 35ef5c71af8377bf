"""A small convolutional network for 8x8 digits, and data as small, for tests that train."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import torch
from torch import nn

from tierline.models.data.dataset import Dataset
from tierline.models.data.load import load
from tierline.models.graph import Network, network_of
from tierline.models.torch_export import export

SHAPE = (1, 8, 8)


class SmallNet(nn.Module):
    """Edges `relu`, `max_pool2d` (16x4x4), `relu_1` (16x4x4)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.out = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.max_pool2d(torch.relu(self.norm1(self.conv1(x))), 2)
        y: torch.Tensor = self.out(torch.flatten(torch.relu(self.conv2(x)), 1))
        return y


def make_net(seed: int = 1) -> SmallNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallNet()


def graph_of(net: nn.Module) -> Network:
    return network_of(onnx.load_model_from_string(export(net, SHAPE)), "small")


@cache
def digits(num: int = 600) -> Dataset:
    """The first `num` training digits, and what validates and tests."""
    data = load("digits")
    return Dataset(data.name, data.labels, data.train.take(np.arange(num)), data.validation, data.test)
