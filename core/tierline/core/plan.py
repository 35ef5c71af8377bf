"""A Plan says which Section runs where, with which codec and thresholds. Frozen, versioned, digested.

`Hierarchy` is what the user wrote (who exists, who hosts which views); `place` works out what each node does; a
`Plan` adds the knobs. Plans travel as canonical JSON, so both ends can compare digests.

Placement rules:
- A view's level-0 Section runs at the node that hosts the view.
- Parts of one sample are joined at the *junction*: the host itself where it hosts every view of the Bundle, else the
  first node above it that is not a device. Each junction is a site of its own, with the views below it.
- Every higher level runs at the first node on the way from the junction to the root whose tier is not below the
  level's own; what is left runs at the root.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from tierline.core.bundle import Manifest
from tierline.core.errors import PlanError
from tierline.core.types import FLOAT32, PRECISIONS, Tier

SCHEMA = 1
ORDER = {Tier.DEVICE: 0, Tier.EDGE: 1, Tier.CLOUD: 2}

JoinBy = Literal["none", "sequence", "trigger"]
Mode = Literal["eager", "on_demand", "auto"]


def check_precision(precision: str) -> None:
    """Raise ValueError, as msgspec wants it, for a precision that there is none of."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision = {precision!r}: one of {', '.join(PRECISIONS)}")


class Join(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How views become samples."""

    by: JoinBy = "sequence"
    window_ms: float = 200.0
    """Longest wait for the views of one sample after its first arrived."""
    min_views: int = 1
    """A sample with fewer views is answered, but marked degraded."""
    period_ms: float = 0.0
    """`trigger`: the junction asks for captures this often (0: only when told)."""


class HierarchyNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One node as the user names it."""

    id: str
    tier: Tier
    parent: str = ""
    views: tuple[str, ...] = ()
    engine: str = ""
    """Token of what runs Sections here, one of the node's own `engine.prefer`; empty: the first of those."""
    precision: str = FLOAT32

    def __post_init__(self) -> None:
        check_precision(self.precision)


class Hierarchy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who exists. Exactly one node has no parent: the root."""

    nodes: tuple[HierarchyNode, ...]

    def node(self, node_id: str) -> HierarchyNode:
        for node in self.nodes:
            if node.id == node_id:
                return node
        raise PlanError(f"hierarchy: no node {node_id!r}; it lists {', '.join(n.id for n in self.nodes)}")

    def children(self, node_id: str) -> list[HierarchyNode]:
        return [node for node in self.nodes if node.parent == node_id]

    def path_to_root(self, node_id: str) -> list[HierarchyNode]:
        """The node itself, its parent, ... the root. Raises PlanError on a cycle or an unknown parent."""
        path = [self.node(node_id)]
        while path[-1].parent:
            if len(path) > len(self.nodes):
                raise PlanError(f"hierarchy: the parents of node {node_id!r} form a circle")
            path.append(self.node(path[-1].parent))
        return path

    def views_below(self, node_id: str) -> list[str]:
        """Views of the node and everything below it, in order of declaration."""
        return [v for n in self.nodes if any(p.id == node_id for p in self.path_to_root(n.id)) for v in n.views]


class Placement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one node does."""

    tier: Tier
    parent: str
    views: dict[str, str]
    """Hosted views, each with the Bundle's view it plays."""
    joins: tuple[str, ...] = ()
    """At a junction: all views of its site; empty elsewhere."""
    runs: tuple[int, ...] = ()
    """Levels above 0 whose Section runs here, ascending."""
    engine: str = ""
    """Token of what runs them, one of the node's own `engine.prefer`; empty: the first of those."""
    precision: str = FLOAT32
    """What they are computed in."""

    def __post_init__(self) -> None:
        check_precision(self.precision)


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Placements and knobs for one Bundle on one hierarchy."""

    schema: int
    version: int
    model: str
    bundle: str
    """Digest of the Bundle."""
    nodes: dict[str, Placement]
    thresholds: dict[str, float]
    """T per exit. The last exit answers whatever reaches it."""
    codecs: list[str]
    """Per level: the codec of its feature on a link."""
    links: dict[str, str] = {}
    """By node: the codec of what it sends up, instead of its level's."""
    join: Join = Join()
    mode: Mode = "on_demand"
    budget_ms: float = 5000.0
    """Time a sample has from capture to answer, unless its source says otherwise."""
    max_batch: int = 64
    valid: dict[str, tuple[float, float]] = {}
    """Ranges of what was measured when it was chosen, such as `rtt_ms:NODE`: the round trip from a node to its parent.
    Outside of them another Plan may be better."""

    def placement(self, node_id: str) -> Placement:
        try:
            return self.nodes[node_id]
        except KeyError:
            raise PlanError(f"plan {self.version}: no node {node_id!r}; it lists {', '.join(self.nodes)}") from None

    def codec(self, node_id: str, level: int) -> str:
        """Token of the codec in which a node sends a level's feature up."""
        return self.links.get(node_id, self.codecs[level])

    def document(self) -> bytes:
        """Canonical JSON."""
        return msgspec.json.encode(self, order="sorted")

    def digest(self) -> str:
        """sha256 of the document."""
        return hashlib.sha256(self.document()).hexdigest()


def parse_plan(raw: bytes, where: str) -> Plan:
    """Decode a Plan document; `where` names it in errors."""
    try:
        plan = msgspec.json.decode(raw, type=Plan)
    except msgspec.MsgspecError as error:
        raise PlanError(f"{where}: not a Plan: {error}") from error
    if plan.schema != SCHEMA:
        raise PlanError(f"{where}: schema {plan.schema}, this version reads schema {SCHEMA}")
    return plan


def place(hierarchy: Hierarchy, manifest: Manifest) -> dict[str, Placement]:
    """Work out every node's part. Raises PlanError for a hierarchy that cannot run this Bundle."""
    _check(hierarchy)
    junctions = _junctions(hierarchy, manifest)
    roles: dict[str, str] = {}
    runs: dict[str, list[int]] = {node.id: [] for node in hierarchy.nodes}
    for junction in junctions:
        site = hierarchy.views_below(junction)
        if len(site) > len(manifest.views):
            raise PlanError(
                f"hierarchy: {len(site)} views meet at {junction!r}, but Bundle {manifest.name!r} takes "
                f"{len(manifest.views)} ({', '.join(manifest.views)})"
            )
        roles.update(zip(site, _match(site, manifest.views), strict=False))
        path = hierarchy.path_to_root(junction)
        at = 0
        for index in range(1, len(manifest.levels)):
            while at < len(path) - 1 and ORDER[path[at].tier] < ORDER[manifest.levels[index].tier]:
                at += 1
            if index not in runs[path[at].id]:
                runs[path[at].id].append(index)
    return {
        node.id: Placement(
            tier=node.tier,
            parent=node.parent,
            views={view: roles[view] for view in node.views},
            joins=tuple(hierarchy.views_below(node.id)) if node.id in junctions else (),
            runs=tuple(sorted(runs[node.id])),
            engine=node.engine,
            precision=node.precision,
        )
        for node in hierarchy.nodes
    }


def check_placement(former: Plan, plan: Plan, num_levels: int) -> None:
    """Raises PlanError unless nodes can go from the former Plan to this one while they run: Sections may move, up the
    way from the sensor to the root; nodes, their parents, their views and where those are joined stay."""
    if former.nodes.keys() != plan.nodes.keys():
        raise PlanError(f"other nodes ({', '.join(plan.nodes)}): change the hierarchy file and restart the root")
    for name, new in plan.nodes.items():
        old = former.nodes[name]
        for what in ("tier", "parent", "views", "joins"):
            if getattr(old, what) != getattr(new, what):
                raise PlanError(
                    f"node {name!r}: other {what}; a running hierarchy moves Sections only: change the hierarchy file "
                    "and restart the root"
                )
    for name, junction in plan.nodes.items():
        if not junction.joins:
            continue
        path = [name]
        while plan.nodes[path[-1]].parent:
            path.append(plan.nodes[path[-1]].parent)
        at = [next((n for n, node in enumerate(path) if x in plan.nodes[node].runs), -1) for x in range(1, num_levels)]
        if -1 in at or at != sorted(at):
            raise PlanError(
                f"from {name!r} to the root, every level from 1 to {num_levels - 1} must run once and none below the "
                f"one before it; placed are {', '.join(f'{x}: {list(plan.nodes[x].runs)}' for x in path)}"
            )


def make_plan(
    hierarchy: Hierarchy,
    manifest: Manifest,
    digest: str,
    *,
    version: int = 1,
    thresholds: dict[str, float] | None = None,
    join: Join | None = None,
    mode: Mode = "on_demand",
    budget_ms: float = 5000.0,
    max_batch: int = 64,
) -> Plan:
    """A Plan from the Bundle's own calibration; `thresholds` override it by exit name."""
    exits = manifest.exits()
    chosen = dict(manifest.calibration.thresholds) if manifest.calibration else {}
    for name, threshold in (thresholds or {}).items():
        if name not in exits[:-1]:
            raise PlanError(f"threshold for {name!r}: Bundle {manifest.name!r} has the exits {', '.join(exits[:-1])}")
        chosen[name] = threshold
    return Plan(
        schema=SCHEMA,
        version=version,
        model=f"{manifest.name}@{manifest.version}",
        bundle=digest,
        nodes=place(hierarchy, manifest),
        thresholds={name: chosen.get(name, 0.5) for name in exits[:-1]},
        codecs=[level.feature_codec for level in manifest.levels],
        join=join or Join(),
        mode=mode,
        budget_ms=budget_ms,
        max_batch=max_batch,
    )


def _check(hierarchy: Hierarchy) -> None:
    ids = [node.id for node in hierarchy.nodes]
    for node_id in ids:
        if ids.count(node_id) > 1:
            raise PlanError(f"hierarchy: node {node_id!r} is listed twice")
    roots = [node.id for node in hierarchy.nodes if not node.parent]
    if len(roots) != 1:
        raise PlanError(f"hierarchy: exactly one node must have no parent, found {len(roots)}: {', '.join(roots)}")
    views = [view for node in hierarchy.nodes for view in node.views]
    if not views:
        raise PlanError("hierarchy: no node hosts a view; give at least one node `views = [...]`")
    for view in views:
        if views.count(view) > 1:
            raise PlanError(f"hierarchy: view {view!r} is hosted twice")
    for node in hierarchy.nodes:
        path = hierarchy.path_to_root(node.id)
        if len(path) > 1 and ORDER[path[1].tier] < ORDER[node.tier]:
            raise PlanError(
                f"hierarchy: {node.id!r} ({node.tier.value}) cannot be below {path[1].id!r} ({path[1].tier.value})"
            )


def _junctions(hierarchy: Hierarchy, manifest: Manifest) -> list[str]:
    """Where the views of one sample meet: at their host if it hosts every view of the Bundle by itself,
    else at the first node above it that is not a device (or the root). Each junction is a site of its own."""
    found: list[str] = []
    for node in hierarchy.nodes:
        if not node.views:
            continue
        path = hierarchy.path_to_root(node.id)
        for above in path[1:-1]:
            if above.tier is Tier.DEVICE:
                raise PlanError(
                    f"hierarchy: the views of {node.id!r} cannot pass through the device {above.id!r}; "
                    f"make {above.id!r} an edge node"
                )
        if len(node.views) < len(manifest.views):
            while path[0].tier is Tier.DEVICE and len(path) > 1:
                path.pop(0)
        if path[0].id not in found:
            found.append(path[0].id)
    for junction in found:
        for above in hierarchy.path_to_root(junction)[1:]:
            if above.id in found:
                raise PlanError(
                    f"hierarchy: views meet at {junction!r} and again above it at {above.id!r}; "
                    f"move the views of {above.id!r} below an edge node"
                )
    return found


def _match(site: list[str], views: list[str]) -> list[str]:
    """The Bundle's view for each of a site's: by name where all names fit, else in order of declaration."""
    return site if set(site) <= set(views) else views[: len(site)]
