"""Layers with one bit per activation or weight, as in DDNN (Teerapittayanon, McDanel, Kung; ICDCS 2017, section III).

sign(x) = +1 where x >= 0, else -1; its gradient passes where |x| <= 1 (straight-through estimator). Binary layers keep
real weights for the optimiser, compute with their signs, and have them clipped to [-1, 1] after every step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return gradients[0] * (x.abs() <= 1)


def sign(x: Tensor) -> Tensor:
    """+1 where x >= 0, else -1; the gradient passes where |x| <= 1."""
    result: Tensor = _Sign.apply(x)  # type: ignore[no-untyped-call]
    return result


class Sign(nn.Module):
    """The binary activation."""

    def forward(self, x: Tensor) -> Tensor:
        return sign(x)


class BinaryConv2d(nn.Conv2d):
    """A convolution with weights of +-1."""

    def effective_weight(self) -> Tensor:
        return sign(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.effective_weight(), self.bias, self.stride, self.padding, self.dilation)


class BinaryLinear(nn.Linear):
    """A linear layer with weights of +-1 and a real bias."""

    def effective_weight(self) -> Tensor:
        return sign(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.effective_weight(), self.bias)


@torch.no_grad()
def clip_binary_weights(module: nn.Module) -> None:
    """Clip the real weights of every binary layer to [-1, 1], in place: beyond, no gradient would bring them back."""
    for layer in module.modules():
        if isinstance(layer, (BinaryConv2d, BinaryLinear)):
            layer.weight.clamp_(-1.0, 1.0)
