"""Torch twins of the aggregators in `core.aggregate`: same names, same masks, differentiable.

Shapes: N parts, B batch. Parts are (N, B, ...), presence is bool (N, B). An absent part never counts; a sample
without any part yields zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tierline.core.catalog import nearest
from tierline.core.errors import ConfigError

NAMES = ("max_pool", "avg_pool", "concat")


def combine(name: str, parts_NB: Tensor, present_NB: Tensor) -> Tensor:
    """Fuse the parts of each sample. Raises ConfigError for an unknown name."""
    if name not in NAMES:
        raise ConfigError(f"no such aggregator: {name!r}{nearest(name, NAMES)}")
    mask = present_NB.reshape(*present_NB.shape, *(1,) * (parts_NB.ndim - 2))
    if name == "max_pool":
        highest = parts_NB.masked_fill(~mask, -torch.inf).amax(0)
        return torch.where(mask.any(0), highest, torch.zeros_like(highest))
    present = torch.where(mask, parts_NB, torch.zeros_like(parts_NB))
    if name == "avg_pool":
        return present.sum(0) / mask.sum(0).clamp(min=1)
    return torch.cat(list(present), dim=1)


def fused_channels(name: str, num_channels: int, num_parts: int) -> int:
    """Size of the first axis after the batch, once fused."""
    return num_channels * num_parts if name == "concat" else num_channels
