"""Real fleets for the system tests: the Bundle of the wheel, one process per node, waiting on conditions only."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import make_tiny_bundle

import tierline.cli.supervisor as supervisor
from tierline.cli.fleet_files import FleetSpec
from tierline.cli.supervisor import Fleet
from tierline.cloud.config import PlanKnobs
from tierline.core.bundle import Bundle
from tierline.core.link.ask import ask_status
from tierline.core.link.tls import TlsFiles
from tierline.core.plan import Hierarchy, HierarchyNode, Join
from tierline.core.types import Tier
from tierline.edge.config import SourceConfig

ASSETS = Path(supervisor.__file__).parent / "assets" / "digits"
VIEWS = tuple(f"view-{i}" for i in range(6))
DEADLINE_S = 40.0
"""A condition that takes longer will not come true."""

Record = dict[str, Any]


@dataclass
class World:
    """A running fleet and what its devices have answered so far."""

    fleet: Fleet
    files: Mapping[str, Path]
    tls: TlsFiles | None
    answers: dict[str, list[Record]] = field(default_factory=dict)
    _offsets: dict[str, int] = field(default_factory=dict)

    def read(self) -> dict[str, list[Record]]:
        """All records by view."""
        for view, path in self.files.items():
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(self._offsets.get(view, 0))
                chunk = file.read()
                whole = chunk[: chunk.rfind(b"\n") + 1]
                self._offsets[view] = self._offsets.get(view, 0) + len(whole)
                self.answers.setdefault(view, []).extend(map(json.loads, whole.splitlines()))
        return self.answers

    def news(self, view: str, after: int = 0) -> list[Record]:
        """Records of a view after its first `after`."""
        return self.read().get(view, [])[after:]

    def marks(self) -> dict[str, int]:
        """How many records every view has now."""
        return {view: len(records) for view, records in self.read().items()}

    def status(self) -> dict[str, Any]:
        return asyncio.run(ask_status(self.fleet.address(self.fleet.root), self.tls))

    def until(self, what: str, holds: Callable[[], Any]) -> Any:
        """Wait until `holds()` is true; what it returned."""
        deadline = time.monotonic() + DEADLINE_S
        while not (found := holds()):
            assert time.monotonic() < deadline, f"not within {DEADLINE_S:g} s: {what}; {self.marks()}"
            time.sleep(0.02)
        return found

    def until_answered(self, count: int) -> dict[str, list[Record]]:
        """Wait until every view has so many records."""
        self.until(
            f"{count} answers of every view",
            lambda: all(len(self.read().get(view, ())) >= count for view in self.files),
        )
        return self.answers


Start = Callable[..., contextlib.AbstractContextManager[World]]


def hierarchy(hosts: Sequence[Sequence[str]]) -> Hierarchy:
    """A cloud, an edge node, and one device for each group of views."""
    return Hierarchy(
        (
            HierarchyNode("cloud", Tier.CLOUD),
            HierarchyNode("edge", Tier.EDGE, "cloud"),
            *(HierarchyNode(f"device-{i}", Tier.DEVICE, "edge", tuple(views)) for i, views in enumerate(hosts)),
        )
    )


@contextlib.contextmanager
def start_fleet(
    folder: Path,
    *,
    hosts: Sequence[Sequence[str]] = tuple((view,) for view in VIEWS),
    query: str = "",
    samples: Path = ASSETS / "samples.npz",
    bundle: Path = ASSETS,
    join: Join | None = None,
    thresholds: Mapping[str, float] | None = None,
    in_flight: int = 1,
    tls: bool = False,
    **knobs: Any,
) -> Iterator[World]:
    """Run a Bundle, the wheel's by default; `query` is that of the data set source."""
    files = {view: folder / f"{view}.jsonl" for views in hosts for view in views}
    spec = FleetSpec(
        hierarchy(hosts),
        bundle,
        join=join or Join(by="sequence", window_ms=5000.0),
        plan=PlanKnobs(budget_ms=30_000.0, thresholds=dict(thresholds or {}), **knobs),
        # A device with several views writes one file; tests look at records by their own view.
        sources=[SourceConfig(v, f"dataset:{samples}{query}", in_flight=in_flight) for v in files],
        sinks={f"device-{i}": [f"jsonl:{folder}/device-{i}.jsonl"] for i in range(len(hosts))},
        tls=tls,
    )
    own_files = {f"device-{i}": folder / f"device-{i}.jsonl" for i in range(len(hosts))}
    with Fleet(spec, folder) as fleet:
        yield World(fleet, own_files, TlsFiles.of_state(folder / "state" / "edge") if tls else None)


def tierline(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`tierline ...` as a process of its own; stray settings of this shell do not count."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TIERLINE_")}
    return subprocess.run(
        [sys.executable, "-m", "tierline.cli.main", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**clean, "XDG_STATE_HOME": str(cwd / "xdg"), "XDG_DATA_HOME": str(cwd / "data"), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        timeout=DEADLINE_S,
    )


@pytest.fixture(scope="session")
def start() -> Start:
    return start_fleet


@pytest.fixture(scope="session")
def world_of() -> Callable[[Fleet, Mapping[str, Path]], World]:
    """A World around a fleet of a test's own, with the files of its answers."""

    def wrap(fleet: Fleet, files: Mapping[str, Path]) -> World:
        tls = TlsFiles.of_state(fleet.run_dir / "state" / "edge") if fleet.spec.tls else None
        return World(fleet, files, tls)

    return wrap


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    return tierline


@pytest.fixture(scope="session")
def assets() -> Path:
    return ASSETS


@pytest.fixture(scope="session")
def num_samples() -> int:
    with np.load(ASSETS / "samples.npz") as file:
        return len(file["labels"])


@pytest.fixture(scope="module")
def live(start: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cloud, an edge node, one busy device, and room below the edge node for `device-1` and its `view-1`."""
    folder = tmp_path_factory.mktemp("live")
    with start(folder, hosts=(("view-0",), ("view-1",)), query="?loop=true&rate=100") as world:
        world.until_answered(5)
        world.fleet.kill("device-1")
        yield world


@pytest.fixture
def undisturbed(live: Any) -> Iterator[None]:
    """Whatever happens in the test, the other device keeps its connection and its whole answers."""
    before = len(live.news("device-0"))
    pids = live.fleet.pids()
    yield
    mark = len(live.news("device-0"))
    live.until("answers of the other device", lambda: len(live.news("device-0", mark)) >= 10)
    assert not [r for r in live.news("device-0", before) if r["degraded"]]
    assert live.fleet.pids() == pids


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Other weights, so that a sample that met two Plans would be seen; other cuts, so that Sections move."""
    folder = tmp_path_factory.mktemp("bundles")
    device, edge, cloud = Tier.DEVICE, Tier.EDGE, Tier.CLOUD
    return [
        make_tiny_bundle(folder / "a"),
        make_tiny_bundle(folder / "b", seed=8, tiers=(device, cloud, cloud), aggregator="max_pool"),
        make_tiny_bundle(folder / "c", seed=9, tiers=(device, edge, edge), num_relu=10),
    ]
