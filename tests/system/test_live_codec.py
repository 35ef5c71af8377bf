"""Codecs turned in a running hierarchy of processes, under load: fewer bytes, no sample lost, none wrong."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tiny_bundle import VIEWS, images, make_tiny_bundle, three_tiers

from tierline.cli.fleet_files import FleetSpec
from tierline.cli.supervisor import Fleet
from tierline.cloud.config import PlanKnobs
from tierline.core.bundle import Bundle
from tierline.core.coding import codec_for
from tierline.core.errors import PeerRejected, SecurityError
from tierline.core.flow.levels import FEATURE, LOGITS, engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.link.ask import ask_plans, change_plan
from tierline.core.link.tls import TlsFiles
from tierline.core.plan import Join
from tierline.core.preprocess import Preprocessor
from tierline.edge.config import SourceConfig

NUM, NUM_RELU = 64, 96
DEVICES = [f"device-{view}" for view in VIEWS]
ALL = {"local": 0.0, "edge": 0.0}
"""Every sample climbs to the cloud."""


def expected(bundle: Bundle, device: str, edge: str) -> list[int]:
    """Class of each sample when features cross the links in these codecs, in one process."""
    prepare = Preprocessor(bundle.manifest.preprocess)
    levels = Oracle(bundle, engine_maker("onnxruntime")).levels

    def crossed(token: str, level: int, x_B: Any) -> Any:
        spec = levels[level].feature_spec
        assert spec is not None
        return codec_for(token).decode(codec_for(token).encode(x_B), spec)

    views_NB = [np.stack([prepare(x, n) for x in images(NUM)[n]]) for n in range(len(VIEWS))]
    parts_NB = np.stack(
        [crossed(device, 0, levels[0].run(v, x)[FEATURE]) for v, x in zip(VIEWS, views_NB, strict=True)]
    )
    fused_B = levels[0].fuse_features(parts_NB, np.ones(parts_NB.shape[:2], np.bool_))
    edge_B = crossed(edge, 1, levels[1].run("*", fused_B)[FEATURE])
    return np.asarray(levels[2].run("*", edge_B)[LOGITS].argmax(1)).tolist()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_tiny_bundle(tmp_path_factory.mktemp("relu") / "bundle", num_relu=NUM_RELU)


@pytest.fixture(scope="module")
def world(bundle: Bundle, world_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("live")
    for n, view in enumerate(VIEWS):
        np.savez(folder / f"{view}.npz", images=images(NUM)[n], labels=np.arange(NUM))
    spec = FleetSpec(
        three_tiers(),
        bundle.folder,
        join=Join(by="sequence", window_ms=5000.0),
        plan=PlanKnobs(budget_ms=30_000.0, thresholds=ALL),
        sources=[SourceConfig(v, f"dataset:{folder}/{v}.npz?loop=true&rate=60", in_flight=8) for v in VIEWS],
        sinks={f"device-{v}": [f"jsonl:{folder}/device-{v}.jsonl"] for v in VIEWS},
        tls=True,
    )
    with Fleet(spec, folder) as fleet:
        yield world_of(fleet, {d: folder / f"{d}.jsonl" for d in DEVICES})


@pytest.fixture(scope="module")
def plan(world: Any, command: Callable[..., Any]) -> Callable[..., Any]:
    """`tierline plan ...` as the operator at the cloud."""

    def ask(*words: str) -> Any:
        verb, *rest = words
        address, state = world.fleet.address("cloud"), world.fleet.run_dir / "state" / "cloud"
        form = ("--format", "json")
        return command("plan", verb, *rest, address, "--state-dir", str(state), *form, cwd=world.fleet.run_dir)

    return ask


def totals(status: Any, node: str) -> Counter[str]:
    """Payload bytes by codec that a node has sent up, and the samples that the cloud answered it."""
    counts = status[node]["counts"]
    return Counter(status[node]["links"]["parent"]["sent_by_codec"]) + Counter(samples=counts.get("exit:cloud", 0))


def phase(world: Any, version: int) -> tuple[dict[str, Counter[str]], dict[str, list[Any]]]:
    """Once every node runs this Plan: what each link carried until 40 more answers, and those answers."""

    def everywhere() -> Any:
        status = world.status()
        return len(status) == 5 and {record["plan"] for record in status.values()} == {version} and status

    before = world.until(f"plan {version} at every node", everywhere)
    marks = world.marks()
    world.until("answers", lambda: all(len(world.news(d, marks[d])) >= 40 for d in DEVICES))
    records = {d: world.news(d, marks[d]) for d in DEVICES}

    def counted() -> Any:
        status = world.status()
        grown = {node: totals(status, node) - totals(before, node) for node in [*DEVICES, "edge"]}
        return all(counter["samples"] >= 40 for counter in grown.values()) and grown

    return world.until("counters of every node", counted), records


def test_a_live_change_of_codec(world: Any, plan: Any, bundle: Bundle) -> None:
    """raw, affine:4, a sparse one, then back: bytes fall and rise with the Plan, answers are those of its codecs."""
    world.until_answered(20)
    codecs = {
        1: ("raw", "raw"),
        2: ("affine:4", "affine:4"),
        3: ("sparse_bitmap+affine:4", "sparse_bitmap+affine:3"),
        4: ("affine:4", "affine:4"),
    }
    changes = {
        2: ("apply", "--set", "codecs.device=affine:4", "--set", "codecs.edge=affine:4"),
        3: (
            "apply",
            *(f"--set=codecs.{tier}={token}" for tier, token in zip(("device", "edge"), codecs[3], strict=True)),
        ),
        4: ("rollback", "2"),
    }
    per_sample = {}
    for version, (device, edge) in codecs.items():
        if version in changes:
            done = plan(*changes[version])
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["knobs"]["codecs"] == {"device": device, "edge": edge}
        grown, records = phase(world, version)
        assert set(grown["edge"]) == {edge, "samples"}
        assert all(set(grown[node]) == {"raw", device, "samples"} for node in DEVICES)
        per_sample[version] = grown["edge"][edge] / grown["edge"]["samples"]
        answers = expected(bundle, device, edge)
        for rows in records.values():
            assert [r["index"] for r in rows] == [answers[r["truth"]] for r in rows]
            assert {(r["exit"], r["degraded"], r["num_views"]) for r in rows} == {("cloud", False, 3)}
    listed = json.loads(plan("ls").stdout)
    assert [row["version"] for row in listed] == [1, 2, 3, 4]
    assert listed[1]["why"] == "--set codecs.device=affine:4 --set codecs.edge=affine:4"
    # 384 bytes raw; 8 of scale and a half per value; zeros cost a bit only.
    assert per_sample[1] == pytest.approx(4 * NUM_RELU, rel=0.1)
    assert per_sample[2] == pytest.approx(8 + NUM_RELU / 2, rel=0.1) == pytest.approx(per_sample[4], rel=0.2)
    assert per_sample[3] < 0.85 * per_sample[2]


def test_one_link_has_its_own_codec(world: Any) -> None:
    version = world.status()["cloud"]["plan"]
    root = TlsFiles.of_state(world.fleet.run_dir / "state" / "cloud")
    asyncio.run(change_plan(world.fleet.address("cloud"), root, settings=[f"links.{DEVICES[0]}=affine:2"]))
    grown, _ = phase(world, version + 1)
    assert set(grown[DEVICES[0]]) == {"raw", "affine:2", "samples"}
    assert "affine:2" not in grown[DEVICES[1]]


def test_a_wrong_knob_is_refused_by_name(world: Any, plan: Any) -> None:
    before = world.status()["cloud"]["plan"]
    done = plan("apply", "--set", "codecs.device=affin:4")
    assert (done.returncode, len(done.stderr.splitlines())) == (6, 1)
    assert "no such codec: 'affin'; nearest is \"affine\"" in done.stderr
    assert world.status()["cloud"]["plan"] == before


def test_only_the_root_itself_changes_its_plan(world: Any) -> None:
    before = world.status()["cloud"]["plan"]
    address = world.fleet.address("cloud")
    with pytest.raises(SecurityError, match="alone changes its Plan: ask with --state-dir of 'cloud'"):
        asyncio.run(change_plan(address, world.tls, settings=["mode=eager"]))
    assert world.status()["cloud"]["plan"] == before
    plans = asyncio.run(ask_plans(address, world.tls))
    assert [row["version"] for row in plans] == list(range(1, before + 1))


def test_a_node_below_shows_its_plan_and_sends_changes_to_the_root(world: Any) -> None:
    address, root = world.fleet.address("edge"), world.status()["cloud"]["plan"]
    (told,) = asyncio.run(ask_plans(address, world.tls))
    assert (told["version"], told["knobs"]["mode"]) == (root, "on_demand")
    with pytest.raises(PeerRejected, match="'edge' takes its Plan from 'cloud'; ask the root"):
        asyncio.run(change_plan(address, world.tls, settings=["mode=eager"]))


def test_turned_knobs_outlive_the_cloud(world: Any) -> None:
    """The last test of this file: after a restart the cloud goes on with the last Plan, and nobody was lost."""
    before = world.status()["cloud"]["plan"]
    world.fleet.kill("cloud")
    world.fleet.restart("cloud")
    phase(world, before)
    for device in DEVICES:
        seen = Counter(r["id"]["seq"] for r in world.news(device))
        assert sorted(seen) == list(range(len(seen))) and set(seen.values()) == {1}, device
