"""What a Plan was chosen from, as one document that a root keeps: with it the same search can be run again later."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import msgspec

from tierline.cloud.tuner.choice import Choice
from tierline.cloud.tuner.goal import Goal
from tierline.cloud.tuner.job import EFFECTS, Job, kept_in
from tierline.cloud.tuner.tryout import UNREADABLE, read_effects
from tierline.core.bundle import Bundle, digest_of
from tierline.core.candidates import read_outcomes
from tierline.core.errors import BundleError, PlanError
from tierline.core.plan import Hierarchy, Join
from tierline.core.profile import Profile

SCHEMA = 1
MAX_BYTES = 48 << 20
"""Of the document, which travels as one message."""


class Tuning(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Job without its Bundle, and the Choice that came of it."""

    schema: Annotated[int, msgspec.Meta(ge=SCHEMA, le=SCHEMA)]
    choice: Choice
    goal: Goal
    hierarchy: Hierarchy
    join: Join
    handling_ms: dict[str, float]
    profile: Profile
    effects: bytes
    """An `.npz` file."""

    def document(self) -> bytes:
        """JSON; tables keep their order, for cuts go upwards."""
        return msgspec.json.encode(self)

    def digest(self) -> str:
        """sha256 of the document."""
        return digest_of(self.document())

    def job(self, bundle: Bundle, goal: Goal | None = None) -> Job:
        """With a Bundle of the same candidates; `goal` instead of that which it was tuned for. Raises BundleError."""
        try:
            effects = read_effects(io.BytesIO(self.effects), read_outcomes(bundle))
        except UNREADABLE as error:
            raise BundleError(f"what codecs do to answers cannot be read ({error}); tune again") from None
        return Job(bundle, self.profile, self.hierarchy, goal or self.goal, effects, self.join, self.handling_ms)


def tuning_in(folder: Path) -> Tuning:
    """Of a folder that `tierline tune --out` wrote. Raises PlanError, BundleError."""
    job, proposal = kept_in(folder)
    handling_ms, effects = dict(job.handling_ms), (folder / EFFECTS).read_bytes()
    choice = proposal.chosen.choice
    return Tuning(SCHEMA, choice, job.goal, job.hierarchy, job.join, handling_ms, job.profile, effects)


def parse_tuning(raw: bytes, where: str) -> Tuning:
    """Raises PlanError."""
    try:
        return msgspec.json.decode(raw, type=Tuning)
    except msgspec.MsgspecError as error:
        raise PlanError(f"{where}: not what a Plan was chosen from: {error}; tune again") from None
