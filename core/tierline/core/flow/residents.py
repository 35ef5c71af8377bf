"""From one Plan's structure to the next at one node, while samples are in flight.

    prepare    load the next one on a thread, beside what runs; or, without memory for two, find out that it fits alone
    activate   new samples are made under it; older ones end where they began
    retire     the former one goes once nothing of it is in flight, here and below

Ids that a junction mints for views of several nodes (`join = sequence`, `trigger`) change hands at a number that the
junction sets, above all that it has seen. Senders that were ahead of it send those samples again under the new Plan,
so that views of one sample always meet under one Plan. Without memory for two, `activate` only begins a pause: what
is new waits, what is older ends, and then the Sections are swapped.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tierline.core.bundle import Bundle
from tierline.core.errors import AdmissionRefused, PlanError, TierlineError
from tierline.core.flow.journey import Memory
from tierline.core.flow.loaded import EngineSettings, Loaded, estimated_bytes
from tierline.core.flow.resident import Lines, Resident
from tierline.core.flow.worker import Worker
from tierline.core.plan import Placement, Plan
from tierline.core.types import SampleId

_log = logging.getLogger("tierline.plan")
MAX_LINGER_NS = 30_000_000_000
"""A view that does not reach the number where the new Plan begins is waited for a sample's time, but no longer."""
MAX_RETIRED = 8
"""Plans whose last rows may still be on their way."""
FORCE_AFTER_NS = 60_000_000_000
"""Then what is still in flight of a former Plan is answered by its best exit so far."""


@dataclass(slots=True)
class Prepared:
    """A structure that was prepared and is not yet in force."""

    plan: Plan
    bundle: Bundle
    placement: Placement
    loaded: Loaded | None
    """None: there is no memory for two."""
    newer: Plan | None = None
    """Other knobs for it that came meanwhile."""


@dataclass(slots=True)
class _Former:
    resident: Resident
    version: int
    """Of the Plan that followed it."""
    linger_until_ns: int
    force_at_ns: int


class Residents:
    """All structures at one node. Not thread-safe; loading alone happens on a thread of its own."""

    def __init__(self, lines: Lines, engine: EngineSettings) -> None:
        self.now: Resident | None = None
        """Where new samples go; None before the first Plan, and during a pause."""
        self.next: Prepared | None = None
        self.waiting: Prepared | None = None
        """In force, but not loaded: what is new waits until the former one is gone."""
        self.plan: Plan | None = None
        """In force."""
        self.bundle: Bundle | None = None
        self.latest: dict[str, SampleId] = {}
        """Last capture of each own view."""
        self.keeps_images = False
        """While another Plan is being prepared, captures are kept with their samples."""
        self.failure = ""
        """Why the Plan in force could not be loaded after a pause."""
        self._lines, self._engine = lines, engine
        self._former: list[_Former] = []
        self._all: list[Resident] = []
        self._retired: deque[tuple[frozenset[int], SampleId]] = deque(maxlen=MAX_RETIRED)
        self._memory = Memory(lines.clock.now_ns())
        self._loader = Worker("loader")

    # --- who takes what ---------------------------------------------------------------------------------------

    def all(self) -> list[Resident]:
        """The one for new samples first."""
        return self._all

    def _list(self) -> None:
        """Note who is here: it is asked for several times per message."""
        now = [self.now] if self.now is not None else []
        self._all = now + [former.resident for former in reversed(self._former)]

    def is_single(self) -> bool:
        return not self._former

    def of_version(self, version: int) -> Resident | None:
        """Which one takes rows made under this version; None where they have to wait for it."""
        waiting, found = self.waiting, self._all
        if waiting is None and len(found) == 1:
            return found[0]
        if waiting is not None and version >= waiting.plan.version:
            return None
        return next((resident for resident in found if version in resident.flow.versions), found[0] if found else None)

    def ended_at(self, version: int) -> SampleId | None:
        """Where the ids of a version that is gone ended. Its senders had heard of that, and said so on another stream,
        while rows that they were going to send again were still on their way."""
        return next((ends for versions, ends in self._retired if version in versions), None)

    def holding(self, ids: Iterable[SampleId]) -> list[Resident]:
        """Who has these samples in flight; else the one for new samples."""
        known = list(ids)
        found = [resident for resident in self.all() if any(map(resident.flow.holds, known))]
        return found or self.all()[:1]

    def of_sample(self, sample: SampleId) -> Resident | None:
        """Where a capture belongs: None where it has to wait for what is not loaded yet."""
        for former in self._former:
            resident = former.resident
            if resident.flow.holds(sample):
                return resident
            ends, is_late = resident.ends, self._lines.clock.now_ns() >= former.linger_until_ns
            if ends is not None and not is_late and sample[:2] == ends[:2] and sample.seq < ends.seq:
                return resident
        return None if self.waiting is not None else self.now

    # --- the three steps --------------------------------------------------------------------------------------

    def has_structure(self, plan: Plan, bundle: Bundle) -> bool:
        """Whether only knobs separate this Plan from the one in force."""
        placement = plan.placement(self._lines.id)
        if self.waiting is not None:
            return (bundle.digest, placement) == (self.waiting.bundle.digest, self.waiting.placement)
        return self.now is not None and self.now.loaded.fits(bundle, placement)

    def use(self, plan: Plan) -> None:
        """Other knobs for the structure in force."""
        if self.waiting is not None:
            self.waiting.newer = plan
        elif self.now is not None:
            self.now.flow.use(plan)
        self.plan = plan

    def replace(self, plan: Plan, bundle: Bundle) -> None:
        """Take this structure at once, after answering what is in flight under the former."""
        loaded = self._load(bundle, plan.placement(self._lines.id))
        self.discard()
        resident = Resident(self._lines, plan, loaded, self._memory)
        for old in self.all():
            old.close()
        self._former.clear()
        self.now, self.plan, self.bundle, self.waiting, self.failure = resident, plan, bundle, None, ""
        self._list()

    async def prepare(self, plan: Plan, bundle: Bundle) -> Prepared:
        """Load what the Plan places here. Raises AdmissionRefused where not even this alone fits, and what loading
        raises."""
        self.discard()
        self.keeps_images = True
        placement = plan.placement(self._lines.id)
        loaded: Loaded | None = None
        now = self.now
        if now is not None and now.loaded.fits(bundle, placement):
            loaded = now.loaded
        elif self._fits_beside(bundle, placement):
            loaded = await self._loader.run(lambda: self._load(bundle, placement))
            if self._limit and resident_bytes() > self._limit:  # the estimate was too low
                loaded.acquire().release()
                loaded = None
        if loaded is None:
            _log.warning(
                "plan %d: no memory for two Plans (engine.max_memory_bytes = %d): samples will pause for it",
                plan.version,
                self._limit,
            )
        self.next = Prepared(plan, bundle, placement, loaded.acquire() if loaded is not None else None)
        return self.next

    def discard(self) -> None:
        """Forget what was prepared."""
        if self.next is not None and self.next.loaded is not None:
            self.next.loaded.release()
        self.next, self.keeps_images = None, False

    def activate(self, ends: SampleId | None) -> Resident | None:
        """What was prepared is in force. `ends`: where ids that are minted for several nodes change hands.

        Returns the former resident. Raises PlanError where nothing was prepared.
        """
        prepared, former = self.next, self.now
        if prepared is None:
            raise PlanError("no Plan was prepared")
        now_ns = self._lines.clock.now_ns()
        if former is not None:
            linger_ns = now_ns + min(int(former.plan.budget_ms * 1e6), MAX_LINGER_NS)
            former.ends = ends
            self._former.append(_Former(former, prepared.plan.version, linger_ns, linger_ns + FORCE_AFTER_NS))
        self.next, self.plan, self.bundle, self.failure = None, prepared.plan, prepared.bundle, ""
        self.keeps_images = False
        if prepared.loaded is None:
            self.now, self.waiting = None, prepared
            _log.warning("plan %d: paused until older samples are answered", prepared.plan.version)
        else:
            self.waiting = None
            self.now = Resident(self._lines, prepared.plan, prepared.loaded, self._memory)
            prepared.loaded.release()  # the resident holds it
        self._list()
        return former

    def retire(self, below_is_settled: Callable[[int], bool]) -> bool:
        """Let go what nobody needs any more; whether anything went. `below_is_settled(version)`: nothing that is older
        than this Plan is in flight at the nodes below."""
        now_ns = self._lines.clock.now_ns()
        kept = []
        for former in self._former:
            resident = former.resident
            passed = now_ns >= former.linger_until_ns or self._passed(resident)
            done = passed and resident.is_idle() and below_is_settled(former.version)
            # A batch on the thread still uses the engines.
            if done or (now_ns >= former.force_at_ns and not resident.num_running):
                resident.close()
                if resident.ends is not None:
                    self._retired.append((frozenset(resident.flow.versions), resident.ends))
            else:
                kept.append(former)
        went = len(kept) < len(self._former)
        if went:
            self._former = kept
            self._list()
        return went

    async def swap(self) -> None:
        """The end of a pause: load what waits, now that the former one is gone. Raises what loading raises."""
        waiting = self.waiting
        assert waiting is not None and not self._former
        try:
            loaded = await self._loader.run(lambda: self._load(waiting.bundle, waiting.placement))
        except TierlineError as error:
            self.failure = str(error)
            raise
        self.now = Resident(self._lines, waiting.plan, loaded, self._memory)
        if waiting.newer is not None:
            self.now.flow.use(waiting.newer)
        self.waiting = None
        self._list()
        _log.warning("plan %d: goes on, after a pause", waiting.plan.version)

    def close(self) -> None:
        """Answer what is in flight and release engines."""
        self.discard()
        for resident in self.all():
            resident.close()
        self.now, self._former = None, []
        self._list()
        self._loader.close()

    # --- inside -----------------------------------------------------------------------------------------------

    @property
    def _limit(self) -> int:
        return self._engine.max_memory_bytes

    def _load(self, bundle: Bundle, placement: Placement) -> Loaded:
        return Loaded(bundle, placement, self._engine, self._lines.clock)

    def _fits_beside(self, bundle: Bundle, placement: Placement) -> bool:
        """Whether two can be loaded at once. Raises AdmissionRefused where not even the new one alone can."""
        if not self._limit:
            return True
        now, need = resident_bytes(), estimated_bytes(bundle, placement)
        freed = sum(estimated_bytes(x.loaded.bundle, x.placement) for x in self.all())
        if now - freed + need > self._limit:
            raise AdmissionRefused(
                f"its Sections need about {need >> 20} MiB, {max(0, self._limit - now + freed) >> 20} MiB are left of "
                f"engine.max_memory_bytes = {self._limit} with the present ones gone; place fewer Sections here"
            )
        return now + need <= self._limit

    def _passed(self, resident: Resident) -> bool:
        """Whether no own view can bring a sample that belongs to a former resident."""
        ends = resident.ends
        if ends is None:
            return True
        mine = [self.latest[view] for view in resident.placement.views if view in self.latest]
        return all(sample.seq >= ends.seq - 1 for sample in mine if sample[:2] == ends[:2])


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * 4096
