"""Training of exit heads: with the network below them frozen, or jointly with it.

L = CE(final) + w sum_i CE(exit_i) (BranchyNet, ICPR 2016, section III.B; equal w for all exits but the last). Frozen:
only the heads learn, the first term is constant. SGD with Nesterov momentum and one cycle of the learning rate (Smith
and Topin, "Super-convergence", 2018). Images are shifted by up to `shift` pixels, zeros (after normalisation) coming
in, and mirrored.

Shapes: B batch, S samples, K classes, C H W of an image.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from tierline.core.errors import ConfigError
from tierline.core.preprocess import Preprocessor
from tierline.core.types import Array
from tierline.models.data.dataset import Split
from tierline.models.train.torch_process import no_compiler_cache, one_thread

FINAL = "final"
"""Name of the network's own end."""

_SHORTEST = 5
"""Steps that a cycle needs at least; torch divides by what lies between its parts."""

Forward = Callable[[Tensor], dict[str, Tensor]]
"""Images (B, C, H, W) to logits (B, K) by exit, from the image upwards."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""Of images (B, C, H, W) and labels (B,)."""


@dataclass(frozen=True)
class ExitTraining:
    """How to train. Raises ConfigError for values out of range."""

    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 0.1
    """At the top of the cycle."""
    weight_decay: float = 5e-4
    exit_weight: float = 0.5
    """w."""
    shift: int = 0
    flip: bool = False
    bfloat16: bool = False
    """Compute in bfloat16 where the processor has it; weights stay float32."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or self.shift < 0:
            raise ConfigError(
                f"training: epochs = {self.epochs} must be at least 1, batch_size = {self.batch_size} at least 2, "
                f"shift = {self.shift} at least 0"
            )
        for name in ("learning_rate", "weight_decay", "exit_weight"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"training: {name} = {getattr(self, name)} must be finite and at least 0")


@dataclass(frozen=True)
class ExitProgress:
    """What the progress callback receives after every epoch."""

    epoch: int
    epochs: int
    loss: float
    accuracy: dict[str, float]
    """Of every exit on the validation split."""


def fit(
    model: nn.Module,
    forward: Forward,
    loss_of: Loss,
    preprocessor: Preprocessor,
    data: Split,
    validation: Split,
    how: ExitTraining,
    progress: Callable[[ExitProgress], None] | None = None,
    checkpoint: Path | None = None,
) -> None:
    """Train the parameters of `model` in place, on one thread: the same seed gives the same weights.

    `forward` is what progress is measured on. With `checkpoint`, the state is written there after every epoch, and
    training goes on from it where it exists.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    num_batches = max(1, len(data) // how.batch_size)
    with one_thread(), torch.random.fork_rng(devices=[]):
        with no_compiler_cache():
            optimizer = torch.optim.SGD(
                parameters, how.learning_rate, momentum=0.9, weight_decay=how.weight_decay, nesterov=True
            )
        num_steps = max(_SHORTEST, how.epochs * num_batches + 1)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.learning_rate, total_steps=num_steps, pct_start=0.25)
        start = _resume(checkpoint, model, optimizer, cycle)
        for epoch in range(start, how.epochs):
            torch.manual_seed(how.seed * 1000 + epoch)  # so that a resumed run draws what an unbroken one draws
            model.train()
            total = 0.0
            for rows in torch.split(torch.randperm(len(data)), how.batch_size)[:num_batches]:
                images = augment(batch(preprocessor, data, rows.numpy()), how.shift, how.flip)
                labels = torch.from_numpy(data.labels[rows.numpy()].astype(np.int64))
                with torch.autocast("cpu", torch.bfloat16, enabled=how.bfloat16):
                    loss = loss_of(images, labels)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                cycle.step()
                total += loss.item()
            if checkpoint is not None:
                _save(checkpoint, epoch + 1, model, optimizer, cycle)
            if progress is not None:
                accuracy = accuracy_of(predict(model, forward, preprocessor, validation), validation.labels)
                progress(ExitProgress(epoch + 1, how.epochs, total / num_batches, accuracy))
    model.eval()


def joint_loss(logits: Mapping[str, Tensor], labels_B: Tensor, exit_weight: float) -> Tensor:
    """The weighted sum over all exits."""
    losses = [
        cross_entropy(of_exit.float(), labels_B) * (1.0 if name == FINAL else exit_weight)
        for name, of_exit in logits.items()
    ]
    return torch.stack(losses).sum()


def batch(preprocessor: Preprocessor, data: Split, rows: Array) -> Tensor:
    """Some images as nodes would see them, float32 (B, C, H, W), channels last in memory."""
    images = torch.from_numpy(preprocessor.many(data.images[rows]))
    return images.contiguous(memory_format=torch.channels_last)


def augment(images_BCHW: Tensor, shift: int, flip: bool) -> Tensor:
    """Each image shifted by its own random number of pixels and mirrored or not."""
    if shift:
        num, _, height, width = images_BCHW.shape
        padded = pad(images_BCHW, (shift,) * 4)
        tops, lefts = torch.randint(0, 2 * shift + 1, (2, num)).tolist()
        rows = zip(padded, tops, lefts, strict=True)
        images_BCHW = torch.stack([x[:, top : top + height, left : left + width] for x, top, left in rows])
        images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
    if flip:
        mirrored_B = torch.rand(len(images_BCHW)) < 0.5
        images_BCHW = torch.where(mirrored_B[:, None, None, None], images_BCHW.flip(3), images_BCHW)
    return images_BCHW


@torch.no_grad()
def predict(
    model: nn.Module, forward: Forward, preprocessor: Preprocessor, data: Split, batch_size: int = 250
) -> dict[str, Array]:
    """Logits (S, K) of every exit."""
    model.eval()
    parts = [
        forward(batch(preprocessor, data, np.arange(start, min(start + batch_size, len(data)))))
        for start in range(0, len(data), batch_size)
    ]
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def accuracy_of(logits: Mapping[str, Array], labels: Array) -> dict[str, float]:
    """Share of right answers of each exit when it alone answers everything."""
    return {name: float((of_exit.argmax(-1) == labels).mean()) for name, of_exit in logits.items()}


def _save(path: Path, epoch: int, model: nn.Module, optimizer: torch.optim.Optimizer, cycle: object) -> None:
    state = {
        "epoch": epoch,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "cycle": cycle.state_dict(),  # type: ignore[attr-defined]
    }
    whole = path.with_name(f"{path.name}.part")
    torch.save(state, whole)
    whole.replace(path)


def _resume(path: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer, cycle: object) -> int:
    """Epochs done already."""
    if path is None or not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        cycle.load_state_dict(state["cycle"])  # type: ignore[attr-defined]
    except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or ["unreadable"])[0][:160]
        raise ConfigError(f"{path}: is no checkpoint of this training ({reason}); delete it to begin anew") from error
    return int(state["epoch"])
