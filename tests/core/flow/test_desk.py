"""What children tell about themselves is heard, never obeyed."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from bench import TickingClock
from tiny_bundle import three_tiers

from tierline.core.bundle import Bundle
from tierline.core.flow.desk import Desk
from tierline.core.flow.engines import Awaited, OnStep
from tierline.core.flow.node import EngineSettings, Node
from tierline.core.link.fleet import Beat
from tierline.core.plan import make_plan
from tierline.core.protocols import Engine


@pytest.mark.parametrize(
    "status",
    [b"", b"\xff", b"[]", b"[" * 100_000, b'{"device-left": 3}', b'{"edge": {"tier": "mine"}, "stranger": {}}'],
)
def test_a_strange_status_of_a_child(tiny_bundle: Bundle, status: bytes) -> None:
    def nothing(*_: Any) -> None:
        return None

    node = Node("edge", 1, TickingClock(), EngineSettings(), on_outcome=nothing, on_answered=nothing, on_batch=nothing)
    node.adopt(make_plan(three_tiers(), tiny_bundle.manifest, tiny_bundle.digest), tiny_bundle)
    desk = Desk(node)
    desk.beat(Beat("device-left", 1, status, 0.0))
    record = json.loads(desk.status())
    assert set(record) == {"edge"} and record["edge"]["tier"] == "edge"
    desk.beat(Beat("device-left", 1, b'{"device-left": {"tier": "device"}}', 0.0))
    assert json.loads(desk.status())["device-left"] == {"tier": "device", "connected": False}
    node.close()


def test_a_section_whose_engine_is_being_built_is_told_in_status_and_health(tiny_bundle: Bundle) -> None:
    def nothing(*_: Any) -> None:
        return None

    node = Node("edge", 1, TickingClock(), EngineSettings(), on_outcome=nothing, on_answered=nothing, on_batch=nothing)
    desk = Desk(node)
    assert desk.is_serving("edge") is None
    node.adopt(make_plan(three_tiers(), tiny_bundle.manifest, tiny_bundle.digest), tiny_bundle)
    assert node.residents.now is not None
    sections = node.residents.now.levels[1].sections
    meanwhile, go, stepped = sections["*"], threading.Event(), threading.Event()

    def make(on_step: OnStep) -> Engine:
        on_step("timing", 3, 9)
        stepped.set()
        assert go.wait(30)
        return meanwhile

    sections["*"] = awaited = Awaited("edge", make, meanwhile)
    assert stepped.wait(30)
    assert json.loads(desk.status())["edge"]["engines"] == {"edge": "building: timing 3/9"}
    assert (desk.is_serving(), desk.is_serving("edge"), desk.is_serving("cloud")) == (True, False, None)
    go.set()
    awaited.join(30)
    assert desk.is_serving("edge") is True
    node.close()
