"""Joint training of a DDNN: one loss over all exits, with devices cut off at random (fault-aware).

L = sum_i w_dev CE(device_i, y_i) + w_local CE(local, y) + w_edge CE(edge, y) + w_cloud CE(cloud, y), Adam, as in
DDNN (ICDCS 2017, section III.D); all weights 1 there. y_i is the view's own label, -1 where the view is absent: it
takes no part. Fault-aware training is ours: each present view fails to arrive with probability `device_dropout`, at
least one arrives. Deviations: cosine learning rate instead of a constant one; statistics of batch-norm are measured
again with the weights at rest, because one flipped sign moves a binary filter's mean further than a running average
follows (on MNIST patches this was worth 15 points at the local exit).

Shapes: N views, S samples of a split, B batch, C H W of one view.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tierline.core.errors import ConfigError
from tierline.core.types import Array
from tierline.models.ddnn import DDNN, DDNNConfig
from tierline.models.layers.binary import clip_binary_weights
from tierline.models.train.torch_process import no_compiler_cache, one_thread


@dataclass(frozen=True)
class Views:
    """One split, preprocessed."""

    images: Array
    """float32 (N, S, C, H, W)."""
    labels: Array
    """int64 (S,)."""
    view_labels: Array
    """int64 (N, S): label of each view, -1 where it is absent."""

    @property
    def present(self) -> Array:
        """bool (N, S)."""
        present: Array = self.view_labels >= 0
        return present


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Raises ConfigError for values out of range."""

    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 3e-3
    device_dropout: float = 0.12
    """Probability that a device's parts do not arrive; 0.0 is plain training."""
    exit_weights: Mapping[str, float] = field(default_factory=dict)
    """By exit (`device`, `local`, `edge`, `cloud`); 1.0 where not named."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or not 0.0 < self.learning_rate < math.inf:
            raise ConfigError(
                f"training: epochs = {self.epochs} must be at least 1, batch_size = {self.batch_size} at least 2, "
                f"learning_rate = {self.learning_rate} above 0 and finite"
            )
        if not 0.0 <= self.device_dropout < 1.0:
            raise ConfigError(f"training: device_dropout = {self.device_dropout} must be in [0, 1)")


_GLANCE = 5
"""Batches that settle the statistics for a progress report; the end of training takes an epoch of them."""


@dataclass(frozen=True)
class EpochReport:
    """What the progress callback receives after every epoch."""

    epoch: int
    epochs: int
    loss: float
    accuracy: dict[str, float]
    """Of every exit but the devices', on the validation split."""


Progress = Callable[[EpochReport], None]


def train(
    config: DDNNConfig, data: Views, validation: Views, how: TrainConfig, progress: Progress | None = None
) -> DDNN:
    """Train from scratch on one thread; the same seed and data give the same weights, whatever the number of cores."""
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        model = DDNN(config)
        _fit(model, data, validation, how, progress)
    return model.eval()


def _fit(model: DDNN, data: Views, validation: Views, how: TrainConfig, progress: Progress | None) -> None:
    with no_compiler_cache():
        optimizer = torch.optim.Adam(model.parameters(), lr=how.learning_rate)
    num_samples = len(data.labels)
    num_batches = max(1, num_samples // how.batch_size)
    num_steps = how.epochs * num_batches
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate(step, num_steps))
    images = torch.from_numpy(np.ascontiguousarray(data.images))
    labels_S = torch.from_numpy(data.labels.astype(np.int64))
    view_labels_NS = torch.from_numpy(data.view_labels.astype(np.int64))
    for epoch in range(how.epochs):
        model.train()
        total = 0.0
        # A remainder shorter than a batch is left to the next epoch's order.
        for rows in torch.split(torch.randperm(num_samples), how.batch_size)[:num_batches]:
            present_NB = view_labels_NS[:, rows] >= 0
            outputs = model(images[:, rows], present_NB, drop_devices(present_NB, how.device_dropout))
            loss = joint_loss(outputs, labels_S[rows], view_labels_NS[:, rows], how.exit_weights)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            clip_binary_weights(model)
            total += loss.item()
        last = epoch + 1 == how.epochs
        if last or progress is not None:
            settle_statistics(model, images, view_labels_NS >= 0, how, num_batches if last else _GLANCE)
        if progress is not None:
            progress(EpochReport(epoch + 1, how.epochs, total / num_batches, exit_accuracy(model, validation)))


@torch.no_grad()
def settle_statistics(model: DDNN, images: Tensor, present_NS: Tensor, how: TrainConfig, num_batches: int) -> None:
    """Replace the running statistics of every batch-norm by plain means over batches, with the weights at rest.

    Draws from a random stream of its own, so that watching the training does not change it.
    """
    norms = [m for m in model.modules() if isinstance(m, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d))]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's spelling of a cumulative mean
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        for rows in torch.split(torch.randperm(images.shape[1]), how.batch_size)[:num_batches]:
            present_NB = present_NS[:, rows]
            model(images[:, rows], present_NB, drop_devices(present_NB, how.device_dropout))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _learning_rate(step: int, num_steps: int) -> float:
    """Factor of the learning rate: a short warm-up, then half a cosine down to 1 %."""
    warm = min(1.0, (step + 1) / max(1.0, 0.05 * num_steps))
    return warm * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * step / num_steps)))


def drop_devices(present_NB: Tensor, probability: float) -> Tensor:
    """Which of the present views arrive, bool (N, B): each fails with `probability`; where all would, none does."""
    if probability == 0.0:
        return present_NB
    arrives = present_NB & (torch.rand(present_NB.shape) >= probability)
    return torch.where(arrives.any(0), arrives, present_NB)


def joint_loss(
    outputs: Mapping[str, Tensor], labels_B: Tensor, view_labels_NB: Tensor, weights: Mapping[str, float]
) -> Tensor:
    """The weighted sum over all exits."""
    loss = outputs["local"].new_zeros(())
    device_weight = weights.get("device", 1.0)
    for logits_BK, view_labels_B in zip(outputs["device"], view_labels_NB, strict=True):
        if bool((view_labels_B >= 0).any()):
            loss = loss + device_weight * cross_entropy(logits_BK, view_labels_B, ignore_index=-1)
    for name in ("local", "edge", "cloud"):
        if name in outputs:
            loss = loss + weights.get(name, 1.0) * cross_entropy(outputs[name], labels_B)
    return loss


@torch.no_grad()
@one_thread()
def predict(model: DDNN, data: Views, batch_size: int = 512) -> dict[str, Array]:
    """Logits of every exit over a split, as the torch model computes them: (S, K), `device` (N, S, K)."""
    model.eval()
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(data.labels), batch_size):
        rows = slice(start, start + batch_size)
        images = torch.from_numpy(np.ascontiguousarray(data.images[:, rows]))
        parts.append(model(images, torch.from_numpy(np.ascontiguousarray(data.present[:, rows]))))
    axis = {"device": 1}
    return {name: torch.cat([p[name] for p in parts], dim=axis.get(name, 0)).numpy() for name in parts[0]}


def exit_accuracy(model: DDNN, data: Views) -> dict[str, float]:
    """Share of right answers of each fused exit when it alone answers everything."""
    outputs = predict(model, data)
    return {
        name: float((logits.argmax(-1) == data.labels).mean()) for name, logits in outputs.items() if name != "device"
    }
