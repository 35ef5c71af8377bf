"""ResNet-20 for small images: a 3x3 convolution, nine residual blocks of 16, 32 and 64 filters, then the mean.

y = relu(x + BN(conv(relu(BN(conv(x)))))), where a stage begins the shortcut takes every second pixel and fills up with
zero channels (option A). For 32x32 colour images and ten classes it has 269,722 parameters (0.27 M in the paper).
He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2.
Deviations: none known in the network; the optimizer and augmentation are the trainer's.
Status: checked (number of parameters).
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import pad, relu


class _Block(nn.Module):
    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.stride, self.grown = num_out // num_in, num_out - num_in
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride=self.stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(num_out)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm2(self.conv2(relu(self.norm1(self.conv1(x)))))
        if self.grown:
            x = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.grown // 2, self.grown // 2))
        return relu(x + y)


class Resnet20(nn.Module):
    """For images (C, H, W) of at least 4x4."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(input_shape[0], 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        widths = [16, *(width for width in (16, 32, 64) for _ in range(3))]
        self.blocks = nn.Sequential(*(_Block(a, b) for a, b in pairwise(widths)))
        self.out = nn.Linear(64, num_classes)

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        features_BD = self.blocks(relu(self.norm(self.conv(images_BCHW)))).mean((2, 3))
        return {"features": features_BD, "logits": self.out(features_BD)}
