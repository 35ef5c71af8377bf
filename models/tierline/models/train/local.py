"""The Trainer in torch: one node's samples, and a model that many nodes of one process may share.

Everything follows from the arguments: the order of samples and the model's own draws from the job's key, sums from one
thread. The optimisers work on the whole model as one vector.
SGD:   m <- momentum m + g;  x <- x - lr m
Adam:  Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, Algorithm 1.
Status: checked (against torch.optim, step by step; the proximal term and corrections against their formulas).

Shapes: S samples of the node, B of one batch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss, softmax

from tierline.core.arrays import Params
from tierline.core.errors import DataError, ShapeMismatch
from tierline.core.rng import Key
from tierline.core.types import Array, Arrays
from tierline.learning.compute import INPUTS, LABELS, LOGITS, Drawn, Fitted, Gradient, Job, Match
from tierline.learning.errors import RuleError
from tierline.models.train.flat import FlatModel, to_arrays, to_tensor
from tierline.models.train.tape import Loss, Tape
from tierline.models.train.torch_process import one_thread

_CHUNK = 1024
"""Samples that go through the model at once; gradients of larger batches add up over chunks."""

_ADAM_1, _ADAM_2, _ADAM_EPS = 0.9, 0.999, 1e-8


class LocalTrainer(Tape):
    """Computes on the samples `rows` of `inputs` (S, ...) and `labels` (S, ...); all of them where `rows` is None.
    A node without samples runs Sections on what others send."""

    def __init__(
        self, model: FlatModel, inputs: Tensor, labels: Tensor, rows: Array | None = None, *, loss: Loss = cross_entropy
    ) -> None:
        super().__init__(model, loss)
        self._inputs, self._labels = inputs, labels
        self._rows = torch.arange(len(labels)) if rows is None else torch.from_numpy(np.asarray(rows, np.int64))
        if len(inputs) != len(labels):
            raise DataError(f"trainer: {len(inputs)} inputs and {len(labels)} labels")

    @property
    def num_samples(self) -> int:
        return len(self._rows)

    def gradient(self, at: Params, batch: Arrays, terms: tuple[Match, ...] = ()) -> Gradient:
        """See `learning.compute.GradientAt`; the batch holds `inputs` and `labels`. Raises ShapeMismatch."""
        if not batch:
            self._need_samples()
            inputs, labels = self._inputs[self._rows], self._labels[self._rows]
        else:
            inputs, labels = to_tensor(_need(batch, INPUTS)), to_tensor(_need(batch, LABELS))
        self._model.load(at)
        with one_thread():
            loss = self._differentiate(inputs, labels, terms, torch.arange(len(labels)))
        return Gradient(self._model.params(self._model.grads), loss, len(labels))

    def outputs(self, at: Params, batch: Arrays, names: tuple[str, ...]) -> Arrays:
        """See `learning.compute.OutputsAt`. Raises RuleError for an output that the model does not have."""
        inputs = to_tensor(_need(batch, INPUTS)) if batch else self._inputs[self._rows]
        return outputs_of(self._model, at, inputs, names)

    def fit(self, start: Params, job: Job) -> Fitted:
        """See `learning.compute.Job`. Raises ShapeMismatch, and DataError where the loss is not finite any more."""
        self._need_samples()
        model = self._model
        model.load(start)
        first = model.values.clone() if job.proximal else None
        correction = to_tensor(job.correction.flat) if job.correction is not None else None
        step = _adam(model, job) if job.optimizer == "adam" else _sgd(model, job)
        total, num_seen, num_steps = 0.0, 0, 0
        with one_thread(), _seeded(job.key):
            for places in self._batches(job):
                rows = self._rows[places]
                loss = self._differentiate(self._inputs[rows], self._labels[rows], job.terms, places)
                if not math.isfinite(loss):
                    raise DataError(f"trainer: the loss is {loss} after {num_steps} steps; a smaller lr may help")
                _clip(model.grads, job.clip_norm)
                if job.weight_decay:
                    model.grads.add_(model.values, alpha=job.weight_decay)
                if first is not None:
                    model.grads.add_(model.values - first, alpha=job.proximal)
                if correction is not None:
                    model.grads.add_(correction)
                step()
                total += loss * len(places)
                num_seen += len(places)
                num_steps += 1
        return Fitted(model.read(), total / num_seen, self.num_samples, num_steps)

    def draw(self, job: Job, step: int) -> Drawn:
        """See `learning.compute.Draw`. Raises RuleError for a step that the job does not have."""
        self._need_samples()
        size = min(job.batch_size or self.num_samples, self.num_samples)
        per_epoch = -(-self.num_samples // size)
        num_steps = job.num_steps or job.epochs * per_epoch
        if not 0 <= step < num_steps:
            raise RuleError(f"draw: step {step} of a job of {num_steps}")
        epoch, place = divmod(step, per_epoch)
        rows = self._rows[self._order(job, epoch)[place * size : (place + 1) * size]]
        batch = to_arrays({INPUTS: self._inputs[rows], LABELS: self._labels[rows]})
        return Drawn(batch, num_steps - 1 - step, self.num_samples)

    def _differentiate(self, inputs: Tensor, labels: Tensor, terms: tuple[Match, ...], places: Tensor) -> float:
        """Leave the gradient of the mean loss in the model's buffer; returns the loss. `places` are rows of targets."""
        model = self._model
        model.module.train()
        model.grads.zero_()
        total = 0.0
        for rows in torch.split(torch.arange(len(labels)), _CHUNK):
            share = len(rows) / len(labels)
            whole = len(rows) == len(labels)
            outputs = model.outputs({INPUTS: inputs if whole else inputs[rows]})
            loss = self._loss(outputs[LOGITS], labels if whole else labels[rows])
            for term in terms:
                loss = loss + _distance(term, outputs, places[rows])
            torch.autograd.backward(loss if whole else share * loss)
            total += share * loss.item()
        return total

    def _batches(self, job: Job) -> Iterator[Tensor]:
        """Places of samples in the order of training, one tensor per step."""
        size = min(job.batch_size or self.num_samples, self.num_samples)
        left = job.num_steps
        epoch = 0
        while epoch < job.epochs if left is None else left > 0:
            batches = torch.split(self._order(job, epoch), size)[:left]
            yield from batches
            left = None if left is None else left - len(batches)
            epoch += 1

    def _order(self, job: Job, epoch: int) -> Tensor:
        return torch.from_numpy(job.key.child(f"epoch {epoch}").permutation(self.num_samples))

    def _need_samples(self) -> None:
        if self.num_samples == 0:
            raise DataError("trainer: this node has 0 samples of its own")


@torch.no_grad()
def outputs_of(model: FlatModel, at: Params, inputs: Tensor, names: tuple[str, ...]) -> Arrays:
    """Named outputs of the model `at`, without learning. Raises RuleError for one that it does not have."""
    model.load(at)
    model.module.eval()
    parts: list[dict[str, Tensor]] = []
    with one_thread():
        for rows in torch.split(inputs, _CHUNK):
            outputs = model.outputs({INPUTS: rows})
            missing = set(names) - outputs.keys()
            if missing:
                raise RuleError(f"outputs: the model has no {', '.join(sorted(missing))}; it has {', '.join(outputs)}")
            parts.append({name: outputs[name] for name in names})
    return to_arrays({name: torch.cat([part[name] for part in parts]) for name in names})


def _distance(term: Match, outputs: Mapping[str, Tensor], rows: Tensor) -> Tensor:
    if term.output not in outputs:
        raise RuleError(f"match: the model has no output {term.output!r}; it has {', '.join(outputs)}")
    output, target = outputs[term.output], to_tensor(term.target[rows.numpy()])
    if target.shape != output.shape:
        raise ShapeMismatch(
            f"match: the target of {term.output!r} is {list(target.shape)}, the output {list(output.shape)}"
        )
    if term.distance == "squared":
        return term.weight * mse_loss(output, target)
    return term.weight * kl_div(log_softmax(output, 1), softmax(target, 1), reduction="batchmean")


def _sgd(model: FlatModel, job: Job) -> Callable[[], None]:
    velocity = torch.zeros_like(model.values) if job.momentum else None

    def step() -> None:
        if velocity is None:
            model.values.add_(model.grads, alpha=-job.lr)
        else:
            velocity.mul_(job.momentum).add_(model.grads)
            model.values.add_(velocity, alpha=-job.lr)

    return step


def _adam(model: FlatModel, job: Job) -> Callable[[], None]:
    m, v = torch.zeros_like(model.values), torch.zeros_like(model.values)
    num_steps = 0

    def step() -> None:
        nonlocal num_steps
        num_steps += 1
        m.mul_(_ADAM_1).add_(model.grads, alpha=1 - _ADAM_1)
        v.mul_(_ADAM_2).addcmul_(model.grads, model.grads, value=1 - _ADAM_2)
        scale = math.sqrt(1 - _ADAM_2**num_steps)
        model.values.addcdiv_(m, v.sqrt().div_(scale).add_(_ADAM_EPS), value=-job.lr / (1 - _ADAM_1**num_steps))

    return step


def _clip(grads: Tensor, longest: float | None) -> None:
    if longest is not None:
        norm = float(grads.norm())
        if norm > longest:
            grads.mul_(longest / norm)


@contextmanager
def _seeded(key: Key) -> Iterator[None]:
    """torch's own generator, for dropout and the like, seeded for the time of a fit."""
    with torch.random.fork_rng(devices=[]):
        low, high = key.child("torch").bits(2).tolist()
        torch.manual_seed(high << 32 | low)
        yield


def _need(batch: Arrays, name: str) -> Array:
    if name not in batch:
        raise ShapeMismatch(f"trainer: a batch needs {name!r}; it holds {', '.join(sorted(batch)) or 'nothing'}")
    return batch[name]
