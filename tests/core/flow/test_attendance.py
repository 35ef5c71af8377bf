"""Who is waited for: views that drifted apart meet again, views far behind hold nobody up."""

from __future__ import annotations

import pytest
from tiny_bundle import three_tiers

from tierline.core.bundle import Bundle
from tierline.core.flow.attendance import MAX_LAG, STARTUP_GRACE_NS, Attendance
from tierline.core.plan import make_plan
from tierline.core.types import NodeId, SampleId


def sample(seq: int) -> SampleId:
    return SampleId(NodeId("edge"), 1, seq)


@pytest.fixture
def attendance(tiny_bundle: Bundle) -> Attendance:
    plan = make_plan(three_tiers(), tiny_bundle.manifest, tiny_bundle.digest)
    made = Attendance("edge", plan.placement("edge"), started_ns=0)
    made.use(plan)
    for node, placement in plan.nodes.items():
        if placement.parent == "edge":
            made.up(node)
    return made


def complete(attendance: Attendance, seq: int, *views: str) -> bool:
    return attendance.is_complete(sample(seq), dict.fromkeys(views).keys(), STARTUP_GRACE_NS)


def test_every_connected_view_is_waited_for(attendance: Attendance, tiny_bundle: Bundle) -> None:
    first, *others = tiny_bundle.manifest.views
    attendance.arrived(first, sample(0))
    assert not complete(attendance, 0, first)
    assert complete(attendance, 0, first, *others)


def test_a_view_that_has_passed_a_sample_is_not(attendance: Attendance, tiny_bundle: Bundle) -> None:
    first, *others = tiny_bundle.manifest.views
    for view in others:
        attendance.arrived(view, sample(5))
    assert complete(attendance, 4, first)
    assert not complete(attendance, 6, first)


def test_nor_one_that_is_far_behind(attendance: Attendance, tiny_bundle: Bundle) -> None:
    first, *others = tiny_bundle.manifest.views
    for view in others:
        attendance.arrived(view, sample(0))
    assert not complete(attendance, MAX_LAG, first)
    assert complete(attendance, MAX_LAG + 1, first)
