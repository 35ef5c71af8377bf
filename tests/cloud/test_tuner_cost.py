"""The cost model by hand: queues, quantiles, what a run costs beside its operators, and ways over several nodes."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import tuner_world as w

from tierline.cloud.tuner.baselines import baselines
from tierline.cloud.tuner.cost import mixture_quantile, normal_quantile
from tierline.cloud.tuner.effects import Effects
from tierline.cloud.tuner.goal import Goal, Watts
from tierline.cloud.tuner.handling import handling
from tierline.cloud.tuner.ladder import Stage, placed
from tierline.cloud.tuner.measured import Measured
from tierline.cloud.tuner.search import propose
from tierline.cloud.tuner.space import Space
from tierline.cloud.tuner.wire import part_framing
from tierline.core.errors import PlanError
from tierline.core.flow.coding import encode_outputs
from tierline.core.link import messages as m
from tierline.core.plan import Hierarchy, HierarchyNode
from tierline.core.profile import SectionTime
from tierline.core.types import NodeId, Payload, SampleId, Tier
from tierline.core.wire import frame_to_wire

ALL_UP = Space(({Tier.DEVICE: "a", Tier.CLOUD: "output"},), ((),), allows=lambda cut, token: token == "raw")
LOSSLESS = Effects(lossless=frozenset((cut, "raw") for cut in w.BYTES))


def mean_ms(hierarchy: Hierarchy, goal: Goal, space: Space, **more: object) -> float:
    found = propose(
        w.LADDER, w.statistics(), w.profile(hierarchy), hierarchy, goal,
        effects=LOSSLESS, space=space, num_classes=3, **more,  # type: ignore[arg-type]
    )  # fmt: skip
    return found.chosen.predicted.latency_mean_ms


def test_an_exit_within_a_tier_makes_a_stage_of_its_own() -> None:
    stages = w.LADDER.stages({Tier.DEVICE: "b", Tier.EDGE: "b", Tier.CLOUD: "output"}, ["early", "late"])
    assert stages == (
        Stage(Tier.DEVICE, "input", "a", "early"),
        Stage(Tier.DEVICE, "a", "b", ""),
        Stage(Tier.CLOUD, "b", "c", "late"),
        Stage(Tier.CLOUD, "c", "output", "end"),
    )
    assert placed(stages, w.THREE.path_to_root("dev")) == [0, 0, 2, 2]
    assert w.LADDER.stages({Tier.DEVICE: "input", Tier.CLOUD: "output"}, [])[0] == Stage(
        Tier.DEVICE, "input", "input", ""
    )
    with pytest.raises(PlanError, match="nobody runs what is above the cut 'c'"):
        w.LADDER.stages({Tier.DEVICE: "a", Tier.CLOUD: "c"}, [])
    with pytest.raises(PlanError, match="below that of the tier under it"):
        w.LADDER.stages({Tier.DEVICE: "c", Tier.CLOUD: "b"}, [])


def test_waiting_follows_pollaczek_and_khinchine() -> None:
    """Device M/D/1 with 32 ms, the link with its sending time; the cloud's 0.8 ms hardly wait."""
    goal = Goal("latency_mean_ms")
    alone = mean_ms(w.TWO, goal, ALL_UP)
    rate = 20.0
    under_load = mean_ms(w.TWO, msgspec.structs.replace(goal, rate_per_s=rate), ALL_UP)

    def wait(service_s: float) -> float:
        return 1e3 * rate * service_s**2 / (2 * (1 - rate * service_s))

    sending_s = (8000.0 + part_framing()) * 8 / 5.85e6
    assert under_load - alone == pytest.approx(wait(0.032) + wait(sending_s) + wait(0.0008), rel=1e-6)
    with pytest.raises(PlanError, match="nothing meets"):  # 40 per s need 1.28 s of the device each second
        mean_ms(w.TWO, msgspec.structs.replace(goal, rate_per_s=40.0), ALL_UP)


def test_a_node_above_batches_what_waits() -> None:
    """60 devices: 1,200 samples per s of 0.8 ms are too many one by one, not in batches of 4 or 16."""
    devices = tuple(HierarchyNode(f"dev-{i}", Tier.DEVICE, "cloud", (f"v{i}",)) for i in range(60))
    many = Hierarchy((HierarchyNode("cloud", Tier.CLOUD), *devices))
    busy = mean_ms(many, Goal("latency_mean_ms", rate_per_s=20.0), ALL_UP)
    alone = mean_ms(w.TWO, Goal("latency_mean_ms", rate_per_s=20.0), ALL_UP)
    assert alone < busy < alone + 20


def test_handling_and_energy_are_added_by_node() -> None:
    goal = Goal("latency_mean_ms", watts={"device": Watts(2.0, 3.0)})
    base = mean_ms(w.THREE, goal, ALL_THREE)
    assert mean_ms(w.THREE, goal, ALL_THREE, handling_ms={"dev": 1.0, "edge": 2.0, "cloud": 4.0}) == pytest.approx(
        base + 7
    )
    found = propose(
        w.LADDER, w.statistics(), w.profile(w.TWO), w.TWO, goal, effects=LOSSLESS, space=ALL_UP, num_classes=3
    )
    sending_ms = (8000.0 + part_framing()) * 8e3 / 5.85e6
    assert found.chosen.predicted.energy_j == pytest.approx((2.0 * (32.0 + 0.1) + 3.0 * sending_ms) / 1e3)
    with pytest.raises(PlanError, match="energy_j needs watts"):
        mean_ms(w.TWO, Goal("energy_j"), ALL_UP)


ALL_THREE = Space(
    ({Tier.DEVICE: "a", Tier.EDGE: "a", Tier.CLOUD: "output"},), ((),), allows=lambda cut, token: token == "raw"
)


def test_a_range_not_measured_and_a_head_are_without_the_price_of_a_run() -> None:
    """Runs cost 1 ms beside their operators of 2, 3, 4 and 5 ms; the head's are 6 ms."""
    profile = w.profile(w.TWO)
    work = {
        ("input", "a"): 2,
        ("a", "b"): 3,
        ("b", "c"): 4,
        ("c", "output"): 5,
        ("input", "output"): 14,
        ("a", "output"): 12,
    }
    times = tuple(SectionTime(a, b, "e", "float32", 1, (1 + ms) * 1_000_000, 0, 9) for (a, b), ms in work.items())
    heads = tuple(
        msgspec.structs.replace(h, engine="e", p50_ns=7_000_000) for h in profile.nodes["dev"].heads if h.batch == 1
    )
    node = msgspec.structs.replace(profile.nodes["dev"], sections=times, heads=heads)
    measured = Measured(msgspec.structs.replace(profile, nodes={"dev": node}), w.LADDER.cuts)

    def ms(first: str, last: str, exit_: str = "") -> float:
        found = measured.stage("dev", Stage(Tier.DEVICE, first, last, exit_), ("e", "float32"))
        assert found is not None
        return found[0]

    assert ms("input", "output", "end") == 15
    assert ms("a", "c") == pytest.approx(1 + 3 + 4)
    assert ms("input", "a", "early") == pytest.approx(3 + 6)
    assert ms("b", "b") == 0
    assert measured.stage("dev", Stage(Tier.DEVICE, "a", "b", ""), ("other", "float32")) is None


def test_quantiles_of_a_mixture() -> None:
    parts, weights = np.array([[30.0, 10.0]]), np.array([[0.2, 0.8]])
    sharp = np.zeros(2)
    assert mixture_quantile(parts, weights, sharp, 0.5) == [10]
    assert mixture_quantile(parts, weights, sharp, 0.99) == [30]
    spread = np.array([2.0, 0.0])
    assert mixture_quantile(parts, weights, spread, 0.9) == pytest.approx(
        30.0, abs=1e-3
    )  # the middle of the upper part
    assert mixture_quantile(parts, weights, spread, 0.98) == pytest.approx(30 + 2 * 1.2816, abs=5e-3)
    assert normal_quantile(np.array([0.025, 0.5, 0.975])) == pytest.approx([-1.96, 0, 1.96], abs=5e-4)


def test_framing_is_that_of_the_message_a_node_sends() -> None:
    payload = Payload("affine:4", "float32", (1, 16, 8, 8), bytes(512))
    part = m.Part(0, "view-1", (SampleId(NodeId("device"), 1 << 50, 77),), 1, (900.0,), {}, payload, True, (1,))
    sent = frame_to_wire(m.Frame(5, 5, part)).ByteSize()
    assert abs(512 + part_framing() - sent) < 40
    assert encode_outputs(np.zeros((1, 3), np.float32)).num_bytes == 12


def test_handling_is_what_a_ledger_does_not_give_to_sections_and_links() -> None:
    def record(seq: int, extra: float) -> dict[str, object]:
        return {
            "hops": [
                {
                    "node": "dev",
                    "residence_ms": 70.0 + extra,
                    "spans_ms": {"section": 10.0, "send": 55.0, "capture": 1.0},
                },
                {"node": "cloud", "residence_ms": 3.0, "spans_ms": {"section": 2.5}},
            ]
        }

    found = handling([record(0, 0.0), record(1, 0.1), record(2, 500.0)])
    assert found == pytest.approx({"dev": 1.1, "cloud": 0.5})


def test_what_was_not_measured_is_left_out_and_said() -> None:
    statistics, hierarchy = w.statistics(), w.TWO
    profile = w.profile(hierarchy)
    cloud = profile.nodes["cloud"]
    few = msgspec.structs.replace(cloud, sections=tuple(t for t in cloud.sections if t.first != "c"))
    goal = Goal("bytes_per_sample")
    known = propose(
        w.LADDER, statistics, msgspec.structs.replace(profile, nodes={**profile.nodes, "cloud": few}), hierarchy, goal,
        effects=LOSSLESS, num_classes=3,
    )  # fmt: skip
    assert {point.choice.cuts[Tier.DEVICE] for point in known.front} == {"output"}
    assert "device..a cloud..output: a section, head or link on its way was not measured" in known.left_out
    assert any(line.startswith("codec affine:4 at a: what it does") for line in known.left_out)
    with pytest.raises(PlanError, match="nothing to choose from"):
        propose(w.LADDER, statistics, profile, hierarchy, goal, effects=Effects(), space=ALL_UP, num_classes=3)


def test_baselines_keep_to_their_rules() -> None:
    statistics = w.statistics()
    profile, effects = (
        w.profile(w.THREE, codecs=("raw", "affine:8", "jpeg")),
        w.effects(statistics, ("affine:8", "jpeg")),
    )
    goal = Goal("latency_mean_ms")

    def chosen(name: str) -> tuple[dict[Tier, str], dict[str, float], dict[Tier, str]]:
        space = baselines(w.LADDER, w.THREE)[name]
        choice = propose(
            w.LADDER, statistics, profile, w.THREE, goal, effects=effects, space=space, num_classes=3
        ).chosen.choice
        return choice.cuts, choice.exits, choice.codecs

    assert chosen("device_only")[0][Tier.DEVICE] == "output"
    cuts, exits, codecs = chosen("cloud_only")
    assert (cuts[Tier.DEVICE], cuts[Tier.EDGE], exits, codecs) == ("input", "input", {}, {Tier.DEVICE: "jpeg"})
    assert chosen("neurosurgeon")[1] == {}
    cuts, exits, codecs = chosen("ddnn")
    assert (cuts[Tier.DEVICE], list(exits), codecs) == ("a", ["early"], {Tier.DEVICE: "raw"})
    assert set(chosen("edgent")[1].values()) <= {1.0}
    assert len(set(chosen("spinn")[1].values())) == 1
