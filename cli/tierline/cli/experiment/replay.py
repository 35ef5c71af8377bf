"""A run on processes, gone through again in simulation: who took part is read from its file, where its journals' word
is kept, and the models that come out must be those that came out then."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from tierline.cli.experiment.record import differs, lines_of
from tierline.core.arrays import Floats
from tierline.core.errors import ConfigError, DataError
from tierline.core.link.letters import StepKind
from tierline.core.types import NodeId
from tierline.learning.driver.world import Participants
from tierline.learning.rule import Rule


@dataclass(frozen=True)
class Replay:
    """What the file of a run says beside its measurements."""

    path: Path
    participants: Participants
    digests: Mapping[NodeId, str]
    """SHA-256 of flat models after the last round."""

    def check(self, rules: Mapping[NodeId, Rule]) -> None:
        """Raise DataError where a model is not the one that the run ended with."""
        for me, expected in self.digests.items():
            found = _sha256(rules[me].x.flat)
            if found != expected:
                raise DataError(
                    f"{self.path}: replayed, {me} ends with the model {found[:12]}, not {expected[:12]}; the same "
                    "versions on the same kind of processor give the same bits"
                )


def record_lines(participants: Participants, models: Mapping[NodeId, Floats]) -> Iterator[dict[str, Any]]:
    """As `read_replay` finds them."""
    for (node, step, round, wait), members in sorted(participants.items()):
        named = {"node": node, "step": step, "round": round, "wait": wait}
        yield {"record": "heard", **named, "members": sorted(members)}
    for node, flat in sorted(models.items()):
        yield {"record": "model", "node": node, "sha256": _sha256(flat)}


def read_replay(path: Path, head: Mapping[str, Any]) -> Replay:
    """Of the run that `head` is of. Raises ConfigError for a file of another run, or of one that is not complete."""
    if not path.is_file():
        raise ConfigError(f"--replay: no run in {path}; give the --out of a run with --on processes")
    lines = lines_of(path)
    other = differs(lines, head, but="on")
    if other or not lines or lines[0].get("on") != "processes" or lines[-1].get("status") != "complete":
        why = f"was run with another {other!r}" if other else "is no complete run with --on processes"
        raise ConfigError(f"--replay: {path} {why}")
    participants = {}
    for line in lines:
        if line["record"] == "heard":
            key = (NodeId(line["node"]), cast(StepKind, line["step"]), line["round"], line["wait"])
            participants[key] = frozenset(NodeId(member) for member in line["members"])
    digests = {NodeId(line["node"]): line["sha256"] for line in lines if line["record"] == "model"}
    return Replay(path, participants, digests)


def _sha256(flat: Floats) -> str:
    return hashlib.sha256(np.ascontiguousarray(flat).tobytes()).hexdigest()
