"""One arm with one seed on processes of this machine: a coordinator and some that hold the workers.

They learn over real connections, and every one keeps a journal; measurements are read from the journals, so a process
that is killed loses none: it is started again, and goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from tierline.cli.experiment.node import NodeSpec
from tierline.cli.experiment.record import digest
from tierline.cli.fleet_files import HOST
from tierline.cli.process import Child
from tierline.cli.supervisor import GRACE_S, READY_S, environment
from tierline.core.arrays import Floats
from tierline.core.errors import ConfigError, NodeFailed
from tierline.core.types import NodeId
from tierline.learning.cast import SERVER
from tierline.learning.driver.journal import JournalReader
from tierline.learning.driver.world import Participants
from tierline.learning.experiment.file import Measure, WorldTable
from tierline.learning.experiment.measure import Measuring
from tierline.learning.experiment.scene import Scene
from tierline.learning.rule import State

COORDINATOR = "coordinator"
_MAX_RESTARTS = 5
"""Of one process that signals ended; whatever ends it more often is no accident."""
_LOOK_S = 0.05


@dataclass(frozen=True)
class Request:
    """Which run of which file."""

    file: Path
    overrides: Sequence[str]
    arm: str
    seed: int

    @property
    def run(self) -> str:
        """Names the run on the wire: another file or setting makes another run."""
        setting = hashlib.sha256("\0".join([digest(self.file), *self.overrides]).encode()).hexdigest()
        return f"{self.arm}/seed {self.seed}/{setting[:12]}"


class Processes:
    """The processes of one run, from entering to leaving; journals stay in `folder`. Raises ConfigError, NodeFailed."""

    def __init__(
        self, stage: Scene, request: Request, folder: Path, *, resume: bool = False, num_hosts: int | None = None
    ) -> None:
        """`num_hosts` processes share the workers; by default as many as there are cores, and two at least."""
        if stage.setting.world != WorldTable():
            raise ConfigError('world: only simulated runs have one; leave it out, or run with "--on simulate"')
        if not resume and folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._stage, self._request, self.folder = stage, request, folder
        num_hosts = min(len(stage.workers), num_hosts or max(2, os.cpu_count() or 1))
        server = [SERVER] if stage.has_server else []
        self._hosted: dict[str, list[NodeId]] = {COORDINATOR: server}
        self._hosted |= {f"host-{i}": list(stage.workers[i::num_hosts]) for i in range(num_hosts)}
        self._address = _free_address()
        self._children: dict[str, Child] = {}
        self._num_restarts = dict.fromkeys(self._hosted, 0)
        self._changes: queue.SimpleQueue[Child] = queue.SimpleQueue()
        self._readers: dict[str, JournalReader] = {}
        self._env = {**environment(), "GRPC_VERBOSITY": "NONE"}

    def __enter__(self) -> Processes:
        try:
            for name in self._hosted:
                self._start(name)
            self._wait_ready()
            self._readers = {name: JournalReader(self._journal(name)) for name in self._hosted}
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def kill(self, name: str) -> None:
        """End a process at once; it is started again while `measure` runs."""
        self._children[name].send(signal.SIGKILL)
        self._children[name].wait(GRACE_S)

    def measure(self, measure: Measure, keeper: Any) -> None:
        """Wait for all rounds, and note every measurement, of round 0 too. Raises NodeFailed."""
        measuring = Measuring(self._stage, measure, list(self._readers.values()))
        while not measuring.is_done:
            due = measuring.next()
            if due is not None:
                for row in measuring.read(due):
                    keeper.note(row)
                continue
            try:
                self._changes.get(timeout=_LOOK_S)
            except queue.Empty:
                continue
            self._revive()

    def rounds(self) -> dict[NodeId, int]:
        """Turns that each node has finished."""
        found = dict.fromkeys(self._stage.rules, 0)
        for reader in self._readers.values():
            found |= reader.rounds()
        return found

    def states(self) -> dict[NodeId, State]:
        """Every node's state as of its last finished turn."""
        found: dict[NodeId, State] = {}
        for reader in self._readers.values():
            found |= reader.states()
        return found

    def participants(self) -> Participants:
        """Whom each wait that time decided had heard."""
        found: dict[Any, frozenset[NodeId]] = {}
        for reader in self._readers.values():
            found |= reader.participants()
        return found

    def models(self) -> dict[NodeId, Floats]:
        """The flat models after the last round, of the nodes whose turns count and whose models are measured."""
        found = {}
        for name, nodes in self._hosted.items():
            for me in nodes:
                flat = self._readers[name].model(me, self._stage.setting.train.rounds)
                if flat is not None and (me == SERVER or not self._stage.is_asynchronous):
                    found[me] = flat
        return found

    def _revive(self) -> None:
        """Start again what a signal has ended. Raises NodeFailed for what ended by itself."""
        for name, child in self._children.items():
            code = child.process.poll()
            if code is None:
                continue
            self._num_restarts[name] += 1
            if code >= 0 or self._num_restarts[name] > _MAX_RESTARTS:
                raise child.failure()
            child.release()
            self._start(name)

    def _start(self, name: str) -> None:
        is_coordinator = name == COORDINATOR
        request = self._request
        spec = NodeSpec(
            file=str(request.file.resolve()),
            overrides=list(request.overrides),
            arm=request.arm,
            seed=request.seed,
            run=request.run,
            name=name,
            nodes=list(self._hosted[name]),
            journal=str(self._journal(name)),
            listen=self._address if is_coordinator else "",
            coordinator="" if is_coordinator else self._address,
        )
        path = self.folder / f"{name}.json"
        path.write_bytes(msgspec.json.encode(spec))
        command = [sys.executable, "-m", "tierline.cli.experiment.node", str(path)]
        log = self.folder / f"{name}.log"
        self._children[name] = Child(name, command, log, self._env, on_change=self._changes.put)

    def _journal(self, name: str) -> Path:
        return self.folder / f"{name}.sqlite"

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while late := [child for child in self._children.values() if child.ready is None]:
            for child in late:
                if not child.alive():
                    raise child.failure()
            if time.monotonic() > deadline:
                names = ", ".join(child.name for child in late)
                raise NodeFailed(f"not ready after {READY_S:g} s: {names}; see {self.folder}")
            with contextlib.suppress(queue.Empty):
                self._changes.get(timeout=_LOOK_S)

    def _stop(self) -> None:
        for reader in self._readers.values():
            reader.close()
        for child in self._children.values():
            child.send(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        for child in self._children.values():
            if not child.wait(deadline - time.monotonic()):
                child.send(signal.SIGKILL)
            child.release()


def _free_address() -> str:
    """A loopback port that is free, and used soon after: the coordinator comes back to it."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        return f"{HOST}:{taken.getsockname()[1]}"
