"""A running hierarchy goes from one precision to another, and refuses what a node lacks: over real sockets."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bench import oracle_views
from in_process import THRESHOLDS, World, check
from tiny_bundle import images, make_tiny_bundle

from tierline.core.bundle import Bundle, Section
from tierline.core.errors import PlanError
from tierline.core.flow.levels import engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.link.ask import ask_plans, change_plan
from tierline.core.plan import Plan, parse_plan
from tierline.models.precision.bundle import add_precisions


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("precisions")
    plain = make_tiny_bundle(folder / "plain", seed=16, num_relu=10)
    return add_precisions(plain, ["float16", "int8"], folder / "more", images=images(32))


def computed_in(bundle: Bundle, precision: str) -> Bundle:
    """The Bundle with its files of a precision in the place of those of float32."""

    def swap(section: Section) -> Section:
        return msgspec.structs.replace(section, file=section.file_in(precision))

    levels = [
        msgspec.structs.replace(level, sections={part: swap(s) for part, s in level.sections.items()})
        for level in bundle.manifest.levels
    ]
    return Bundle(bundle.folder, msgspec.structs.replace(bundle.manifest, levels=levels), bundle.digest)


async def placed(world: World, **changes: Any) -> Plan:
    """The Plan in force with other words in every placement, or in that of one node."""
    plan = parse_plan(msgspec.json.encode((await ask_plans(world.cloud))[-1]["plan"]), "the root")
    node = changes.pop("node", "")
    nodes = {
        name: msgspec.structs.replace(placement, **changes) if node in ("", name) else placement
        for name, placement in plan.nodes.items()
    }
    return msgspec.structs.replace(plan, nodes=nodes)


def test_precisions_change_while_samples_flow_and_come_back(tmp_path: Path, bundle: Bundle) -> None:
    """Every answer is that of the precision of its Plan, sample by sample; some differ from float32's."""
    lower = computed_in(bundle, "int8")
    views_NB = oracle_views(bundle)[:, :64]
    exact, found, named = (
        Oracle(one, engine_maker("onnxruntime"), precision).answers(views_NB, THRESHOLDS)
        for one, precision in ((bundle, "float32"), (lower, "float32"), (bundle, "int8"))
    )
    assert (found[0], found[1].tolist()) == (named[0], named[1].tolist())
    num_other = sum(x != y for x, y in zip(zip(*exact, strict=True), zip(*found, strict=True), strict=True))
    assert 0 < num_other < 8

    async def scenario() -> None:
        async with World(tmp_path, bundle) as world:
            await world.until_more(1)
            plan = await placed(world, precision="int8")
            made = await world.apply(bundle, plan=plan.document())
            assert {node["precision"] for node in made["plan"]["nodes"].values()} == {"int8"}
            await world.until_more(2)
            for agent in world.agents.values():
                now = agent.node.residents.now
                assert now is not None and now.placement.precision == "int8"
            assert (await change_plan(world.cloud, rollback_to=1))["version"] == 3
            await world.until_more(3)
            check(world.records(), {1: bundle, 2: lower, 3: bundle})

    asyncio.run(scenario())


@pytest.mark.parametrize(("changes", "words"), [
    ({"node": "device-left", "engine": "reference"},
     r"node 'device-left': engine 'reference': engine.prefer of this node names onnxruntime; add it there"),
    ({"node": "edge", "precision": "float8_e4m3"},
     r"node 'edge': engine 'onnxruntime' does not compute in float8_e4m3 here, only in float32, float16, int8"),
], ids=["engine", "precision"])  # fmt: skip
def test_what_a_node_lacks_is_refused_by_name(
    tmp_path: Path, bundle: Bundle, changes: dict[str, str], words: str
) -> None:
    async def scenario() -> None:
        async with World(tmp_path, bundle) as world:
            await world.until_more(1, 5)
            plan = await placed(world, **changes)
            with pytest.raises(PlanError, match=rf"plan 2 was given up; {words}.*; plan 1 goes on"):
                await world.apply(bundle, plan=plan.document())
            before = len(world.records())
            await world.until("more answers", lambda: len(world.records()) > before + 20)

    asyncio.run(scenario())


def test_a_precision_that_the_bundle_lacks_is_refused_by_section(tmp_path: Path) -> None:
    plain = make_tiny_bundle(tmp_path / "plain", num_relu=10)

    async def scenario() -> None:
        async with World(tmp_path, plain) as world:
            await world.until_more(1, 5)
            plan = await placed(world, node="device-left", precision="int8")
            with pytest.raises(PlanError, match=r"node 'device-left': Section 'device-left': .* holds no int8 of it"):
                await world.apply(plain, plan=plan.document())

    asyncio.run(scenario())
