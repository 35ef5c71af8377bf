"""Norms without batch statistics, and layers that train on 8-bit values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tierline.core.errors import ConfigError, ShapeMismatch
from tierline.models.layers.evonorm import EvoNorm, RangeEvoNorm
from tierline.models.layers.low_precision import Activation8, Conv8, Linear8, whole
from tierline.models.zoo.resnet20 import Resnet20


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_evonorm_is_its_formula() -> None:
    norm, x = EvoNorm(4, num_groups=2), normal(3, 4, 5, 6)
    with torch.no_grad():
        norm.weight += normal(1, 4, 1, 1, seed=1)
        norm.bias += 0.3
        norm.v *= 1.7
        y = norm(x)
    for b in range(3):
        for c in range(4):
            group = x[b, (c // 2) * 2 : (c // 2) * 2 + 2]
            n = x[b, c] * torch.sigmoid(1.7 * x[b, c])
            expected = norm.weight[0, c, 0, 0] * n / torch.sqrt(group.var(unbiased=False) + 1e-5) + 0.3
            assert torch.allclose(y[b, c], expected, atol=1e-5)


def test_range_evonorm_is_its_formula() -> None:
    norm, x = RangeEvoNorm(4, num_groups=2), normal(2, 4, 8, 8)
    y = norm(x)
    for b in range(2):
        for g in range(2):
            chunks = x[b, 2 * g : 2 * g + 2].reshape(16, 8)
            spread = chunks.max(1).values.mean() - chunks.min(1).values.mean()
            c = 0.175 * (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(2 * math.log(8))
            part = x[b, 2 * g : 2 * g + 2]
            n = part * (part / 6 + 0.5).clamp(0, 1)
            assert torch.allclose(y[b, 2 * g : 2 * g + 2], n / (c * spread + 1e-5), atol=1e-5)


def test_the_range_of_normal_values_tells_their_deviation() -> None:
    norm = RangeEvoNorm(8)
    spread = norm.spread(3.0 * normal(4, 8, 16 * 1024))
    assert spread.mean().item() == pytest.approx(0.93 * 3.0, rel=0.02)  # the sheet's figure for chunks of 1024


def test_norms_that_do_not_fit_say_so() -> None:
    with pytest.raises(ShapeMismatch, match="12 channels cannot be split into 8 groups"):
        EvoNorm(12)
    with pytest.raises(ShapeMismatch, match="9 values of a group cannot be split into 16 chunks"):
        RangeEvoNorm(8)(normal(1, 8, 3, 3))


def test_a_parameter_becomes_256_values_and_keeps_its_gradient() -> None:
    t = normal(5000).requires_grad_()
    q = whole(t)
    assert len(q.unique()) <= 256 and (q - t).abs().max() <= (t.max() - t.min()) / 255 / 2 * 1.001
    (q * torch.arange(5000.0)).sum().backward()
    assert torch.equal(t.grad, torch.arange(5000.0))  # type: ignore[arg-type]


def test_activations_remember_their_range_for_evaluation() -> None:
    layer, x = Activation8(), normal(6, 3, 4)
    lo, hi = x.flatten(1).amin(1).mean(), x.flatten(1).amax(1).mean()
    y = layer(x)
    assert torch.allclose(y.amax(), hi, atol=1e-4) and torch.allclose(layer.hi, 0.9 * hi)
    layer(x)
    assert torch.allclose(layer.lo, 0.99 * lo)
    layer.eval()
    assert torch.allclose(layer(10 * x).amin(), layer.lo, atol=1e-4)


def test_a_layer_that_never_trained_evaluates_by_the_batch() -> None:
    layer, x = Activation8().eval(), normal(6, 30)
    y = layer(x)
    assert torch.allclose(y.amax(), x.amax(1).mean(), atol=1e-4) and torch.equal(layer.hi, torch.zeros(()))


@pytest.mark.parametrize(
    ("low", "high", "x"),
    [
        (Conv8(3, 5, 3, stride=2, padding=1), nn.Conv2d(3, 5, 3, stride=2, padding=1), normal(4, 3, 8, 8)),
        (Linear8(7, 5), nn.Linear(7, 5), normal(4, 7)),
    ],
)
def test_a_layer_of_8_bits_is_near_its_twin(low: nn.Module, high: nn.Module, x: torch.Tensor) -> None:
    x = x.clamp(-1, 1)
    x.flatten(1)[:, :2] = torch.tensor([-1.0, 1.0])  # every sample has the same range: nothing is cut off
    low.load_state_dict({**low.state_dict(), **high.state_dict()})
    torch.manual_seed(0)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    ys = [layer(each) for layer, each in zip((low, high), inputs, strict=True)]
    for y in ys:
        (y * normal(*y.shape, seed=3)).sum().backward()
    assert 0 < (ys[0] - ys[1]).abs().max() < 0.05
    found, expected = inputs[0].grad, inputs[1].grad
    assert found is not None and expected is not None
    assert 0 < (found - expected).norm() < 0.05 * expected.norm()
    for mine, its in zip(low.parameters(), high.parameters(), strict=True):
        assert mine.grad is not None and its.grad is not None
        assert (mine.grad - its.grad).norm() < 0.05 * its.grad.norm()


def test_rounded_gradients_have_the_right_mean() -> None:
    layer, x = Linear8(6, 4), normal(1, 6)
    total, expected = torch.zeros(1, 6), None
    torch.manual_seed(0)
    g = normal(1, 4, seed=9) * 10
    for _ in range(2000):
        each = x.clone().requires_grad_()
        (layer(each) * g).sum().backward()
        assert each.grad is not None
        total += each.grad / 2000
    expected = g @ whole(layer.weight).detach()
    assert (total - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("norm", ["batch", "evonorm", "range_evonorm"])
@pytest.mark.parametrize("precision", ["float32", "uint8"])
def test_resnet20_takes_a_step(norm: str, precision: str) -> None:
    torch.manual_seed(0)
    net = Resnet20((3, 32, 32), 10, norm=norm, precision=precision)  # type: ignore[arg-type]
    optimiser, x, labels = torch.optim.SGD(net.parameters(), 0.05), normal(8, 3, 32, 32), torch.arange(8)
    losses = []
    for _ in range(4):
        loss = nn.functional.cross_entropy(net(x)["logits"], labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    net.eval()
    assert torch.isfinite(net(x)["logits"]).all()


def test_unknown_choices_are_named() -> None:
    with pytest.raises(ConfigError, match="norm = 'layer'; valid: batch, evonorm, range_evonorm"):
        Resnet20((3, 32, 32), 10, norm="layer")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="precision = 'int4'"):
        Resnet20((3, 32, 32), 10, precision="int4")  # type: ignore[arg-type]
