"""The import contract of a room: one file per algorithm, and no algorithm leans on another.

import-linter's own `independence` contract forbids every import between the matching modules. A room may share code in
a private module (`_pace.py`), so that here a module with a leading underscore may be imported by its neighbours; an
algorithm reached through it is still refused.
"""

from __future__ import annotations

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class RoomsContract(Contract):
    """`rooms` lists packages; within each, public children must not import one another, directly or through others."""

    type_name = "rooms"
    rooms = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        routes = []
        for room in self.rooms:  # type: ignore[attr-defined]  # the field is replaced by its list on construction
            if room not in graph.modules:
                raise ValueError(f"{room}: no such package; correct the rooms contract in pyproject.toml")
            files = {m for m in graph.find_children(room) if not m.rsplit(".", 1)[1].startswith("_")}
            routes += [r for d in graph.find_illegal_dependencies_for_layers(layers=(files,)) for r in d.routes]
        chains = sorted(" -> ".join((min(r.heads), *r.middle, min(r.tails))) for r in routes)
        return ContractCheck(kept=not chains, metadata={"chains": chains})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for chain in check.metadata["chains"]:
            output.print_error(f"{chain}: move what they share into a private module of the room")
