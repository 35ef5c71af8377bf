"""What the root makes of nodes' states, which Plans it takes, and what is left of a switch after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tiny_bundle import make_tiny_bundle, three_tiers

from tierline.cloud.plans import PlanStore
from tierline.cloud.shelf import Shelf
from tierline.cloud.switch import Judgement, check_same_task, judge
from tierline.core.bundle import MANIFEST, Bundle
from tierline.core.errors import BundleError, DigestMismatch, PlanError
from tierline.core.link.fleet import NodeState
from tierline.core.plan import Plan, check_placement, make_plan
from tierline.core.types import Tier


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    tiers = (Tier.DEVICE, Tier.CLOUD, Tier.CLOUD)
    return make_tiny_bundle(folder / "a"), make_tiny_bundle(folder / "b", seed=8, tiers=tiers)


def state(node: str, version: int, word: Any, message: str = "") -> NodeState:
    return NodeState(node, version, word, message)


def test_all_connected_nodes_must_be_there() -> None:
    states = [state("edge", 2, "ready"), state("left", 2, "loading"), state("right", 1, "settled")]
    assert judge({"edge"}, states, 2, ("ready",)) == Judgement(True)
    assert judge({"edge", "left", "right", "new"}, states, 2, ("ready",)).waits_for == ("left", "new", "right")
    failed = [*states[:1], state("left", 2, "failed", "no memory")]
    assert judge({"edge", "left"}, failed, 2, ("ready",)).failed == "node 'left': no memory"
    assert judge({"edge"}, failed, 2, ("ready",)).done, "who is away is not asked"
    assert judge({"left"}, [state("left", 1, "failed", "long ago")], 2, ("ready",)).waits_for == ("left",)


def put(shelf: Shelf, bundle: Bundle) -> list[str]:
    """As an operator does; digests that were missing."""
    missing = shelf.offer((bundle.folder / MANIFEST).read_bytes())
    for digest in missing:
        name = next(name for name, known in bundle.manifest.files.items() if known == digest)
        asyncio.run(shelf.put(bundle.digest, digest, chunked(bundle.read(name))))
    return missing


async def chunked(raw: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(raw), 100):
        yield raw[start : start + 100]


def plan_of(bundle: Bundle, version: int = 1) -> Plan:
    return make_plan(three_tiers(), bundle.manifest, bundle.digest, version=version)


def test_a_shelf_takes_what_it_lacks_and_checks_it(bundles: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    shelf, (a, b) = Shelf(tmp_path), bundles
    shelf.given = a
    with pytest.raises(BundleError, match=r"apply it with --bundle FOLDER"):
        shelf.find(b.digest)
    with pytest.raises(BundleError, match="was not offered"):
        asyncio.run(shelf.put(b.digest, "0" * 64, chunked(b"")))
    assert shelf.offer((a.folder / MANIFEST).read_bytes()) == []
    missing = shelf.offer((b.folder / MANIFEST).read_bytes())
    assert sorted(missing) == sorted(set(b.manifest.files.values()))
    with pytest.raises(BundleError, match="files of it are missing"):
        shelf.find(b.digest)
    with pytest.raises(DigestMismatch, match="announced"):
        asyncio.run(shelf.put(b.digest, missing[0], chunked(b"something else")))
    with pytest.raises(BundleError, match="lists no file"):
        asyncio.run(shelf.put(b.digest, "0" * 64, chunked(b"")))
    assert set(put(shelf, b)) == set(missing) and put(shelf, b) == []
    found = shelf.find(b.digest)
    assert all(found.read(name) == b.read(name) for name in b.manifest.files)
    for strange in ("", "..", "../../etc", "a/b"):
        with pytest.raises(BundleError):
            shelf.find(strange)
        with pytest.raises(BundleError):
            asyncio.run(shelf.put(strange, missing[0], chunked(b"")))


def test_what_was_committed_is_in_force_after_a_restart(bundles: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    a, b = bundles
    store = PlanStore(tmp_path)
    store.start(plan_of(a), a)
    put(Shelf(tmp_path), b)
    again = PlanStore(tmp_path)
    assert (again.start(plan_of(a), a).version, again.bundle().digest) == (1, a.digest), "prepared is not committed"
    store.commit(plan_of(b, 2), b, "--bundle b")
    again = PlanStore(tmp_path)
    assert (again.start(plan_of(a), a).version, again.bundle().digest) == (2, b.digest)
    assert [row["version"] for row in again.plans()] == [1, 2] and "knobs" not in again.plans()[0]
    assert again.kept(1) == plan_of(a) and not again.has_structure(again.kept(1))
    (tmp_path / "bundles" / b.digest / "edge.onnx").unlink()
    with pytest.raises(BundleError, match="1 files of it are missing; apply it again"):
        PlanStore(tmp_path).start(plan_of(a), a)


def test_sections_move_and_nothing_else_does(bundles: tuple[Bundle, Bundle]) -> None:
    a, b = bundles
    former, plan = plan_of(a), plan_of(b)
    assert former.nodes["edge"].runs == (1,) and plan.nodes["edge"].runs == ()
    check_placement(former, plan, 3)

    def changed(node: str, **what: Any) -> Plan:
        nodes = {**plan.nodes, node: msgspec.structs.replace(plan.nodes[node], **what)}
        return msgspec.structs.replace(plan, nodes=nodes)

    for node, what in (
        ("edge", {"tier": Tier.CLOUD}),
        ("device-left", {"parent": "cloud"}),
        ("device-left", {"views": {"left": "right"}}),
        ("edge", {"joins": ("left",)}),
    ):
        with pytest.raises(PlanError, match=f"node '{node}': other {next(iter(what))}"):
            check_placement(former, changed(node, **what), 3)
    for runs in ((1,), (), (2,)):
        with pytest.raises(PlanError, match="every level from 1 to 2 must run once"):
            check_placement(former, changed("cloud", runs=runs), 3)
    upside_down = changed("cloud", runs=(1,))
    upside_down.nodes["edge"] = msgspec.structs.replace(plan.nodes["edge"], runs=(2,))
    with pytest.raises(PlanError, match="none below the one before it"):
        check_placement(former, upside_down, 3)
    fewer = msgspec.structs.replace(plan, nodes={k: v for k, v in plan.nodes.items() if k != "device-left"})
    with pytest.raises(PlanError, match="other nodes"):
        check_placement(former, fewer, 3)


def test_answers_and_views_mean_the_same(bundles: tuple[Bundle, Bundle]) -> None:
    manifest = bundles[0].manifest
    check_same_task(manifest, bundles[1].manifest)
    for what, value in (("labels", ["x"]), ("views", ["front"]), ("task", "detection")):
        with pytest.raises(PlanError, match=f"has other {what}"):
            check_same_task(manifest, msgspec.structs.replace(manifest, **{what: value}))
