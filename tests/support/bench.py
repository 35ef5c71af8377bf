"""A Junction or a Forwarder on a bench: a fake Port, a clock turned by hand, the tiny Bundle."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
from tiny_bundle import VIEWS, images, three_tiers

from tierline.core.bundle import Bundle
from tierline.core.clock import ManualClock
from tierline.core.coding import codec_for
from tierline.core.flow.forward import Forwarder
from tierline.core.flow.journey import NUM_SPANS, Memory, PartRow
from tierline.core.flow.junction import Junction
from tierline.core.flow.levels import Levels, engine_maker
from tierline.core.flow.oracle import Oracle
from tierline.core.flow.port import Done, Site
from tierline.core.link import messages as m
from tierline.core.plan import Hierarchy, Join, Plan, make_plan
from tierline.core.preprocess import Preprocessor
from tierline.core.protocols import Outcome
from tierline.core.types import Array, Arrays, NodeId, Payload, SampleId

MS = 1_000_000
NEVER_LEAVE = {"local": 0.0, "edge": 0.0}
ALWAYS_LEAVE = {"local": 1.0, "edge": 1.0}


class TickingClock(ManualClock):
    """Every look at it takes a while, so that unmeasured work shows."""

    def __init__(self, tick_ns: int = 0) -> None:
        super().__init__(1)
        self.tick_ns = tick_ns

    def now_ns(self) -> int:
        self.advance(self.tick_ns)
        return super().now_ns()


@dataclass
class FakePort:
    """Records what the flow asks for; `levels` runs Sections at once, or when `finish` is called."""

    levels: Levels
    clock: ManualClock
    children: set[str] = field(default_factory=set)
    parent: bool = True
    rtt_ns: int = 0
    is_congested: bool = False
    deferred: bool = False
    fails: bool = False
    is_slow: bool = False
    """Sections take too long for `run_now`."""
    down: list[tuple[str, m.Body]] = field(default_factory=list)
    up: list[m.Body] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    running: list[tuple[int, str, Array, Done]] = field(default_factory=list)

    def to_child(self, child: str, body: m.Body) -> bool:
        if child in self.children:
            self.down.append((child, body))
            return True
        return False

    def to_parent(self, body: m.Body) -> bool:
        if self.parent:
            self.up.append(body)
        return self.parent

    def parent_is_up(self) -> bool:
        return self.parent

    def parent_is_congested(self) -> bool:
        return self.is_congested

    def parent_rtt_ns(self) -> int:
        return self.rtt_ns

    def outcome(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def answered(self, exit_name: str, residence_ns: int, queue_ns: int) -> None:
        assert residence_ns >= queue_ns >= 0

    def run_now(self, level: int, part: str, x_B: Array) -> tuple[Arrays, int] | None:
        if self.deferred or self.is_slow:
            return None
        self.clock.advance(5)
        return ({} if self.fails else self.levels[level].run(part, x_B)), 5

    def run(self, level: int, part: str, x_B: Array, done: Done) -> None:
        self.running.append((level, part, x_B, done))
        if not self.deferred:
            self.finish()

    def finish(self) -> None:
        """Run what was asked for."""
        while self.running:
            level, part, x_B, done = self.running.pop(0)
            self.clock.advance(5)
            done({} if self.fails else self.levels[level].run(part, x_B), 5)

    def take_down(self, kind: type[Any]) -> list[tuple[str, Any]]:
        """Messages of one kind to children, removed."""
        found = [(child, body) for child, body in self.down if isinstance(body, kind)]
        self.down = [(child, body) for child, body in self.down if not isinstance(body, kind)]
        return found

    def take_up(self, kind: type[Any]) -> list[Any]:
        found = [body for body in self.up if isinstance(body, kind)]
        self.up = [body for body in self.up if not isinstance(body, kind)]
        return found


class Bench:
    """One node of the three tiers (or of another hierarchy) with the outputs of every device at hand."""

    def __init__(
        self,
        bundle: Bundle,
        node: str = "edge",
        *,
        hierarchy: Hierarchy | None = None,
        thresholds: dict[str, float] | None = None,
        join: Join | None = None,
        mode: str = "on_demand",
        tick_ns: int = 0,
        max_batch: int = 64,
        grace_over: bool = True,
    ) -> None:
        self.bundle, self.node_id = bundle, node
        self.plan: Plan = make_plan(
            hierarchy or three_tiers(),
            bundle.manifest,
            bundle.digest,
            thresholds=thresholds if thresholds is not None else NEVER_LEAVE,
            join=join,
            mode=mode,  # type: ignore[arg-type]
            max_batch=max_batch,
        )
        placement = self.plan.placement(node)
        self.clock = TickingClock(tick_ns)
        self.levels = Levels(
            bundle,
            engine_maker("onnxruntime"),
            views=placement.views,
            joins=bool(placement.joins),
            runs=set(placement.runs),
        )
        self.port = FakePort(self.levels, self.clock)
        is_device = node.startswith("device") and not placement.joins
        kind: Any = Forwarder if is_device else Junction
        self.flow: Any = kind(
            Site(node, placement, self.levels, self.port, self.clock, Memory(self.clock.now_ns())), self.plan
        )
        if grace_over and not is_device:
            self.clock.advance(self.flow._attendance.grace_ends_ns)

    def connect(self, *children: str) -> None:
        for child in children:
            self.port.children.add(child)
            self.flow.child_up(child)

    def connect_devices(self) -> None:
        self.connect(*(f"device-{view}" for view in VIEWS))

    def disconnect(self, child: str) -> None:
        self.port.children.discard(child)
        self.flow.child_down(child)

    def send(self, view: str, *seqs: int, **changes: Any) -> None:
        """One device's Part for these samples."""
        self.flow.part(f"device-{view}", self.part(view, *seqs, **changes), self.clock.now_ns())

    def part(self, view: str, *seqs: int, eager: bool = False, budget_ms: float = 1000.0, **changes: Any) -> m.Part:
        logits, feature = device_outputs(self.bundle, view, seqs)
        part = m.Part(
            level=0,
            name=view,
            ids=[sample(seq) for seq in seqs],
            plan=self.plan.version,
            budget_ms=[budget_ms] * len(seqs),
            outputs={"logits": codec_for("raw").encode(logits)},
            feature=codec_for("bitplane").encode(feature) if eager else None,
        )
        return replace(part, **changes)

    def send_all(self, *seqs: int, **changes: Any) -> None:
        for view in VIEWS:
            self.send(view, *seqs, **changes)

    def answer_pulls(self) -> list[m.Pull]:
        """Every device sends what it was asked for."""
        pulls = self.port.take_down(m.Pull)
        for child, pull in pulls:
            feature = device_outputs(self.bundle, pull.name, [i.seq for i in pull.ids])[1]
            self.flow.features(child, m.Features(0, pull.name, pull.ids, codec_for("bitplane").encode(feature)))
        return [pull for _, pull in pulls]

    def step(self, ms: float = 0.0) -> None:
        """What the node's event loop does, after `ms`."""
        self.clock.advance(int(ms * MS))
        self.flow.expire(self.clock.now_ns())
        self.flow.pump()

    def verdicts(self) -> dict[tuple[str, int], tuple[str, str, int]]:
        """What children were told since the last call: (view, seq) to (exit, degraded, num_views)."""
        found: dict[tuple[str, int], tuple[str, str, int]] = {}
        for _, verdict in self.port.take_down(m.Verdict):
            for row, id_ in enumerate(verdict.ids):
                assert (verdict.name, id_.seq) not in found, "two verdicts for one part"
                found[verdict.name, id_.seq] = (verdict.exits[row], verdict.degraded[row], verdict.num_views[row])
        return found

    def reply(self, part: m.Part, logits: Array | None = None, residence_ns: int = 0, **changes: Any) -> m.Verdict:
        """The parent's verdict for what was sent up."""
        num_rows = len(part.ids)
        values = np.zeros((num_rows, 3), np.float32) if logits is None else logits
        verdict = m.Verdict(
            name=part.name,
            ids=part.ids,
            exits=["cloud"] * num_rows,
            outputs={"logits": codec_for("raw").encode(values)},
            num_views=[3] * num_rows,
            degraded=[""] * num_rows,
            hops=[m.HopTimes("cloud", "cloud", [(residence_ns, *[0] * NUM_SPANS)] * num_rows)],
            plan=self.plan.version,
        )
        return replace(verdict, **changes)

    def capture(self, view: str, seq: int, budget_ms: float = 1000.0) -> None:
        """A view of this node's own."""
        logits, feature = device_outputs(self.bundle, view, [seq])
        row = PartRow("", view, self.clock.now_ns(), 0, logits[0], feature[0], truth=seq, own_ns=(0,) * NUM_SPANS)
        self.flow.local(view, sample(seq), row, self.clock.now_ns() + int(budget_ms * MS))


def sample(seq: int) -> SampleId:
    return SampleId(NodeId("edge"), 1, seq)


_CACHE: dict[str, tuple[Array, dict[str, Arrays]]] = {}
NUM_SAMPLES = 256


def oracle_views(bundle: Bundle) -> Array:
    """Preprocessed images (N, B, C, H, W)."""
    prepare = Preprocessor(bundle.manifest.preprocess)
    return np.stack([[prepare(image, n) for image in view] for n, view in enumerate(images(NUM_SAMPLES))])


def device_outputs(bundle: Bundle, view: str, seqs: Any) -> tuple[Array, Array]:
    """Logits and features of a device for `images()`, by sequence number (modulo their count)."""
    if bundle.digest not in _CACHE:
        levels = Oracle(bundle, engine_maker("onnxruntime")).levels
        x = oracle_views(bundle)
        _CACHE[bundle.digest] = x, {name: levels[0].run(name, x[n]) for n, name in enumerate(levels[0].parts)}
    outputs = _CACHE[bundle.digest][1][view]
    rows = np.array([seq % NUM_SAMPLES for seq in seqs])
    return outputs["logits"][rows], outputs["feature"][rows]


def count_up(port: FakePort) -> Counter[str]:
    return Counter(type(body).__name__ for body in port.up)


def with_join(plan: Plan, **changes: Any) -> Plan:
    return msgspec.structs.replace(plan, join=msgspec.structs.replace(plan.join, **changes))


def damaged(payload: Payload) -> Payload:
    return replace(payload, data=payload.data[:-1])


def told(bench: Bench) -> set[tuple[str, str, int]]:
    """The distinct verdicts, once every view of sample 0 was told."""
    verdicts = bench.verdicts()
    assert set(verdicts) == {(view, 0) for view in VIEWS}
    return set(verdicts.values())


def escalated(bench: Bench) -> m.Part:
    parts = bench.port.take_up(m.Part)
    assert len(parts) == 1
    return parts[0]


def climb(bench: Bench) -> m.Part:
    """Bring sample 0 to the parent."""
    bench.connect_devices()
    bench.send_all(0)
    bench.step()
    bench.answer_pulls()
    bench.step()
    return escalated(bench)
