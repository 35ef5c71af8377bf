"""Dense layers with ReLU between them, on the image as one row of values; without hidden layers: logistic regression.

`hidden = [200, 200]` on MNIST is the 2NN of McMahan et al., AISTATS 2017, section 3 (199,210 parameters).
Status: checked (number of parameters).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from tierline.models.zoo._staged import Stage, Staged


class Mlp(Staged):
    """`features` is what the last layer reads."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int, *, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        widths = [math.prod(input_shape), *hidden, num_classes]
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(widths)])

    def stages(self) -> Sequence[Stage]:
        return [(f"layers.{i}", partial(self._dense, i)) for i in range(len(self.layers))]

    def _dense(self, i: int, x_BD: Tensor) -> Tensor:
        y_BD: Tensor = self.layers[i](torch.flatten(x_BD, 1))
        return relu(y_BD) if i + 1 < len(self.layers) else y_BD
