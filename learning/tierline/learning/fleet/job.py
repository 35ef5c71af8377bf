"""A job: one arm of an experiment with one seed, and which node of the fleet plays whom. Written as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tierline.core.errors import BadFrame, ConfigError, NodeFailed, TierlineError
from tierline.learning.cast import SERVER, worker_ids
from tierline.learning.experiment.file import Arm, Experiment, Setting, WorldTable, parse, settings_of

NO_FOLDER = Path("/nonexistent")
"""A job names no files: whatever it runs is part of tierline, or in the configuration of the node."""

_OF_FILES = ("/", "\\", "~")


class Job(msgspec.Struct, frozen=True):
    """What all nodes are told about one run."""

    id: int
    run: str
    """Names it in letters and journals; no two jobs have the same."""
    experiment: Experiment
    arm: str
    seed: int
    seats: dict[str, str]
    """Node of the fleet by node of the run."""
    max_letter_bytes: int

    @property
    def its_arm(self) -> Arm:
        return next(arm for arm in self.experiment.arm if arm.id == self.arm)

    @property
    def setting(self) -> Setting:
        return settings_of(self.experiment, f"job {self.id}")[self.arm]


class Notice(msgspec.Struct, frozen=True):
    """What a parent tells its children."""

    job: Job | None = None
    """The one that is under way."""
    ended: tuple[str, ...] = ()
    """Runs that will not go on: their journals can go."""


def notice_to_bytes(notice: Notice) -> bytes:
    return msgspec.json.encode(notice)


def notice_from_bytes(raw: bytes) -> Notice:
    """Raises BadFrame; ConfigError for a job that names files, or that this version does not know."""
    try:
        notice = msgspec.json.decode(raw, type=Notice)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadFrame(f"jobs: {error}; install matching versions of tierline") from error
    if notice.job is not None:
        check_portable(notice.job.experiment, notice.job.arm)
    return notice


def read_request(document: Mapping[str, Any]) -> tuple[Experiment, str, int]:
    """Experiment, arm and seed that somebody submits. Raises ConfigError."""
    table, arm, seed = document.get("experiment"), document.get("arm"), document.get("seed")
    if not isinstance(table, dict) or not isinstance(arm, str) or not isinstance(seed, int) or seed < 0:
        raise ConfigError("job: needs an experiment, the id of an arm, and a seed")
    experiment = parse(table, "job")
    check_portable(experiment, arm)
    return experiment, arm, seed


def check_portable(experiment: Experiment, arm: str) -> None:
    """Raise ConfigError for what a fleet does not run: files, virtual worlds, an arm that is not there."""
    if arm not in [known.id for known in experiment.arm]:
        raise ConfigError(f"job: the experiment has no arm {arm!r}")
    setting = settings_of(experiment, "job")[arm]
    its_arm = next(known for known in experiment.arm if known.id == arm)
    for word in _words([msgspec.to_builtins(setting), its_arm.rule[1]]):
        if word.endswith(".py") or any(mark in word for mark in _OF_FILES):
            raise ConfigError(
                f"{word!r}: a fleet runs what comes with tierline, by its name, and no files; data of a node's own is "
                "named in its agent.toml, [learn] data"
            )
    if setting.world != WorldTable():
        raise ConfigError('world: only simulated runs have one; leave it out, or run with "--on simulate"')


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _words(each)
    elif isinstance(value, Sequence):
        for each in value:
            yield from _words(each)


def seats_for(
    setting: Setting, arm: Arm, named: Sequence[str], nodes: Sequence[str], able: Mapping[str, bool], root: str
) -> dict[str, str]:
    """Who plays whom. `named` are the nodes that the file wants, else all that can learn but the root; `nodes` are all
    of the hierarchy, `able` says of those that have spoken whether they can learn. Workers are dealt round.

    Raises ConfigError for a name that is no node, NodeFailed where nobody can learn.
    """
    for node in named:
        if node not in nodes:
            raise ConfigError(f"fleet.nodes: the hierarchy has no node {node!r}; it has {', '.join(nodes)}")
        if not able.get(node, True):
            raise NodeFailed(f'node {node!r} cannot learn; write [learn] trainer = "torch" into its agent.toml')
    hosts = list(named) or [node for node in nodes if able.get(node) and node != root]
    if not hosts:
        raise NodeFailed('no node can learn; write [learn] trainer = "torch" into an agent.toml, and start that node')
    workers = worker_ids(setting.train.num_workers)
    seats: dict[str, str] = {SERVER: root} if arm.strategy is not None else {}
    for place, me in enumerate(workers):
        seats[me] = hosts[place % len(hosts)]
    return seats


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).splitlines())
    return text if isinstance(error, TierlineError) else f"{type(error).__name__}: {text}"
