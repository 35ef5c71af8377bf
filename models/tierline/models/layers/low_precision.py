"""Convolutions and linear layers that train with 8-bit weights, activations and gradients.

    q = round(clip((t - lo) / s, 0, 255)),   t^ = q s + lo,   s = max((hi - lo) / 255, 1e-8)

Weights and biases: lo and hi of the tensor. Activations: of each sample, averaged over the batch; a running mean
(0.1 old + 0.9 new) serves evaluation. Gradients: lo and hi of the tensor, stochastic rounding. Rounding passes
gradients straight through, and the weights that the optimiser moves stay in float32. The gradient of a weight is taken
from the layer's output gradient as it came, that of the input from its 8-bit form.
Aketi, Kodge, Roy, "Low Precision Decentralized Distributed Training over IID and non-IID Data", Neural Networks 155,
2022, section 3. Deviations: activations are rounded to the nearest, where the published code rounds them at random, at
test time too, by a slip of arguments. Values are those of 8 bits, the arithmetic is float32's.
Status: partial (against the formulas; see docs/algorithms.md for what was trained).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear
from torch.nn.grad import conv2d_input, conv2d_weight

_LEVELS = 255
_KEEP = 0.1


class _Rounded(torch.autograd.Function):
    """Values of 8 bits between lo and hi; gradients pass straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        return _levels(x, lo, hi)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0], None, None


class _Conv(torch.autograd.Function):
    """conv2d whose input gradient is made of the 8-bit output gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: Any, padding: Any, groups: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = (stride, padding, 1, groups)
        return conv2d(x, weight, None, *ctx.how)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, weight = ctx.saved_tensors
        by_x = conv2d_input(list(x.shape), weight, _stochastic(grads[0]), *ctx.how)  # type: ignore[no-untyped-call]
        by_weight = conv2d_weight(x, list(weight.shape), grads[0], *ctx.how)  # type: ignore[no-untyped-call]
        return by_x, by_weight, None, None, None


class _Linear(torch.autograd.Function):
    """x W' whose input gradient is made of the 8-bit output gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return _stochastic(grads[0]) @ weight, grads[0].T @ x


class Activation8(nn.Module):
    """Rounds activations (B, ...) to 8 bits; as a layer of its own, before two are added.

    Evaluation without a running range (rules that ask for gradients alone hand on no buffers) takes the batch's.
    """

    lo: Tensor
    hi: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("lo", torch.zeros(()))
        self.register_buffer("hi", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            flat = x.detach().flatten(1)
            lo, hi = flat.amin(1).mean(), flat.amax(1).mean()
            if self.training:
                self.lo.mul_(_KEEP).add_((1 - _KEEP) * lo)
                self.hi.mul_(_KEEP).add_((1 - _KEEP) * hi)
            else:
                is_known = self.hi > self.lo
                lo, hi = torch.where(is_known, self.lo, lo), torch.where(is_known, self.hi, hi)
        y: Tensor = _Rounded.apply(x, lo, hi)  # type: ignore[no-untyped-call]
        return y


class Conv8(nn.Conv2d):
    """`nn.Conv2d` (zero padding, no dilation) on 8-bit values."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = Activation8()

    def forward(self, x: Tensor) -> Tensor:
        inputs = (self.activation(x), whole(self.weight), self.stride, self.padding, self.groups)
        y: Tensor = _Conv.apply(*inputs)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + whole(self.bias)[:, None, None]


class Linear8(nn.Linear):
    """`nn.Linear` of (B, in) on 8-bit values."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = Activation8()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Linear.apply(self.activation(x), whole(self.weight))  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + whole(self.bias)


def whole(t: Tensor) -> Tensor:
    """A parameter in 8 bits, by its own least and greatest value."""
    rounded: Tensor = _Rounded.apply(t, t.detach().amin(), t.detach().amax())  # type: ignore[no-untyped-call]
    return rounded


def _levels(x: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    scale = ((hi - lo) / _LEVELS).clamp_min(1e-8)
    return ((x - lo) / scale).clamp(0, _LEVELS).round() * scale + lo


def _stochastic(grad: Tensor) -> Tensor:
    """8 bits between its least and greatest value, up with the probability of the fraction."""
    lo, hi = grad.amin(), grad.amax()
    scale = ((hi - lo) / _LEVELS).clamp_min(1e-8)
    steps = (grad - lo) / scale
    down = steps.floor()
    return (down + (torch.rand_like(steps) < steps - down)).clamp(0, _LEVELS) * scale + lo
