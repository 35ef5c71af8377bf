"""What an arm with a seed is made of, wherever it runs: data, rules, who talks to whom, and what is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.core.types import Arrays, NodeId
from tierline.learning.cast import SERVER, federation, peers, worker_ids
from tierline.learning.compute import Job
from tierline.learning.driver._near import phases
from tierline.learning.driver.link import Task
from tierline.learning.experiment.file import Arm, Measure, Setting, located
from tierline.learning.rule import Rule, Topology, Trainer

Row = tuple[int, str, float]
"""Round, metric, value."""


class Population(Protocol):
    """The nodes' samples and the model that they share; the one of torch is `models.train.population`."""

    @property
    def start(self) -> Params:
        """Where all begin."""
        ...

    @property
    def trainers(self) -> Mapping[NodeId, Trainer]:
        """Of the workers that compute here."""
        ...

    @property
    def root(self) -> Trainer:
        """Of a server: it has no samples, and runs its Section of a cut model."""
        ...

    def batch(self, node: NodeId, round: int, size: int | None, run: str) -> Arrays:
        """The `round`-th batch of a node; empty, which stands for all its samples, where `size` is None."""
        ...

    def evaluate(self, x: Params) -> dict[str, float]:
        """`test_accuracy` and `test_loss` of a model."""
        ...


def check_rules(arm: Arm, setting: Setting, base: Path) -> None:
    """Raise ConfigError for rules, a topology or a job that cannot be made."""
    _cast(arm, setting, base)
    _job(setting)


@dataclass(frozen=True)
class Scene:
    """All that a driver is given; equal settings and seeds make equal ones."""

    population: Population
    rules: Mapping[NodeId, Rule]
    topology: Topology
    workers: tuple[NodeId, ...]
    draws: str
    """Names the run in all random draws."""
    job: Job
    setting: Setting
    seed: int

    def lr(self, round: int) -> float:
        optimizer = self.setting.train.optimizer
        return optimizer.lr * optimizer.lr_decay**round

    def batch(self, node: NodeId, round: int) -> Arrays:
        return self.population.batch(node, round, self.setting.train.batch_size, self.draws)

    @property
    def trainers(self) -> Mapping[NodeId, Trainer]:
        """By node; a server has no samples, and computes on what is sent to it."""
        return {**self.population.trainers, **({SERVER: self.population.root} if self.has_server else {})}

    @property
    def has_server(self) -> bool:
        return SERVER in self.rules

    @property
    def is_asynchronous(self) -> bool:
        """Its server's turns count, and no others."""
        return next(iter(self.rules.values())).traits.asynchronous

    def is_measured(self, me: NodeId, metrics: Sequence[str]) -> bool:
        """Whether the metrics read the model of this node, whose rule has been started; a worker that keeps no model of
        its own has none to measure."""
        if me == SERVER:
            return True
        of_workers = not self.has_server or {"test_accuracy_worker_mean", "consensus_distance"} & set(metrics)
        return bool(of_workers) and "x" in self.rules[me].state()

    @property
    def until(self) -> dict[NodeId, int | None]:
        """Turns that each node takes; None: as many as the others need."""
        rounds = self.setting.train.rounds
        return {me: rounds if me == SERVER or not self.is_asynchronous else None for me in self.rules}

    def task(self, run: str, measure: Measure, *, reports: bool = False) -> Task:
        """What the nodes of a run over links agree on; `run` names it there."""
        rounds = self.setting.train.rounds

        def shows_model(me: NodeId, round: int) -> bool:
            return (round % measure.every == 0 or round == rounds) and self.is_measured(me, measure.metrics)

        near = phases(self.topology, tuple(self.rules))
        return Task(
            run,
            self.draws,
            near,
            self.lr,
            self.job,
            self.batch,
            max_weight=self.setting.train.max_weight or math.inf,
            shows_model=shows_model,
            reports=reports,
        )

    def model_of(self, models: Mapping[NodeId, Params]) -> Params:
        """The server's model, or the mean of all peers'."""
        return models[SERVER] if self.has_server else _mean_model([models[me] for me in self.workers if me in models])

    def read(
        self, metrics: Sequence[str], round: int, models: Mapping[NodeId, Params], found: Mapping[str, float]
    ) -> list[Row]:
        """Measurements in the order in which the experiment names them. `found` has what the driver counts; a metric
        that does not exist in this round is left out."""
        found, of_workers = dict(found), [models[me] for me in self.workers if me in models]
        mean = self.model_of(models)
        if {"test_accuracy", "test_loss"} & set(metrics):
            found |= self.population.evaluate(mean)
        if of_workers and "test_accuracy_worker_mean" in metrics:
            each = [self.population.evaluate(x)["test_accuracy"] for x in of_workers]
            found["test_accuracy_worker_mean"] = float(np.mean(each))
        if of_workers and "consensus_distance" in metrics:
            found["consensus_distance"] = _distance(of_workers)
        return [(round, metric, found[metric]) for metric in metrics if metric in found]


def compose(
    arm: Arm, setting: Setting, seed: int, base: Path, population: Callable[[Sequence[NodeId]], Population]
) -> Scene:
    """`population` deals the data to the workers named. Raises TierlineError; `base` is where the experiment's own
    files lie."""
    workers = worker_ids(setting.train.num_workers)
    rules, topology = _cast(arm, setting, base)
    return Scene(population(workers), rules, topology, workers, f"seed {seed}", _job(setting), setting, seed)


def _mean_model(models: list[Params]) -> Params:
    total = np.zeros(models[0].flat.shape, np.float64)
    for x in models:
        total += x.flat
    return Params(models[0].layout, (total / len(models)).astype(np.float32), buffers=models[0].buffers)


def _distance(models: list[Params]) -> float:
    mean = _mean_model(models)
    return float(np.sqrt(np.mean([(x - mean).norm() ** 2 for x in models])))


def _cast(arm: Arm, setting: Setting, base: Path) -> tuple[dict[NodeId, Rule], Any]:
    room, named = arm.rule
    options = dict(located(named, base))
    name = options.pop("name")
    if room == "strategy":
        return federation(name, setting.train.num_workers, options), catalog.make("topology", "star")
    table = dict(located(setting.topology, base))
    if "name" not in table:
        raise ConfigError("topology.name: missing; see `tierline algo ls topology`")
    return peers(name, setting.train.num_workers, options), catalog.make("topology", table.pop("name"), **table)


def _job(setting: Setting) -> Job:
    how = setting.train
    return Job(
        epochs=how.epochs,
        num_steps=how.num_steps,
        batch_size=how.batch_size,
        optimizer=how.optimizer.name,
        momentum=how.optimizer.momentum,
        weight_decay=how.optimizer.weight_decay,
        clip_norm=how.clip_norm,
    )
