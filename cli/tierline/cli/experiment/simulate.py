"""One arm with one seed, in memory and virtual time: rounds in, measurements out."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tierline.cli.experiment.file import Arm, Measure, Setting, WorldTable, located
from tierline.cli.experiment.record import Row
from tierline.core import catalog
from tierline.core.arrays import Params
from tierline.core.errors import ConfigError
from tierline.core.types import NodeId
from tierline.learning.cast import SERVER, federation, peers, worker_ids
from tierline.learning.compute import Fitted, Gradient, Job
from tierline.learning.driver.memory import Memory
from tierline.learning.driver.world import LinkSpec, World
from tierline.learning.rule import Rule, State
from tierline.models.data.dataset import Dataset
from tierline.models.train.population import Population

_SAVE_EVERY_S = 60.0
"""Between two checkpoints; what a killed run loses at most."""


class Keeper(Protocol):
    """Where measurements and checkpoints go."""

    def note(self, row: Row) -> None: ...

    def save(self, round: int, states: Mapping[NodeId, State], so_far: Mapping[str, float]) -> None: ...

    def saved(self, nodes: Iterable[NodeId]) -> tuple[int, dict[NodeId, State], dict[str, float]] | None: ...


def check(arm: Arm, setting: Setting, base: Path) -> None:
    """Raise ConfigError for what can be known to be wrong before any data is read."""
    _cast(arm, setting, base)
    _job(setting)
    partition = dict(located(setting.data.partition, base))
    catalog.make("partition", partition.pop("name"), **partition)
    catalog.load("model", located(setting.model, base)["name"])


def simulate(
    arm: Arm, setting: Setting, seed: int, measure: Measure, dataset: Dataset, base: Path, keeper: Keeper
) -> None:
    """Run all rounds and note every measurement, of round 0 too; go on from a checkpoint where there is one. A rule
    without common rounds leaves none. Raises TierlineError; `base` is where the experiment's own files lie."""
    how = setting.train
    workers = worker_ids(how.num_workers)
    population = Population(
        dataset,
        workers,
        partition=located(setting.data.partition, base),
        model=located(setting.model, base),
        seed=seed,
        with_validation=setting.data.train_on == "train+validation",
    )
    rules, topology = _cast(arm, setting, base)
    run = f"seed {seed}"
    losses = _Losses()
    driver = Memory(
        rules,
        population.trainers,
        topology,
        population.start,
        lr=lambda round: how.optimizer.lr * how.optimizer.lr_decay**round,
        batches=lambda node, round: population.batch(node, round, how.batch_size, run),
        job=_job(setting),
        world=_world(setting.world, workers, seed),
        run=run,
        watch=losses.watch,
    )
    gauge = _Gauge(population, rules, workers, driver, measure.metrics)
    server_counts = next(iter(rules.values())).traits.asynchronous
    found = keeper.saved(rules)
    if found:
        done, states, gauge.before = found
        driver.restore(states, round=done)
    else:
        done = 0
        for row in gauge.read(0, None):
            keeper.note(row)
    saved_at = time.monotonic()
    for round in range(done + 1, how.rounds + 1):
        driver.run(round, of=[SERVER] if server_counts else None)
        if round % measure.every and round < how.rounds:
            continue
        for row in gauge.read(round, losses.take()):
            keeper.note(row)
        if not server_counts and round < how.rounds and time.monotonic() - saved_at > _SAVE_EVERY_S:
            keeper.save(round, driver.states(), gauge.so_far())
            saved_at = time.monotonic()


class _Losses:
    """Mean training loss over all samples that were computed on since the last look."""

    def __init__(self) -> None:
        self._total = self._weight = 0.0

    def watch(self, node: NodeId, round: int, answer: object) -> None:
        if isinstance(answer, Fitted | Gradient):
            self._total += answer.loss * answer.num_samples
            self._weight += answer.num_samples

    def take(self) -> float | None:
        mean = self._total / self._weight if self._weight else None
        self._total = self._weight = 0.0
        return mean


class _Gauge:
    """Reads the metrics that were asked for."""

    def __init__(
        self,
        population: Population,
        rules: Mapping[NodeId, Rule],
        workers: Collection[NodeId],
        driver: Memory,
        metrics: Collection[str],
    ) -> None:
        self._population, self._driver, self._metrics = population, driver, metrics
        self._server = rules.get(SERVER)
        # A worker that keeps no model of its own has none to measure.
        self._workers = [rules[me] for me in workers if "x" in rules[me].state()]
        self.before: Mapping[str, float] = {}
        """Counts up to the checkpoint that the run went on from."""

    def so_far(self) -> dict[str, float]:
        """Messages, bytes and virtual time since the start."""
        counts = self._driver.counts
        driven = {
            "num_messages": counts.num_messages,
            "num_bytes": counts.num_bytes,
            "virtual_time_s": self._driver.time_s,
        }
        return {key: value + self.before.get(key, 0) for key, value in driven.items()}

    def read(self, round: int, loss: float | None) -> list[Row]:
        """In the order in which the experiment names them; a metric that does not exist in this round is left out."""
        found = self.so_far()
        if loss is not None:
            found["train_loss"] = loss
        mean = _mean_model([rule.x for rule in self._workers]) if self._server is None else self._server.x
        if {"test_accuracy", "test_loss"} & set(self._metrics):
            found |= self._population.evaluate(mean)
        if self._workers and "test_accuracy_worker_mean" in self._metrics:
            each = [self._population.evaluate(rule.x)["test_accuracy"] for rule in self._workers]
            found["test_accuracy_worker_mean"] = float(np.mean(each))
        if self._workers and "consensus_distance" in self._metrics:
            found["consensus_distance"] = _distance([rule.x for rule in self._workers])
        return [(round, metric, found[metric]) for metric in self._metrics if metric in found]


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


def _world(table: WorldTable, workers: Collection[NodeId], seed: int) -> World:
    slow = list(workers)[: round(table.slow_share * len(workers))]
    return World(
        compute_s=table.compute_s,
        compute_of=dict.fromkeys(slow, table.compute_s * table.slow_factor),
        link=LinkSpec(table.latency_s, table.mbit * 1e6),
        loss=table.loss,
        seed=seed,
    )
