"""What a rule may ask its node's Trainer, and what comes back.

A rule that asks for a gradient or for outputs names the batch, since it may compare them with others' on the same
samples; one that asks for a fit leaves the samples to the Trainer, and says how to train in a `Job`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.core.rng import Key
from tierline.core.types import Array, Arrays

INPUTS, LABELS = "inputs", "labels"
"""Names of the arrays of a batch: what the model is given, and the truth int64[B]."""

LOGITS = "logits"
"""Name of the output that the loss reads; a model that returns one array returns this one."""

LOSS = "loss"
"""Name of what a Section that is given `labels` puts out beside its logits: the mean loss of the batch, float32[]."""


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """One more term of the loss: `weight` times a distance of the model's output `output` from `target`.

    "squared" is the mean of squared differences over all values; "soft" the mean over samples of
    KL(softmax(target) || softmax(output)). `target` has one row per sample: of the batch for a gradient, of the
    Trainer's own samples for a fit.
    """

    output: str
    target: Array
    weight: float = 1.0
    distance: Literal["squared", "soft"] = "squared"


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """How to train on one's own samples. Raises ConfigError for values out of range.

    Every step moves along  g = grad loss(x) + weight_decay x + proximal (x - start) + correction,  the first term
    clipped to `clip_norm`. The optimiser starts fresh with every fit.
    """

    epochs: int = 1
    num_steps: int | None = None
    """Exactly so many steps, through the samples as often as it takes; `epochs` is then not read."""
    batch_size: int | None = None
    """None: all samples at once. The last batch of an epoch may be smaller."""
    lr: float = 0.1
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.0
    """Of "sgd"; "adam" has its usual 0.9 and 0.999."""
    weight_decay: float = 0.0
    proximal: float = 0.0
    correction: Params | None = None
    clip_norm: float | None = None
    """Longest gradient; None: any."""
    terms: tuple[Match, ...] = ()
    key: Key = field(default_factory=lambda: Key("", 0, "", "", "fit"))
    """Of the order of samples and of whatever the model itself draws."""

    def __post_init__(self) -> None:
        def refuse(name: str, rule: str) -> None:
            raise ConfigError(f"job: {name} = {getattr(self, name)!r} must be {rule}")

        for name in ("epochs", "num_steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                refuse(name, "at least 1")
        for name in ("lr", "weight_decay", "proximal"):
            if not 0.0 <= getattr(self, name) < math.inf:
                refuse(name, "at least 0 and finite")
        if not 0.0 <= self.momentum < 1.0:
            refuse("momentum", "in [0, 1)")
        if self.clip_norm is not None and not self.clip_norm > 0.0:
            refuse("clip_norm", "above 0")
        if self.optimizer not in ("sgd", "adam"):
            refuse("optimizer", '"sgd" or "adam"')
        if self.optimizer == "adam" and self.momentum:
            refuse("momentum", 'left out with optimizer = "adam"')


@dataclass(frozen=True, slots=True, eq=False)
class GradientAt:
    """Gradient of the mean loss on `batch` at `at`. An empty batch stands for all of the node's samples."""

    at: Params
    batch: Arrays
    terms: tuple[Match, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class OutputsAt:
    """The named outputs of the model `at` on `batch`, computed without learning."""

    at: Params
    batch: Arrays
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """Train from `start` as `job` says."""

    start: Params
    job: Job


@dataclass(frozen=True, slots=True, eq=False)
class Forward:
    """Run the Section that `at` names on `inputs`, and remember under `token` what `Backward` needs, in place of
    what a turn that was given up may have left there. With `labels`
    among the inputs, the outputs hold a loss for each logits: `loss` for `logits`, `local/loss` for `local/logits`."""

    at: Params
    token: int
    inputs: Arrays


@dataclass(frozen=True, slots=True, eq=False)
class Backward:
    """Push `gradients` (of the loss by each output) back through the Section as it ran under `token`; forgets it."""

    token: int
    gradients: Arrays


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """Batch number `step` (from 0) of the node's own samples, the same that a Fit with this job would meet there."""

    job: Job
    step: int


Compute = GradientAt | OutputsAt | Fit | Forward | Backward | Draw


@dataclass(frozen=True, slots=True, eq=False)
class Gradient:
    """Mean gradient and mean loss over `num_samples` samples."""

    values: Params
    loss: float
    num_samples: int


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """The model after a fit. `loss` is the mean over all samples seen, as they were met on the way."""

    values: Params
    loss: float
    num_samples: int
    """Of the node, each counted once: its weight in federated averages."""
    num_steps: int


@dataclass(frozen=True, slots=True, eq=False)
class Backprop:
    """Gradients by the Section's parameters, and by its inputs."""

    values: Params
    inputs: Arrays


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A batch (`inputs` and `labels`), and how many more the job has after it."""

    batch: Arrays
    num_left: int
    num_samples: int
    """Of the node, each counted once: its weight in federated averages."""


def loss_of(answer: object) -> tuple[float, int] | None:
    """Mean training loss that an answer of a Trainer tells, and over how many samples."""
    if isinstance(answer, Fitted | Gradient):
        return answer.loss, answer.num_samples
    if isinstance(answer, Mapping) and LOSS in answer and LOGITS in answer:
        return float(answer[LOSS]), len(answer[LOGITS])
    return None
