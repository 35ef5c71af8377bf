"""DDNN's two blocks and their full-precision twins.

ConvP: conv 3x3 (padding 1) -> max-pool 3x3 (padding 1, stride s) -> batch-norm -> sign, or ReLU at full precision.
FC: linear -> batch-norm, whose outputs are an exit's logits. Binary layers need no bias: batch-norm shifts anyway.
"""

from __future__ import annotations

from torch import Tensor, nn

from tierline.models.layers.binary import BinaryConv2d, BinaryLinear, Sign


class ConvP(nn.Module):
    """(B, in, H, W) -> (B, out, ceil(H/stride), ceil(W/stride)), values of +-1 unless `precision` is `full`.

    `binary` has weights of +-1 as well, `bits` has real ones.
    """

    def __init__(self, num_in: int, num_out: int, *, stride: int, precision: str) -> None:
        super().__init__()
        conv = BinaryConv2d if precision == "binary" else nn.Conv2d
        self.conv = conv(num_in, num_out, 3, padding=1, bias=False)
        self.stride = stride
        self.pool = nn.MaxPool2d(3, stride=stride, padding=1)
        self.norm = nn.BatchNorm2d(num_out)
        self.activation = nn.ReLU() if precision == "full" else Sign()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.norm(self.pool(self.conv(x))))
        return y


class FC(nn.Module):
    """(B, ...) flattened -> logits (B, out)."""

    def __init__(self, num_in: int, num_out: int, *, binary: bool) -> None:
        super().__init__()
        linear = BinaryLinear if binary else nn.Linear
        self.linear = linear(num_in, num_out, bias=False)
        self.norm = nn.BatchNorm1d(num_out)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.linear(x.flatten(1)))
        return y


def pooled(length: int, stride: int) -> int:
    """Length after the block's 3-wide pool with padding 1."""
    return (length - 1) // stride + 1
