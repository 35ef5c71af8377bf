"""Norms without batch statistics that are activations too, for peers whose batches differ.

EvoNorm-S0:     y = weight n / sqrt(var + 1e-5) + bias,   n = x sigmoid(v x),  var over the group of one sample
Range-EvoNorm:  y = weight n / (c R + 1e-5) + bias,       n = x clip(v x / 6 + 1/2, 0, 1)
    R = mean over 16 chunks of max x - mean over them of min x,  c = 0.175 (1 + sqrt(pi ln 4)) / sqrt(2 ln L),
    L values per chunk; c R is about the deviation of normal values, and needs no squares: fit for 8 bits.

Liu, Brock, Simonyan, Le, "Evolving Normalization-Activation Layers", NeurIPS 2020, section 5; Aketi, Kodge, Roy, "Low
Precision Decentralized Distributed Training over IID and non-IID Data", Neural Networks 155, 2022, section 3.
weight, bias and v per channel, at first 1, 0, 1. Shapes: B samples, C channels of H x W, G groups.
Status: partial (against their formulas; the constants are those of the published code).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import hardsigmoid

from tierline.core.errors import ShapeMismatch

_EPS = 1e-5
_NUM_CHUNKS = 16


class EvoNorm(nn.Module):
    """EvoNorm-S0 of (B, C, H, W); C must be a multiple of the groups."""

    def __init__(self, num_channels: int, *, num_groups: int = 8) -> None:
        super().__init__()
        if num_channels % num_groups:
            raise ShapeMismatch(f"evonorm: {num_channels} channels cannot be split into {num_groups} groups")
        self.num_groups = num_groups
        shape = (1, num_channels, 1, 1)
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))
        self.v = nn.Parameter(torch.ones(shape))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        n_BCHW = self.activated(x_BCHW)
        groups_BGV = x_BCHW.reshape(len(x_BCHW), self.num_groups, -1)
        scale_BG = 1 / self.spread(groups_BGV)
        scaled_BCHW = (n_BCHW.reshape(groups_BGV.shape) * scale_BG[..., None]).reshape(x_BCHW.shape)
        return self.weight * scaled_BCHW + self.bias

    def activated(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW * torch.sigmoid(self.v * x_BCHW)

    def spread(self, x_BGV: Tensor) -> Tensor:
        """What a group is divided by: (B, G)."""
        spread_BG: Tensor = torch.sqrt(x_BGV.var(-1, unbiased=False) + _EPS)
        return spread_BG


class RangeEvoNorm(EvoNorm):
    """Range-EvoNorm of (B, C, H, W); a group must split into 16 chunks of two values or more."""

    def activated(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW * hardsigmoid(self.v * x_BCHW)

    def spread(self, x_BGV: Tensor) -> Tensor:
        num_values = x_BGV.shape[-1]
        length = num_values // _NUM_CHUNKS
        if num_values % _NUM_CHUNKS or length < 2:
            raise ShapeMismatch(
                f"range_evonorm: {num_values} values of a group cannot be split into {_NUM_CHUNKS} chunks of at least 2"
            )
        chunks = x_BGV.reshape(*x_BGV.shape[:-1], _NUM_CHUNKS, length)
        range_BG = chunks.amax(-1).mean(-1) - chunks.amin(-1).mean(-1)
        c = 0.175 * (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(2 * math.log(length))
        spread_BG: Tensor = c * range_BG + _EPS
        return spread_BG
