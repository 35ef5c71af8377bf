"""A hierarchy of processes profiles itself while it answers: pieces, heads, codecs on real features, emulated links."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.trained import lenet_mnist

from tierline.cli.fleet_files import FleetSpec
from tierline.cli.supervisor import Fleet
from tierline.cloud.config import PlanKnobs
from tierline.cloud.order_book import NUM_ROWS
from tierline.core.bundle import Bundle
from tierline.core.candidates import candidates_of, read_outcomes
from tierline.core.coding import codec_for
from tierline.core.errors import PeerRejected, PlanError, UnknownCodec
from tierline.core.flow.levels import engine_maker
from tierline.core.flow.measure import MIN_RUNS
from tierline.core.link.ask import ask_profile
from tierline.core.link.fleet import ProfileStep, ProfileWish
from tierline.core.plan import Hierarchy, HierarchyNode, Join
from tierline.core.preprocess import Preprocessor
from tierline.core.profile import Profile, parse_profile
from tierline.core.types import Tier
from tierline.edge.config import SourceConfig

pytestmark = pytest.mark.slow

LINKS = {Tier.DEVICE: "lte", Tier.EDGE: "wifi"}
BPS = {"device": 5.85e6, "edge": 18.9e6}
RTT_MS = {"device": 50.0, "edge": 5.0}
CODECS = ("raw", "affine:4", "jpeg")
INNER = ("relu", "max_pool2d", "max_pool2d_1", "relu_2", "relu_3")
ENGINE = "onnxruntime"
RUN = ("float32", "float16", "int8")
"""Its precisions."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return lenet_mnist(tmp_path_factory.mktemp("lenet"))


@pytest.fixture(scope="module")
def world(bundle: Bundle, world_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("profile")
    images = read_outcomes(bundle).images
    np.savez(folder / "samples.npz", images=images, labels=np.arange(len(images)))
    nodes = (
        HierarchyNode("cloud", Tier.CLOUD),
        HierarchyNode("edge", Tier.EDGE, "cloud"),
        HierarchyNode("device", Tier.DEVICE, "edge", ("view-0",)),
    )
    spec = FleetSpec(
        Hierarchy(nodes),
        bundle.folder,
        join=Join(by="sequence"),
        link=LINKS,
        plan=PlanKnobs(budget_ms=30_000.0),
        sources=[SourceConfig("view-0", f"dataset:{folder}/samples.npz?loop=true&rate=10", in_flight=4)],
        sinks={"device": [f"jsonl:{folder}/device.jsonl"]},
    )
    with Fleet(spec, folder) as fleet:
        yield world_of(fleet, {"device": folder / "device.jsonl"})


def ask(world: Any, node: str = "cloud", **wish: Any) -> tuple[Profile, list[ProfileStep]]:
    steps: list[ProfileStep] = []
    made = asyncio.run(ask_profile(world.fleet.address(node), ProfileWish(**wish), said=steps.append))
    return made, steps


@pytest.fixture(scope="module")
def measured(world: Any) -> tuple[Profile, list[ProfileStep]]:
    world.until_answered(5)
    return ask(world, codecs=CODECS, run_s=0.05)


def test_every_node_comes_back_whole(measured: tuple[Profile, list[ProfileStep]], bundle: Bundle) -> None:
    made, _ = measured
    assert made.bundle == bundle.digest
    assert made.missing == {}
    assert made.nodes.keys() == {"cloud", "edge", "device"}
    assert parse_profile(made.document(), "here").digest() == made.digest()
    assert {name: own.tier.value for name, own in made.nodes.items()} == {n: n for n in made.nodes}
    for own in made.nodes.values():
        assert own.stamp["hardware"]["cores"] >= 1
        assert own.made_at.startswith("20")


def test_pieces_are_those_that_a_tier_may_run(measured: tuple[Profile, list[ProfileStep]]) -> None:
    made, _ = measured
    cuts = ["input", *INNER, "output"]
    neighbours = set(pairwise(cuts))
    found = {name: {(t.first, t.last) for t in own.sections} for name, own in made.nodes.items()}
    assert found["device"] == neighbours | {("input", cut) for cut in cuts[1:]}
    assert found["cloud"] == neighbours | {(cut, "output") for cut in cuts[:-1]}
    assert found["edge"] == set(combinations(cuts, 2))
    for own in made.nodes.values():
        assert {(t.engine, t.precision) for t in (*own.sections, *own.heads)} == {(ENGINE, p) for p in RUN}
        assert {t.batch for t in own.sections} == {1, 8}
        assert {(t.exit, t.batch) for t in own.heads} == {("max_pool2d", 1), ("max_pool2d", 8)}
        assert all(0 < t.p50_ns < 1e9 and t.num_runs >= MIN_RUNS for t in (*own.sections, *own.heads))
        whole, first = own.piece("input", "output", ENGINE), own.piece("input", "relu", ENGINE)
        assert whole is not None and whole.ns > 0
        assert first is not None and first.ns > 0


def test_codecs_are_weighed_on_the_real_features(measured: tuple[Profile, list[ProfileStep]], bundle: Bundle) -> None:
    made, _ = measured
    images = read_outcomes(bundle).images[:NUM_ROWS]
    rows = {"input": Preprocessor(bundle.manifest.preprocess).many(images)}
    cuts = candidates_of(bundle.manifest).cuts
    for below, cut in pairwise(cuts[:-1]):
        assert cut.piece is not None
        engine = engine_maker(ENGINE)(bundle.read(cut.piece.file), cut.name)
        (rows[cut.name],) = engine.run({next(iter(engine.spec.inputs)): rows[below.name]}).values()
    for own in made.nodes.values():
        assert {(t.cut, t.token) for t in own.codecs} == {*product(rows, CODECS[:2]), ("input", "jpeg")}
        assert set(own.skipped) == {*(f"jpeg at {cut}" for cut in INNER), f"float8_e4m3 {ENGINE}"}
        for (cut, rows_B), token in product(rows.items(), CODECS[:2]):
            sizes = [codec_for(token).encode(row[np.newaxis]).num_bytes for row in rows_B]
            coded = own.codec(cut, token)
            assert coded is not None
            assert (coded.num_bytes, coded.max_bytes, coded.num_rows) == (np.mean(sizes), max(sizes), NUM_ROWS)
            assert 0 < coded.encode_ns < 1e8
            assert 0 < coded.decode_ns < 1e8
        image = own.codec("input", "jpeg")
        assert image is not None
        sizes = [codec_for("jpeg").encode(row[np.newaxis, np.newaxis]).num_bytes for row in images]
        assert image.num_bytes == np.mean(sizes)


def test_links_are_what_the_emulator_makes_them(measured: tuple[Profile, list[ProfileStep]]) -> None:
    made, _ = measured
    assert made.links.keys() == {"device", "edge"}
    for name, link in made.links.items():
        assert link.up_bps == pytest.approx(BPS[name], rel=0.15)
        assert link.down_bps == pytest.approx(BPS[name], rel=0.15)
        assert RTT_MS[name] <= link.rtt_ms < RTT_MS[name] + 30
        assert 0 < link.measured_over_s < 5


def test_samples_were_answered_meanwhile_and_that_is_said(
    measured: tuple[Profile, list[ProfileStep]], world: Any
) -> None:
    made, steps = measured
    records = world.news("device")
    assert {r["reason"] for r in records} == {""}
    assert sorted(r["id"]["seq"] for r in records) == list(range(len(records)))
    assert 0 <= made.nodes["device"].busy_share < 2
    states: dict[str, list[str]] = {}
    for step in steps:
        states.setdefault(step.node, []).append(step.state)
    assert states[""][0] == "preparing cloud, edge, device"
    for name in made.nodes:
        assert states[name][-1] == "done"
        assert len(states[name]) > 1


def test_the_command_writes_the_profile(world: Any, command: Callable[..., Any], tmp_path: Path) -> None:
    asked = ("--node", "cloud", "--codec", "raw", "--batch", "2", "--run-s", "0.02", "--out", "profile.json")
    done = command("profile", world.fleet.address("cloud"), *asked, "--format", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cloud: done" in done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["node"], row["tier"], row["rtt_ms"]) == ("cloud", "cloud", None)
    made = parse_profile((tmp_path / "profile.json").read_bytes(), "profile.json")
    assert made.nodes.keys() == {"cloud"}
    assert {t.batch for t in made.nodes["cloud"].sections} == {2}
    assert {t.token for t in made.nodes["cloud"].codecs} == {"raw"}


def test_what_cannot_be_asked_is_refused_by_name(world: Any) -> None:
    with pytest.raises(PlanError, match="no node 'cluod'; nearest is \"cloud\""):
        ask(world, nodes=("cluod",))
    with pytest.raises(UnknownCodec, match="no such codec: 'affin'"):
        ask(world, codecs=("affin",))
    with pytest.raises(PeerRejected, match="'edge' is below 'cloud'; ask the root"):
        ask(world, "edge")


def test_a_node_that_is_lost_is_named_and_the_others_come_back(world: Any) -> None:
    world.fleet.kill("device")
    world.until("the cloud sees it", lambda: not world.status()["device"]["connected"])
    made, steps = ask(world, nodes=("cloud", "device"), codecs=("raw",), batches=(1,), run_s=0.02)
    assert made.missing == {"device": "not connected"}
    assert made.nodes.keys() == {"cloud"}
    assert ProfileStep("device", "missing: not connected") in steps
