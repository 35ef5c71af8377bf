"""Dense layers with ReLU between them, on the image as one row of values; without hidden layers: logistic regression.

`hidden = [200, 200]` on MNIST is the 2NN of McMahan et al., AISTATS 2017, section 3 (199,210 parameters).
Status: checked (number of parameters).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import relu


class Mlp(nn.Module):
    """`features` is what the last layer reads."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, *, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        widths = [math.prod(input_shape), *hidden, num_classes]
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(widths)])

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        features_BD = torch.flatten(images_BCHW, 1)
        for layer in list(self.layers)[:-1]:
            features_BD = relu(layer(features_BD))
        return {"features": features_BD, "logits": self.layers[-1](features_BD)}
