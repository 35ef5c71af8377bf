"""The CNN that McMahan et al. trained on MNIST: two 5x5 convolutions of 32 and 64 filters, a dense layer of 512.

conv 5x5 (32) -> max pool 2 -> conv 5x5 (64) -> max pool 2 -> dense 512, ReLU -> dense K. For 28x28 grey images and ten
classes it has 1,663,370 parameters, which fixes the padding to "same".
McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, section 3.
Deviations: ReLU after each convolution, which the paper leaves open; torch's own initialisation.
Status: checked (number of parameters).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import max_pool2d, relu

from tierline.models.zoo._staged import Stage, Staged


class MnistCnn(Staged):
    """For images (C, H, W) whose sides divide by four."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.conv1 = nn.Conv2d(channels, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.hidden = nn.Linear(64 * (height // 4) * (width // 4), 512)
        self.out = nn.Linear(512, num_classes)

    def stages(self) -> Sequence[Stage]:
        return [
            ("conv1", lambda x_BCHW: max_pool2d(relu(self.conv1(x_BCHW)), 2)),
            ("conv2", lambda x_BCHW: max_pool2d(relu(self.conv2(x_BCHW)), 2)),
            ("hidden", lambda x_BCHW: relu(self.hidden(torch.flatten(x_BCHW, 1)))),
            ("out", self.out),
        ]
