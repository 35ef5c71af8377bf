"""LeNet-5 as it is trained today: two 5x5 convolutions with max pooling, then three dense layers.

conv 5x5 (6, padding 2) -> pool 2 -> conv 5x5 (16) -> pool 2 -> dense 120 -> dense 84 -> dense K. For 28x28 grey images
and ten classes it has 61,706 parameters.
LeCun et al., "Gradient-based learning applied to document recognition", Proc. IEEE 1998, section II.B.
Deviations: ReLU for tanh, max pooling without weights for trained subsampling, all maps of the first layer read by the
second, logits for the radial output layer.
Status: checked (number of parameters).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu


class Lenet(nn.Module):
    """For images (C, H, W) of at least 12x12."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.dense1 = nn.Linear(16 * ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2), 120)
        self.dense2 = nn.Linear(120, 84)
        self.out = nn.Linear(84, num_classes)

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        x = max_pool2d(relu(self.conv1(images_BCHW)), 2)
        x = max_pool2d(relu(self.conv2(x)), 2)
        x = relu(self.dense1(torch.flatten(x, 1)))
        features_BD = relu(self.dense2(x))
        return {"features": features_BD, "logits": self.out(features_BD)}
