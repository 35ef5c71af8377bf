"""One arm with one seed, in memory and virtual time: rounds in, measurements out."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol

from tierline.core.types import NodeId
from tierline.learning.cast import SERVER
from tierline.learning.compute import loss_of
from tierline.learning.driver.memory import Memory
from tierline.learning.driver.world import LinkSpec, Participants, World
from tierline.learning.experiment.file import Measure, WorldTable
from tierline.learning.experiment.scene import Row, Scene
from tierline.learning.rule import Rule, State

_SAVE_EVERY_S = 60.0
"""Between two checkpoints; what a killed run loses at most."""


class Keeper(Protocol):
    """Where measurements and checkpoints go."""

    def note(self, row: Row) -> None: ...

    def save(self, round: int, states: Mapping[NodeId, State], so_far: Mapping[str, float]) -> None: ...

    def saved(self, nodes: Iterable[NodeId]) -> tuple[int, dict[NodeId, State], dict[str, float]] | None: ...


def simulate(
    stage: Scene, measure: Measure, keeper: Keeper, replay: Participants | None = None
) -> Mapping[NodeId, Rule]:
    """Run all rounds and note every measurement, of round 0 too; go on from a checkpoint where there is one. A rule
    without common rounds leaves none. Returns the rules as they stand at the end. Raises TierlineError. With `replay`
    those take part who did so in an earlier run."""
    setting = stage.setting
    losses = _Losses()
    driver = Memory(
        stage.rules,
        stage.trainers,
        stage.topology,
        stage.population.start,
        lr=stage.lr,
        batches=stage.batch,
        job=stage.job,
        world=_world(setting.world, stage.workers, stage.seed),
        run=stage.draws,
        watch=losses.watch,
        replay=replay,
    )
    measured = [me for me in stage.rules if stage.is_measured(me, measure.metrics)]
    before: Mapping[str, float] = {}

    def so_far() -> dict[str, float]:
        """Messages, bytes and virtual time since the start, before the checkpoint too."""
        counts = driver.counts
        driven = {
            "num_messages": counts.num_messages,
            "num_bytes": counts.num_bytes,
            "num_late": counts.num_late,
            "virtual_time_s": driver.time_s,
        }
        return {key: value + before.get(key, 0) for key, value in driven.items()}

    def note(round: int, loss: float | None) -> None:
        models = {me: stage.rules[me].x for me in measured}
        found = so_far() if loss is None else so_far() | {"train_loss": loss}
        for row in stage.read(measure.metrics, round, models, found):
            keeper.note(row)

    found = keeper.saved(stage.rules)
    if found:
        done, states, before = found
        driver.restore(states, round=done)
    else:
        done = 0
        note(0, None)
    saved_at = time.monotonic()
    rounds = setting.train.rounds
    for round in range(done + 1, rounds + 1):
        driver.run(round, of=[SERVER] if stage.is_asynchronous else None)
        if round % measure.every and round < rounds:
            continue
        note(round, losses.take())
        if not stage.is_asynchronous and round < rounds and time.monotonic() - saved_at > _SAVE_EVERY_S:
            keeper.save(round, driver.states(), so_far())
            saved_at = time.monotonic()
    return stage.rules


class _Losses:
    """Mean training loss over all samples that were computed on since the last look."""

    def __init__(self) -> None:
        self._total = self._weight = 0.0

    def watch(self, node: NodeId, round: int, answer: object) -> None:
        told = loss_of(answer)
        if told is not None:
            loss, num_samples = told
            self._total += loss * num_samples
            self._weight += num_samples

    def take(self) -> float | None:
        mean = self._total / self._weight if self._weight else None
        self._total = self._weight = 0.0
        return mean


def _world(table: WorldTable, workers: Collection[NodeId], seed: int) -> World:
    slow = list(workers)[: round(table.slow_share * len(workers))]
    return World(
        compute_s=table.compute_s,
        compute_of=dict.fromkeys(slow, table.compute_s * table.slow_factor),
        link=LinkSpec(table.latency_s, table.mbit * 1e6),
        loss=table.loss,
        seed=seed,
    )
