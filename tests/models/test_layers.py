from __future__ import annotations

import torch

from tierline.models.layers.binary import BinaryConv2d, BinaryLinear, clip_binary_weights, sign
from tierline.models.layers.blocks import FC, ConvP, pooled


def test_sign_is_plus_one_at_zero() -> None:
    x = torch.tensor([-2.0, -1e-9, 0.0, -0.0, 3.0])
    assert sign(x).tolist() == [-1.0, -1.0, 1.0, 1.0, 1.0]


def test_gradient_passes_inside_one_only() -> None:
    x = torch.tensor([-1.5, -1.0, 0.3, 1.0, 1.01], requires_grad=True)
    (sign(x) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 0.0]


def test_binary_layers_compute_with_signs() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 5)
    conv, linear = BinaryConv2d(3, 4, 3, padding=1, bias=False), BinaryLinear(75, 2)
    signs = torch.where(conv.weight >= 0, 1.0, -1.0)
    torch.testing.assert_close(conv(x), torch.nn.functional.conv2d(x, signs, padding=1))
    signs = torch.where(linear.weight >= 0, 1.0, -1.0)
    torch.testing.assert_close(linear(x.flatten(1)), x.flatten(1) @ signs.T + linear.bias)


def test_real_weights_learn_and_are_clipped() -> None:
    torch.manual_seed(0)
    linear, plain = BinaryLinear(6, 2), torch.nn.Linear(6, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.linspace(-1.5, 1.5, 12).reshape(2, 6))
        plain.weight.fill_(4.0)
    linear(torch.ones(1, 6)).sum().backward()
    assert linear.weight.grad is not None
    inside = linear.weight.detach().abs() <= 1
    assert torch.equal(linear.weight.grad, inside.float())
    clip_binary_weights(torch.nn.Sequential(linear, plain))
    assert linear.weight.abs().max() == 1.0
    assert torch.equal(linear.weight[inside], torch.linspace(-1.5, 1.5, 12).reshape(2, 6)[inside])
    assert plain.weight.min() == 4.0


def test_blocks_have_stated_shapes_and_values() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 7, 10)
    for precision in ("binary", "bits", "full"):
        for stride in (1, 2):
            block = ConvP(3, 5, stride=stride, precision=precision)
            y = block(x)
            assert y.shape == (4, 5, pooled(7, stride), pooled(10, stride))
            assert isinstance(block.conv, BinaryConv2d) == (precision == "binary")
            if precision == "full":
                assert y.min() >= 0
            else:
                assert set(y.unique().tolist()) == {-1.0, 1.0}
    assert FC(15, 2, binary=True)(x[:, :1, :5, :3]).shape == (4, 2)
