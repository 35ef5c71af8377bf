"""ResNet-20 for small images: a 3x3 convolution, nine residual blocks of 16, 32 and 64 filters, then the mean.

y = relu(x + BN(conv(relu(BN(conv(x)))))), or y = relu(x + N(conv(N(conv(x))))) with a norm N that is an activation too
(`evonorm`, `range_evonorm`; the weight of a block's last begins at 0). Where a stage begins the shortcut takes every
second pixel and fills up with zero channels (option A). With `precision = "uint8"` layers train on 8-bit values, and so
do both sides of a sum (`layers.low_precision`); norms stay in float32. For 32x32 colour images and ten classes it has
269,722 parameters (0.27 M in the paper).
He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2.
Deviations: none known in the network; the optimizer and augmentation are the trainer's.
Status: checked (number of parameters).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import pad, relu

from tierline.core.errors import ConfigError
from tierline.models.layers.evonorm import EvoNorm, RangeEvoNorm
from tierline.models.layers.low_precision import Activation8, Conv8, Linear8

_NORMS: dict[str, type[nn.Module]] = {"batch": nn.BatchNorm2d, "evonorm": EvoNorm, "range_evonorm": RangeEvoNorm}
Norm = Literal["batch", "evonorm", "range_evonorm"]
Precision = Literal["float32", "uint8"]


class _Block(nn.Module):
    def __init__(self, num_in: int, num_out: int, norm: Norm, precision: Precision) -> None:
        super().__init__()
        self.stride, self.grown = num_out // num_in, num_out - num_in
        conv = Conv8 if precision == "uint8" else nn.Conv2d
        self.conv1 = conv(num_in, num_out, 3, stride=self.stride, padding=1, bias=False)
        self.norm1 = _NORMS[norm](num_out)
        self.conv2 = conv(num_out, num_out, 3, padding=1, bias=False)
        self.norm2 = _NORMS[norm](num_out)
        self.between = nn.ReLU() if norm == "batch" else nn.Identity()
        if isinstance(self.norm2, EvoNorm):
            nn.init.zeros_(self.norm2.weight)
        self.rounded = nn.ModuleList([Activation8(), Activation8()] if precision == "uint8" else [])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm2(self.conv2(self.between(self.norm1(self.conv1(x)))))
        if self.grown:
            x = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.grown // 2, self.grown // 2))
        if self.rounded:
            x, y = self.rounded[0](x), self.rounded[1](y)
        return relu(x + y)


class Resnet20(nn.Module):
    """For images (C, H, W) of at least 4x4."""

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        *,
        norm: Norm = "batch",
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        if norm not in _NORMS:
            raise ConfigError(f"resnet20: norm = {norm!r}; valid: {', '.join(_NORMS)}")
        if precision not in ("float32", "uint8"):
            raise ConfigError(f'resnet20: precision = {precision!r}; valid: "float32", "uint8"')
        low = precision == "uint8"
        self.conv = (Conv8 if low else nn.Conv2d)(input_shape[0], 16, 3, padding=1, bias=False)
        self.norm = _NORMS[norm](16)
        self.first = nn.ReLU() if norm == "batch" else nn.Identity()
        widths = [16, *(width for width in (16, 32, 64) for _ in range(3))]
        self.blocks = nn.Sequential(*(_Block(a, b, norm, precision) for a, b in pairwise(widths)))
        self.out = (Linear8 if low else nn.Linear)(64, num_classes)

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        features_BD = self.blocks(self.first(self.norm(self.conv(images_BCHW)))).mean((2, 3))
        return {"features": features_BD, "logits": self.out(features_BD)}
