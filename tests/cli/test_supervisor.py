"""The supervisor, with small scripts standing in for nodes: real processes, no timing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tierline.cli.fleet_files import FleetSpec
from tierline.cli.supervisor import Fleet
from tierline.cloud.config import PlanKnobs, load_cloud
from tierline.cloud.hierarchy import load_hierarchy
from tierline.core.bundle import Bundle, Exit, Level, Manifest, Preprocess, Section, Tensor, write_bundle
from tierline.core.errors import ConfigError, NodeFailed, PlanError
from tierline.core.link.tls import check_files
from tierline.core.plan import Hierarchy, HierarchyNode, Join
from tierline.core.types import Tier
from tierline.edge.config import SourceConfig, load_agent

HIERARCHY = Hierarchy(
    (
        HierarchyNode("cloud", Tier.CLOUD),
        HierarchyNode("edge", Tier.EDGE, "cloud"),
        HierarchyNode("device-0", Tier.DEVICE, "edge", ("v0",)),
        HierarchyNode("device-1", Tier.DEVICE, "edge", ("v1",)),
    )
)

SOURCES = [SourceConfig(view, "api:") for view in ("v0", "v1")]

READY = 'print(json.dumps({"event": "ready", "node": node}), flush=True)\n'
WAIT = "sys.stdin.read()\n"
STOP = "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
HEAD = "import json, os, sys, time; node = os.path.basename(sys.argv[1])[:-5]\n"
WELL = STOP + READY + WAIT


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    tensor = Tensor("float32", (4,))

    def section(name: str) -> Section:
        return Section(name, "x.onnx", {"image": tensor}, {"logits": tensor})

    levels = [
        Level(Tier.DEVICE, {view: section(view) for view in ("v0", "v1")}, Exit("local")),
        Level(Tier.CLOUD, {"*": section("cloud")}, Exit("cloud")),
    ]
    preprocess = Preprocess((8, 8), 1, (0.5,), (0.5,), (1, 2))
    manifest = Manifest(1, "m", 1, "classification", ["a"], preprocess, ["v0", "v1"], levels, {})
    opened: Bundle = write_bundle(tmp_path / "bundle", manifest, {"x.onnx": b""})
    return opened.folder


def script(**by_node: str) -> Callable[[str, Path], Sequence[str]]:
    """Each node runs its own text, or the well-behaved one."""

    def command(role: str, file: Path) -> Sequence[str]:
        body = by_node.get(file.stem.replace("-", "_"), WELL)
        return [sys.executable, "-S", "-c", f"role = {role!r}\n" + HEAD + body, str(file)]

    return command


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_all_start_and_all_stop(tmp_path: Path, bundle: Path) -> None:
    ready: list[str] = []
    with Fleet(FleetSpec(HIERARCHY, bundle), tmp_path / "run", command=script(), on_ready=ready.append) as fleet:
        pids = fleet.pids()
        assert sorted(ready) == sorted(pids) == sorted(fleet.alive()) == sorted(n.id for n in HIERARCHY.nodes)
        assert len(set(pids.values())) == 4
        assert all(os.getsid(pid) == pid for pid in pids.values())
        assert fleet.stop() == dict.fromkeys(pids, 0)
        assert all(map(gone, pids.values()))
        assert fleet.stop() == {}
    assert fleet.alive() == []


def test_the_files_are_what_nodes_read(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = FleetSpec(
        HIERARCHY,
        bundle,
        join=Join(by="sequence", window_ms=50),
        plan=PlanKnobs(mode="eager", thresholds={"local": 0.8}),
        sources=[SourceConfig("v1", "dataset:./x.npz?rate=5", in_flight=3)],
        sinks={"device-1": ["jsonl:out.jsonl"]},
    )
    run = tmp_path / "run"
    with Fleet(spec, run, command=script()) as fleet:
        cloud = load_cloud(run / "cloud.toml", env={}).value
        assert cloud.node.listen == fleet.address("cloud")
        assert cloud.bundle == str(bundle)
        assert (cloud.plan.mode, cloud.plan.thresholds) == ("eager", {"local": 0.8})
        assert load_hierarchy(Path(cloud.hierarchy)) == (HIERARCHY, spec.join)
        edge = load_agent(run / "edge.toml", env={}).value
        assert (edge.node.parent, edge.node.listen) == (fleet.address("cloud"), fleet.address("edge"))
        device = load_agent(run / "device-1.toml", env={}).value
        assert (device.node.parent, device.node.listen) == (fleet.address("edge"), "")
        assert device.source == (SourceConfig("v1", f"dataset:{tmp_path}/x.npz?rate=5", in_flight=3),)
        assert device.sink[0].uri == f"jsonl:{tmp_path}/out.jsonl"
        assert device.state_dir == run / "state" / "device-1"
        assert fleet.address("cloud") != fleet.address("edge")


def test_children_see_one_thread_and_no_overrides(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIERLINE_NODE_PARENT", "h:1")
    monkeypatch.setenv("TIERLINE_DATA_DIR", "d")
    lines: list[tuple[str, str]] = []
    heard = threading.Event()

    def on_line(node: str, line: str) -> None:
        lines.append((node, line))
        heard.set()

    show = (
        STOP
        + READY
        + 'print(json.dumps([role] + [os.environ.get(k) for k in sys.argv[1:0] or ["OMP_NUM_THREADS",'
        + ' "PYTHONUNBUFFERED", "TIERLINE_NODE_PARENT", "TIERLINE_DATA_DIR"]]), flush=True)\n'
        + WAIT
    )
    fleet = Fleet(FleetSpec(HIERARCHY, bundle), tmp_path / "run", command=script(edge=show), on_line=on_line)
    with fleet:
        assert heard.wait(10)
    assert [(n, json.loads(line)) for n, line in lines] == [("edge", ["edge", "1", "1", None, "d"])]


def test_an_early_death_names_its_last_log_line(tmp_path: Path, bundle: Path) -> None:
    dead = 'print("tierline: port 7 is taken", file=sys.stderr); sys.exit(12)'
    pids: list[dict[str, int]] = []
    fleet = Fleet(
        FleetSpec(HIERARCHY, bundle),
        tmp_path / "run",
        command=script(edge=dead),
        on_ready=lambda _: pids.append(fleet.pids()),
    )
    with pytest.raises(NodeFailed) as caught:
        fleet.start()
    assert str(caught.value) == (
        f"node 'edge' ended with exit code 12: tierline: port 7 is taken; see {tmp_path}/run/logs/edge.log"
    )
    assert fleet.alive() == []
    assert all(gone(pid) for seen in pids for pid in seen.values())


def test_a_node_that_is_never_ready_is_named(tmp_path: Path, bundle: Path) -> None:
    late = 'print("still loading", file=sys.stderr, flush=True)\n' + WAIT
    fleet = Fleet(FleetSpec(HIERARCHY, bundle), tmp_path / "run", command=script(device_1=late))
    with pytest.raises(NodeFailed, match=r"^not ready after 2 s: device-1( \(still loading\))?; see "):
        fleet.start(timeout_s=2)
    assert fleet.alive() == []


def test_a_node_that_was_ready_and_died_is_not_waited_for(tmp_path: Path, bundle: Path) -> None:
    fleet = Fleet(
        FleetSpec(HIERARCHY, bundle), tmp_path / "run", command=script(edge=READY + "sys.exit(3)", device_1=WAIT)
    )
    with pytest.raises(NodeFailed, match=r"^node 'edge' ended with exit code 3"):
        fleet.start()
    assert fleet.alive() == []


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path, bundle: Path) -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + READY + "time.sleep(600)\n"
    with Fleet(FleetSpec(HIERARCHY, bundle), tmp_path / "run", command=script(device_0=stubborn)) as fleet:
        pid = fleet.pids()["device-0"]
        codes = fleet.stop(grace_s=6.0)
    assert codes == {"cloud": 0, "edge": 0, "device-0": -signal.SIGKILL, "device-1": 0}
    assert gone(pid)


def test_kill_and_restart(tmp_path: Path, bundle: Path) -> None:
    with Fleet(FleetSpec(HIERARCHY, bundle), tmp_path / "run", command=script()) as fleet:
        fleet.check()
        before, address = fleet.pids()["edge"], fleet.address("edge")
        fleet.kill("edge")
        assert gone(before)
        assert "edge" not in fleet.alive()
        with pytest.raises(NodeFailed, match=r"^node 'edge' was ended by SIGKILL; see"):
            fleet.check()
        fleet.restart("edge")
        assert "edge" in fleet.alive()
        assert fleet.pids()["edge"] != before
        assert fleet.address("edge") == address
        with pytest.raises(ConfigError, match="no node 'x' was started; there are cloud, edge"):
            fleet.kill("x")
    with pytest.raises(ConfigError, match=r"/run: holds a run already"):
        Fleet(FleetSpec(HIERARCHY, bundle), tmp_path / "run", command=script()).start()


def test_nothing_is_left_when_the_block_raises(tmp_path: Path, bundle: Path) -> None:
    pids: dict[str, int] = {}
    with pytest.raises(ZeroDivisionError), Fleet(FleetSpec(HIERARCHY, bundle), tmp_path / "r", command=script()) as f:
        pids.update(f.pids())
        raise ZeroDivisionError
    assert len(pids) == 4
    assert all(map(gone, pids.values()))


def test_children_notice_a_killed_supervisor(tmp_path: Path, bundle: Path) -> None:
    body = f"""
import json, sys, time
sys.path[:0] = {[str(Path(__file__).parent)]!r}
import test_supervisor as t
from pathlib import Path
fleet = t.Fleet(t.FleetSpec(t.HIERARCHY, Path({str(bundle)!r})), Path({str(tmp_path / "run")!r}), command=t.script())
fleet.start()
print(json.dumps(fleet.pids()), flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", body], stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout
        pids: Any = json.loads(supervisor.stdout.readline())
        assert not any(map(gone, pids.values()))
        supervisor.kill()
    for pid in pids.values():
        wait_gone(pid)


def wait_gone(pid: int) -> None:
    """Wait for a process that is nobody's child here; it may stay a zombie where nothing reaps orphans."""
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(200):
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.05)
    raise AssertionError(f"{pid} still runs")


def test_links_run_through_one_relay_per_parent(tmp_path: Path, bundle: Path) -> None:
    spec = FleetSpec(HIERARCHY, bundle, sources=SOURCES, link={Tier.DEVICE: "wifi", Tier.EDGE: "rtt_ms=50,mbit=5"})
    run = tmp_path / "run"
    with Fleet(spec, run, command=script()) as fleet:
        assert sorted(fleet.relays) == ["cloud", "edge"]
        parents = {n: load_agent(run / f"{n}.toml", env={}).value.node.parent for n in ("edge", "device-0", "device-1")}
        assert parents["device-0"] == parents["device-1"] != fleet.address("edge")
        assert parents["edge"] != fleet.address("cloud")
        relay = fleet.relays["edge"]
        assert "stats" in relay.ask(stats=True)
        assert relay.ask(cut=True) == {"done": "cut"}
        with pytest.raises(ConfigError, match="relay to edge"):
            relay.ask(set="moon")
        pid = relay.child.pid
    assert gone(pid)


def test_tls_gives_every_node_a_certificate(tmp_path: Path, bundle: Path) -> None:
    spec = FleetSpec(HIERARCHY, bundle, sources=SOURCES, tls=True)
    with Fleet(spec, tmp_path / "run", command=script()):
        for node in HIERARCHY.nodes:
            load = load_cloud if node.id == "cloud" else load_agent
            files = load(tmp_path / "run" / f"{node.id}.toml", env={}).value.tls_files()
            assert files is not None
            assert check_files(files).node_id == node.id


def test_a_hierarchy_that_cannot_run_starts_nothing(tmp_path: Path, bundle: Path) -> None:
    twice = Hierarchy((*HIERARCHY.nodes, HierarchyNode("edge", Tier.EDGE, "cloud")))
    with pytest.raises(PlanError, match="'edge' is listed twice"):
        Fleet(FleetSpec(twice, bundle), tmp_path / "run", command=script()).start()
    hosting = Hierarchy((HierarchyNode("cloud", Tier.CLOUD, "", ("v0",)),))
    with pytest.raises(ConfigError, match="hosts views"):
        Fleet(FleetSpec(hosting, bundle), tmp_path / "run", command=script())
