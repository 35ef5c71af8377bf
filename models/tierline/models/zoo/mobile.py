"""MobileNet (first version): depthwise separable convolutions, thirteen blocks, then the mean over all pixels.

A block is a 3x3 convolution of each channel on its own and a 1x1 convolution across channels, each with batch-norm and
ReLU. `width` multiplies all filters; `reduction` is how often the sides are halved. The paper's network is `width = 1`,
`reduction = 5` on 224x224 with 1,000 classes: 4,231,976 parameters (4.2 M in its table 8).
Howard et al., "MobileNets: efficient convolutional neural networks for mobile vision applications", 2017, table 1.
Deviations: for small images the first halvings are left out, so that the last maps have some pixels (default: 3).
Status: checked (number of parameters).
"""

from __future__ import annotations

from torch import Tensor, nn

_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *(((512, 1),) * 5), (1024, 2), (1024, 1))
"""Filters at width 1, and stride."""
_HALVINGS = 5


def _conv(num_in: int, num_out: int, side: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(num_in, num_out, side, stride, padding=side // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(num_out), nn.ReLU())


class Mobile(nn.Module):
    """For images (C, H, W) of at least 2 ** reduction pixels a side."""

    def __init__(
        self, input_shape: tuple[int, ...], num_classes: int, *, width: float = 0.25, reduction: int = 3
    ) -> None:
        super().__init__()
        skipped = _HALVINGS - reduction

        def stride_of(planned: int) -> int:
            nonlocal skipped
            if planned == 2 and skipped > 0:
                skipped -= 1
                return 1
            return planned

        filters = max(8, round(32 * width))
        layers: list[nn.Module] = [_conv(input_shape[0], filters, 3, stride_of(2))]
        for planned, stride in _BLOCKS:
            wanted = max(8, round(planned * width))
            layers += [_conv(filters, filters, 3, stride_of(stride), filters), _conv(filters, wanted, 1)]
            filters = wanted
        self.convolutions = nn.Sequential(*layers)
        self.out = nn.Linear(filters, num_classes)

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        features_BD = self.convolutions(images_BCHW).mean((2, 3))
        return {"features": features_BD, "logits": self.out(features_BD)}
