"""A one-stage detector without anchors, small enough to be trained in a minute or two on one core.

One grid of stride 8. Each place gives a score for each class and a box around itself, as in FCOS (Tian et al., ICCV
2019) and CenterNet (Zhou et al., "Objects as points", 2019), whose heat map and focal loss are used here.
The output is that of the YOLO family, (batch, 4 + classes, places): middle and size in pixels, then class scores.

Shape legend: B batch, K classes, G grid side, N = G * G places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scenes import CLASSES, SIDE, Pixels, Thing, draw_things, paint
from torch import Tensor, nn

STRIDE = 8
GRID = SIDE // STRIDE


def _conv(num_in: int, num_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(num_in, num_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(num_out), nn.ReLU()
    )


class Detector(nn.Module):
    """For images (B, 3, SIDE, SIDE) of pixels in [0, 1]; `width` scales all filters."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        stem = [_conv(3, width, 2), _conv(width, 2 * width, 2), _conv(2 * width, 4 * width, 2)]
        self.backbone = nn.Sequential(*stem, *(_conv(4 * width, 4 * width) for _ in range(depth)))
        self.head = nn.Conv2d(4 * width, 4 + len(CLASSES), 1)
        nn.init.constant_(self.head.bias[4:], -3.0)
        rows, columns = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
        places = torch.stack([columns, rows]).flatten(1) + 0.5
        self.register_buffer("places", places[None].float(), persistent=False)

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (B, 4, N) in pixels and class logits (B, K, N)."""
        found = self.head(self.backbone(images)).flatten(2)
        middle = (self.places + found[:, :2]) * STRIDE
        return torch.cat([middle, torch.exp(found[:, 2:4]) * STRIDE], 1), found[:, 4:]

    def forward(self, images: Tensor) -> Tensor:
        boxes, logits = self.raw(images)
        return torch.cat([boxes, torch.sigmoid(logits)], 1)


def train(net: Detector, num_scenes: int, epochs: int, seed: int, say: Callable[[str], None]) -> None:
    """Adam with a cosine schedule on scenes of its own, flipped at random."""
    rng = np.random.default_rng(seed)
    scenes = [draw_things(rng) for _ in range(num_scenes)]
    images = to_tensor([paint(things, rng) for things in scenes])
    targets = [torch.stack(column) for column in zip(*(_target(things) for things in scenes), strict=True)]
    optimiser = torch.optim.Adam(net.parameters(), 4e-3)
    size, generator = 64, torch.Generator().manual_seed(seed)
    steps = epochs * (num_scenes // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    net.train()
    for epoch in range(epochs):
        order, total = torch.randperm(num_scenes, generator=generator), 0.0
        for start in range(0, num_scenes - size + 1, size):
            rows = order[start : start + size]
            loss = _loss(net, images[rows], [column[rows] for column in targets])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        if (epoch + 1) % max(1, epochs // 4) == 0:
            say(f"  epoch {epoch + 1}/{epochs}  loss {total / (num_scenes // size):.3f}")
    net.eval()


def to_tensor(images: Sequence[Pixels]) -> Tensor:
    """float32 (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def _target(things: list[Thing]) -> tuple[Tensor, Tensor, Tensor]:
    """Heat (K, N), box (4, N) in pixels, and the places (N,) that learn it."""
    heat = np.zeros((len(CLASSES), GRID, GRID), np.float32)
    box, learns = np.zeros((4, GRID, GRID), np.float32), np.zeros((GRID, GRID), np.float32)
    rows, columns = np.mgrid[:GRID, :GRID]
    for thing in things:
        left, top, right, bottom = (edge * SIDE for edge in thing.box())
        x, y, width, height = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
        column, row = min(int(x / STRIDE), GRID - 1), min(int(y / STRIDE), GRID - 1)
        distance = (rows - row) ** 2 + (columns - column) ** 2
        spread = max(0.4, min(width, height) / STRIDE / 6)
        heat[thing.index] = np.maximum(heat[thing.index], np.exp(-distance / (2 * spread**2)))
        near = distance <= 1
        box[:, near], learns[near] = np.array([[x], [y], [width], [height]]), 1.0
    return tuple(torch.from_numpy(a).flatten(-2) for a in (heat, box, learns))  # type: ignore[return-value]


def _loss(net: Detector, images: Tensor, targets: list[Tensor]) -> Tensor:
    heat, box, learns = targets
    boxes, logits = net.raw(images)
    score = torch.sigmoid(logits).clamp(1e-4, 1 - 1e-4)
    is_middle = heat == 1
    hit = torch.log(score) * (1 - score) ** 2 * is_middle
    miss = torch.log(1 - score) * score**2 * (1 - heat) ** 4 * ~is_middle
    num = is_middle.sum().clamp(min=1)
    apart = (boxes - box).abs().sum(1) * learns / STRIDE
    return -(hit + miss).sum() / num + apart.sum() / learns.sum().clamp(min=1)
