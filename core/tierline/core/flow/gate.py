"""What a junction takes in: parts that fit its Plan, decoded."""

from __future__ import annotations

from tierline.core.errors import PlanError
from tierline.core.flow.attendance import Attendance
from tierline.core.flow.coding import decode_rows
from tierline.core.flow.levels import LOGITS
from tierline.core.flow.port import Site
from tierline.core.link import messages as m
from tierline.core.plan import Plan
from tierline.core.types import Array


class Gate:
    """Checks what children send. `use` a Plan first."""

    def __init__(self, site: Site, attendance: Attendance) -> None:
        self.roles: dict[str, str] = {}
        """The Bundle's view that each view of the Plan plays."""
        self._node, self._placement, self._levels = site.node, site.placement, site.levels
        self._attendance = attendance
        self._plan = 0
        self.accepted_plans: set[int] = set()
        """Versions that share our structure: rows made under an older one still fit."""

    def use(self, plan: Plan) -> None:
        self._plan = plan.version
        self.accepted_plans.add(plan.version)
        self.roles = {view: role for node in plan.nodes.values() for view, role in node.views.items()}

    def read(self, child: str, part: m.Part) -> tuple[Array | None, Array | None, str]:
        """Logits, features and the Bundle's part name. Raises PlanError or CodecError for a part with no place here."""
        if part.plan not in self.accepted_plans:
            raise PlanError(f"made under plan {part.plan}, this node runs plan {self._plan}")
        if part.fused:
            if self._placement.joins:
                raise PlanError(f"{self._node!r} joins views itself; fused features go to a node above")
            if part.level >= self._levels.root_level:
                raise PlanError(f"level {part.level} has nothing above it")
            if part.feature is None:
                raise PlanError("a fused part needs its feature")
            return None, decode_rows(part.feature, self._levels[part.level].fused_feature_spec()), "*"
        if part.level != 0:
            raise PlanError(f"a view of level {part.level}: views have level 0")
        runner = self._levels[0]
        role = self.roles.get(part.name)
        if role is None or part.name not in self._placement.joins:
            raise PlanError(
                f"view {part.name!r} is not joined at {self._node!r}; it joins {', '.join(self._placement.joins)}"
            )
        if role not in self._attendance.brings(child):
            raise PlanError(f"view {part.name!r} does not come over {child!r}")
        if LOGITS not in part.outputs:
            raise PlanError(f"view {part.name!r}: no output named {LOGITS!r}")
        logits_BK = decode_rows(part.outputs[LOGITS], runner.logits_spec)
        feature_B = None
        if part.feature is not None and runner.feature_spec is not None:
            feature_B = decode_rows(part.feature, runner.feature_spec)
        return logits_BK, feature_B, role
