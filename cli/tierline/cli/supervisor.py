"""A whole hierarchy on this machine: every node its own process, optionally behind emulated links.

    with Fleet(FleetSpec(hierarchy, bundle, sources=...), run_dir) as fleet:
        fleet.kill("device-3")

Nothing outlives the `with` block; and should the supervisor itself be killed, its children notice that the pipe to
their standard input has closed, and stop.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tierline.cli.fleet_files import Addresses, FleetSpec, choose_addresses, safe_name, write_files
from tierline.cli.folders import fresh_run_dir
from tierline.cli.process import Child
from tierline.cli.signals import signals_wait
from tierline.core.bundle import Bundle
from tierline.core.errors import ConfigError, NodeFailed
from tierline.core.plan import place

READY_S = 30.0
GRACE_S = 5.0
_ANSWER_S = 5.0

CommandFactory = Callable[[str, Path], Sequence[str]]
"""(role, configuration file) to the command of a node; role is `cloud` or `edge`."""


def node_command(role: str, file: Path) -> list[str]:
    """The real thing, by the interpreter that runs us."""
    return [sys.executable, "-m", "tierline.cli.main", role, "run", "-c", str(file), "--stop-with-stdin"]


class Relay:
    """The link in front of one parent, while it runs."""

    def __init__(self, child: Child, replies: queue.SimpleQueue[str]) -> None:
        self.child = child
        self._replies = replies

    def ask(self, **order: Any) -> Any:
        """One order: `cut=True`, `cut="silent"`, `restore=True`, `set={"rtt_ms": 80}` or `stats=True`; its reply.

        Raises ConfigError for an order it does not take, NodeFailed when it has ended.
        """
        self.child.write(json.dumps(order))
        try:
            reply = json.loads(self._replies.get(timeout=_ANSWER_S))
        except queue.Empty:
            raise self.child.failure() from None
        if "error" in reply:
            raise ConfigError(f"relay {self.child.name!r}: {reply['error']}")
        return reply


class Fleet:
    """The processes of one hierarchy. Not thread-safe."""

    def __init__(
        self,
        spec: FleetSpec,
        run_dir: Path,
        *,
        command: CommandFactory = node_command,
        on_line: Callable[[str, str], None] | None = None,
        on_ready: Callable[[str], None] | None = None,
    ) -> None:
        """`on_line(node, line)` gets what nodes print beside their ready line, from threads; else it is logged.
        `on_ready(node)` is for showing progress."""
        self.spec = spec
        self.root = spec.root().id
        self.run_dir = run_dir
        self.logs = run_dir / "logs"
        self.relays: dict[str, Relay] = {}
        """By parent; where children of one parent have different links, by `parent/link`."""
        self._command, self._on_line, self._on_ready = command, on_line, on_ready
        self._children: dict[str, Child] = {}
        self._changes: queue.SimpleQueue[Child] = queue.SimpleQueue()
        self._addresses = Addresses({}, {})
        self._files: dict[str, Path] = {}
        self._env = environment()

    def __enter__(self) -> Fleet:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, timeout_s: float = READY_S) -> None:
        """Start all and wait until all are ready.

        Raises PlanError, BundleError or, for a run folder that is used or cannot be written, ConfigError before
        anything starts; NodeFailed for a node that ends early or takes too long; then nothing is left running.
        """
        place(self.spec.hierarchy, Bundle.open(self.spec.bundle).manifest)
        fresh_run_dir(self.run_dir)
        self.logs.mkdir()
        self._addresses = choose_addresses(self.spec)
        self._files = write_files(self.spec, self.run_dir, self._addresses)
        try:
            waiting = [self._start_relay(*key) for key in self._addresses.relays]
            waiting += [self._start_node(node.id) for node in self.spec.hierarchy.nodes]
            self._wait_ready(waiting, timeout_s)
        except BaseException:
            self.stop()
            raise

    def address(self, node: str) -> str:
        """host:port where a node with children listens; the real one, not its relay's."""
        return self._addresses.nodes[node]

    def log(self, node: str) -> Path:
        return self.logs / f"{node}.log"

    def alive(self) -> list[str]:
        """Nodes whose process runs."""
        return [name for name, child in self._children.items() if child.alive()]

    def pids(self) -> dict[str, int]:
        """Process ids of the running nodes."""
        return {name: child.pid for name, child in self._children.items() if child.alive()}

    def kill(self, node: str, number: int = signal.SIGKILL) -> None:
        """Send a signal; for SIGKILL, return when the process is gone."""
        child = self._child(node)
        child.send(number)
        if number == signal.SIGKILL:
            child.wait(GRACE_S)

    def restart(self, node: str, timeout_s: float = READY_S) -> None:
        """End a node if it runs, start it again on its old address, and wait until it is ready."""
        self._end([self._child(node)], GRACE_S)
        self._wait_ready([self._start_node(node)], timeout_s)

    def check(self) -> None:
        """Raise NodeFailed if a node has ended that nobody killed through this object."""
        for child in self._children.values():
            if not child.alive():
                raise child.failure()

    def stop(self, grace_s: float = GRACE_S) -> dict[str, int]:
        """Ask all to stop, end by force who does not; exit codes by node. Does nothing twice.

        `grace_s` is shared by the levels of the hierarchy.
        """
        if not self._children and not self.relays:
            return {}
        nodes = list(self._children.values())
        relays = [relay.child for relay in self.relays.values()]
        try:
            # Children before their parents, so that no node mistakes an orderly end for a lost parent.
            levels = self._levels()
            for level in levels:
                self._end([child for child in nodes if child.name in level], grace_s / len(levels))
            self._end(relays, grace_s)
        except BaseException:
            for child in nodes + relays:
                child.send(signal.SIGKILL)
            raise
        codes = {child.name: child.release() for child in nodes}
        for child in relays:
            child.release()
        self._children.clear()
        self.relays.clear()
        return codes

    def _levels(self) -> list[set[str]]:
        """Node ids by their distance from the root, the farthest first."""
        hierarchy = self.spec.hierarchy
        levels: dict[int, set[str]] = {}
        for node in hierarchy.nodes:
            levels.setdefault(len(hierarchy.path_to_root(node.id)), set()).add(node.id)
        return [levels[distance] for distance in sorted(levels, reverse=True)]

    def _child(self, node: str) -> Child:
        try:
            return self._children[node]
        except KeyError:
            raise ConfigError(f"no node {node!r} was started; there are {', '.join(self._children)}") from None

    def _start_node(self, node: str) -> Child:
        former = self._children.get(node)
        if former:
            former.release()
        command = self._command("cloud" if node == self.root else "edge", self._files[node])
        with signals_wait():
            child = Child(node, command, self.log(node), self._env, on_change=self._changes.put, on_line=self._on_line)
            self._children[node] = child
        return child

    def _start_relay(self, parent: str, link: str) -> Child:
        key = parent if parent not in self.relays else f"{parent}/{link}"
        listen, to = self._addresses.relays[parent, link], self._addresses.nodes[parent]
        command = [sys.executable, "-m", "tierline.cli.relay", "--listen", listen, "--to", to, "--link", link]
        replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        with signals_wait():
            child = Child(
                f"relay to {key}",
                command,
                self.logs / f"relay-{safe_name(key)}.log",
                self._env,
                on_change=self._changes.put,
                on_line=lambda _, line: replies.put(line),
            )
            self.relays[key] = Relay(child, replies)
        return child

    def _wait_ready(self, children: Sequence[Child], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        waiting = set(children)
        while waiting:
            try:
                child = self._changes.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                names = ", ".join(sorted(child.name for child in waiting))
                last = next(iter(waiting)).last_log_line()
                raise NodeFailed(
                    f"not ready after {timeout_s:g} s: {names}{f' ({last})' if last else ''}; see {self.logs}"
                ) from None
            if child not in children:  # an end that was asked for
                continue
            if child.ready is None or not child.alive():
                raise child.failure()
            waiting.discard(child)
            if self._on_ready:
                self._on_ready(child.name)

    def _end(self, children: Sequence[Child], grace_s: float) -> None:
        for child in children:
            child.send(signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        for child in children:
            if not child.wait(deadline - time.monotonic()):
                child.send(signal.SIGKILL)
        for child in children:
            child.wait(GRACE_S)


def environment() -> dict[str, str]:
    """Ours, without overrides of configuration keys: they are meant for one node, not for all of them."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TIERLINE_") or k == "TIERLINE_DATA_DIR"}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
