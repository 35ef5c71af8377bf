"""VGG-11: eight 3x3 convolutions of 64 to 512 filters with five poolings, then dense layers.

64 P 128 P 256 256 P 512 512 P 512 512 P. The paper's network is `norm = false`, `hidden = [4096, 4096]` on 224x224:
132,863,336 parameters (133 M in its table 2). For 32x32 images the default is usual: batch-norm after each convolution
and one dense layer, 9,231,114 parameters for ten classes. `width` multiplies all filters.
Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015, table 1, A.
Deviations: by default those named above; no dropout in `hidden`.
Status: checked (number of parameters).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

_WIDTHS = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)
"""Filters of each convolution; 0 is a pooling."""


class Vgg11(nn.Module):
    """For images (C, H, W) whose sides divide by 32."""

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        *,
        hidden: Sequence[int] = (),
        norm: bool = True,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        channels, rows, columns = input_shape
        layers: list[nn.Module] = []
        for filters in _WIDTHS:
            if not filters:
                layers.append(nn.MaxPool2d(2))
                continue
            filters = max(1, round(filters * width))
            layers += [
                nn.Conv2d(channels, filters, 3, padding=1),
                *([nn.BatchNorm2d(filters)] if norm else []),
                nn.ReLU(),
            ]
            channels = filters
        self.convolutions = nn.Sequential(*layers)
        widths = [channels * (rows // 32) * (columns // 32), *hidden]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.out = nn.Linear(widths[-1], num_classes)

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        features_BD = torch.flatten(self.convolutions(images_BCHW), 1)
        for layer in self.hidden:
            features_BD = relu(layer(features_BD))
        return {"features": features_BD, "logits": self.out(features_BD)}
