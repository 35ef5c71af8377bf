"""The experiment file: what all arms share, and what each changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from tierline.core import config
from tierline.core.catalog import nearest
from tierline.core.errors import ConfigError

PREFIX = "TIERLINE_EXPERIMENT"
"""Of environment variables that override a key: `TIERLINE_EXPERIMENT_TRAIN_ROUNDS=3`."""

Table = dict[str, Any]
"""`name` of an algorithm, and its options."""

Count = Annotated[int, msgspec.Meta(ge=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Amount = Annotated[float, msgspec.Meta(ge=0)]
Choices = Annotated[list[int | float | str | bool], msgspec.Meta(min_length=1)]

METRICS = (
    "test_accuracy",
    "test_loss",
    "test_accuracy_worker_mean",
    "consensus_distance",
    "train_loss",
    "num_messages",
    "num_bytes",
    "num_late",
    "virtual_time_s",
)
"""`test_*` of the server's model, or of the mean of all peers'; `consensus_distance` is the root mean square distance
of the workers' models from their mean, where they keep one; messages, bytes, updates too late for their round and time
count from the start."""

SHARED = ("data", "model", "train", "topology", "world")
"""Tables that an arm may change."""


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    partition: Table = msgspec.field(default_factory=lambda: {"name": "iid"})
    train_on: Literal["train", "train+validation"] = "train"
    """The test split is always the data set's own."""


class OptimizerTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Literal["sgd", "adam"] = "sgd"
    lr: Amount = 0.1
    lr_decay: Positive = 1.0
    """Factor of the learning rate from round to round."""
    momentum: Amount = 0.0
    weight_decay: Amount = 0.0


class Train(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    num_workers: Count
    rounds: Count
    """Turns of every node; of an asynchronous strategy: steps of its server."""
    epochs: Count = 1
    """Passes over its own samples that a worker makes in a round."""
    num_steps: Count | None = None
    """Batches per round instead of epochs."""
    batch_size: Count | None = None
    """None: all samples of the worker at once."""
    clip_norm: Positive | None = None
    max_weight: Positive | None = None
    """Of one worker in a weighted sum, as a rule its samples: over links a part that claims more is refused."""
    optimizer: OptimizerTable = OptimizerTable()
    seeds: Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: [0]
    )


class WorldTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Virtual time; the model learns the same whatever stands here, unless a rule goes on without the late."""

    compute_s: Amount = 0.0
    """Of one batch."""
    slow_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """So many of the workers, the first, take `slow_factor` as long."""
    slow_factor: Positive = 1.0
    latency_s: Amount = 0.0
    mbit: Amount = 0.0
    """Of every direction of every edge; 0: without limit."""
    loss: Amount = 0.0


class Measure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    every: Count = 1
    """Rounds."""
    metrics: list[str] = msgspec.field(default_factory=lambda: ["test_accuracy", "train_loss", "num_bytes"])
    target: float | None = None
    """The first round whose test accuracy reaches it is told as `rounds_to_target`."""


class Search(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Values that each arm tries before it runs; see `search`."""

    seed: Annotated[int, msgspec.Meta(ge=0)]
    """Of the trials; none of `train.seeds`."""
    values: dict[str, Choices] = {}
    """By key of an arm, such as `train.optimizer.lr`; all combinations are tried."""
    rounds: Count | None = None
    """Of a trial; as many as the arm's without it."""


class Fleet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Read by `--on fleet` only."""

    nodes: list[str] = []
    """Who holds the workers, which are dealt round; empty: all nodes that can learn, in the hierarchy's order."""


class Arm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    strategy: Table | None = None
    gossip: Table | None = None
    data: Table = {}
    model: Table = {}
    train: Table = {}
    topology: Table = {}
    world: Table = {}
    search: dict[str, Choices] | None = None
    """What it tries instead of `search.values`; nothing where it is empty."""

    @property
    def rule(self) -> tuple[str, Table]:
        """Room of its rule, and the table that names it."""
        return ("strategy", self.strategy) if self.strategy is not None else ("gossip", self.gossip or {})


class Expectation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    claim: str
    """`ARM > ARM`, or a number on either side; also `>=`, `<`, `<=`, `==`."""
    source: str = ""
    metric: str = "test_accuracy"
    """Of the last measurement; or `best_test_accuracy`, `rounds_to_target`."""
    margin: Amount = 0.0
    """`>` and `<` hold by more than this; `==` holds within it."""
    not_comparable: str = ""
    """Why the claim is not about what runs here; it is then shown, not judged."""


class Experiment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    name: str
    data: Data
    model: Table
    train: Train
    arm: Annotated[list[Arm], msgspec.Meta(min_length=1)]
    topology: Table = msgspec.field(default_factory=lambda: {"name": "ring"})
    """Of arms with a gossip rule; a strategy's is a star."""
    world: WorldTable = WorldTable()
    measure: Measure = Measure()
    search: Search | None = None
    fleet: Fleet = Fleet()
    expect: list[Expectation] = []


class Setting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one arm runs with."""

    data: Data
    model: Table
    train: Train
    topology: Table
    world: WorldTable


def read(path: Path, overrides: list[str]) -> tuple[Experiment, dict[str, Setting]]:
    """The file, and what each arm runs with. Raises ConfigError."""
    loaded = config.load(path, Experiment, overrides=overrides, prefix=PREFIX)
    _check(loaded.value, path.name)
    return loaded.value, settings_of(loaded.value, path.name)


def parse(table: Mapping[str, Any], name: str) -> Experiment:
    """An experiment that is no file, such as one that was sent. Raises ConfigError; `name` stands for it there."""
    experiment = config.convert(table, Experiment, name)
    _check(experiment, name)
    return experiment


def settings_of(experiment: Experiment, name: str) -> dict[str, Setting]:
    """What each arm runs with. Raises ConfigError."""
    shared = {key: value for key, value in msgspec.to_builtins(experiment).items() if key in SHARED}
    settings = {}
    for index, arm in enumerate(experiment.arm):
        changes = {key: value for key, value in msgspec.to_builtins(arm).items() if key in SHARED}
        settings[arm.id] = config.convert(_merge(shared, changes), Setting, f"{name}: arm[{index}]")
    return settings


def located(table: Table, base: Path) -> Table:
    """A table whose `name`, if it is a user's own file, is meant from the folder `base`."""
    name = table.get("name", "")
    return table | {"name": config.absolute(name, base)} if str(name).endswith(".py") else table


def _check(experiment: Experiment, name: str) -> None:
    ids = [arm.id for arm in experiment.arm]
    for index, arm in enumerate(experiment.arm):
        if ids.index(arm.id) != index:
            raise ConfigError(f"{name}: arm[{index}].id = {arm.id!r}: an earlier arm has this id; give it another")
        if not arm.id or not all(c.isalnum() or c in "-_." for c in arm.id) or arm.id[0] == ".":
            raise ConfigError(f"{name}: arm[{index}].id = {arm.id!r}: letters, digits, '-', '_' and '.' only")
        if (arm.strategy is None) == (arm.gossip is None):
            raise ConfigError(f"{name}: arm[{index}]: write either strategy = {{name = ...}} or gossip = ...")
        if not isinstance(arm.rule[1].get("name"), str):
            raise ConfigError(f"{name}: arm[{index}].{arm.rule[0]}.name: missing; name a rule of that room")
    for key, table in (("model", experiment.model), ("data.partition", experiment.data.partition)):
        if not isinstance(table.get("name"), str):
            raise ConfigError(f"{name}: {key}.name: missing; see `tierline algo ls {key.rpartition('.')[2]}`")
    for metric in experiment.measure.metrics:
        if metric not in METRICS:
            raise ConfigError(f"{name}: measure.metrics: no metric {metric!r}{nearest(metric, METRICS)}")


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`; a table that names another algorithm is replaced whole, since its options go with it."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and value.get("name") in (None, old.get("name")):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged
