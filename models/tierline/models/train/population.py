"""The nodes of a simulated training run: each with its part of a data set, all with one model to share.

Shapes: S samples, C H W of one image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.core.rng import Key
from tierline.core.types import Array, Arrays, NodeId
from tierline.learning.compute import INPUTS, LABELS, LOGITS
from tierline.models.data.dataset import Dataset, Split
from tierline.models.train.flat import FlatModel
from tierline.models.train.local import LocalTrainer, outputs_of
from tierline.models.train.torch_process import one_thread


class Population:
    """`seed` draws the first model and who gets which samples. Raises ConfigError."""

    def __init__(
        self,
        dataset: Dataset,
        workers: Sequence[NodeId],
        *,
        partition: Mapping[str, Any],
        model: Mapping[str, Any],
        seed: int,
        with_validation: bool = False,
    ) -> None:
        parts = [dataset.train, dataset.validation] if with_validation else [dataset.train]
        images, labels = (np.concatenate(arrays) for arrays in zip(*map(_tensors, parts), strict=True))
        if len(labels) < len(workers):
            raise ConfigError(f"{dataset.name}: {len(labels)} samples cannot be dealt to {len(workers)} workers")
        self._images, self._labels = torch.from_numpy(images), torch.from_numpy(labels)
        self._test_images, self._test_labels = map(torch.from_numpy, _tensors(dataset.test))
        dealt = _make("partition", partition).split(labels, len(workers), seed)
        self._rows: dict[NodeId, Array] = dict(zip(workers, dealt, strict=True))
        with torch.random.fork_rng(devices=[]), one_thread():
            torch.manual_seed(seed)
            module = _make("model", model, input_shape=images.shape[1:], num_classes=len(dataset.labels))
        self._model = FlatModel(module)
        self.start: Params = self._model.read()
        self.trainers: dict[NodeId, LocalTrainer] = {
            me: LocalTrainer(self._model, self._images, self._labels, rows) for me, rows in self._rows.items()
        }
        self.root = LocalTrainer(self._model, self._images, self._labels, np.empty(0, np.int64))
        """Of a server: it has no samples, and runs its Section of a cut model."""

    def batch(self, node: NodeId, round: int, size: int | None, run: str) -> Arrays:
        """The `round`-th batch of a node: its samples in an order of their own per epoch. Empty, which stands for all
        samples, where `size` is None; a node without samples has no batch either."""
        if size is None or node not in self._rows:
            return {}
        rows = self._rows[node]
        size = min(size, len(rows))
        epoch, place = divmod(round, len(rows) // size)
        order = Key(run, epoch, node, "", "batch").permutation(len(rows))
        taken = rows[order[place * size : (place + 1) * size]]
        return {INPUTS: self._images[taken].numpy(), LABELS: self._labels[taken].numpy()}

    def evaluate(self, x: Params) -> dict[str, float]:
        """Accuracy and mean loss of a model on the test split."""
        logits = torch.from_numpy(outputs_of(self._model, x, self._test_images, (LOGITS,))[LOGITS])
        accuracy = (logits.argmax(1) == self._test_labels).double().mean().item()
        return {"test_accuracy": accuracy, "test_loss": cross_entropy(logits, self._test_labels).item()}


def _make(room: str, table: Mapping[str, Any], **given: Any) -> Any:
    """A catalogue entry from its table in an experiment file."""
    options = dict(table)
    return catalog.make(room, options.pop("name"), **options, **given)


def _tensors(split: Split) -> tuple[Array, Array]:
    """Images float32 (S, C, H, W) in [0, 1] and labels int64 (S,). Raises ConfigError for samples of several views."""
    images = split.images
    if images.ndim == 5:
        raise ConfigError("data: samples of several views train a DDNN (`tierline train --data`), not one network")
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images, np.float32) / np.float32(255.0), split.labels.astype(np.int64)
