"""Sections as one node has loaded them: engines, preprocessing, and how long one row of each takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tierline.core.bundle import Bundle, Manifest, Section
from tierline.core.errors import MissingDependency, PlanError
from tierline.core.flow.engines import check_engine, check_runs, precisions_of, takes_time
from tierline.core.flow.levels import Levels, engine_maker
from tierline.core.plan import Placement
from tierline.core.preprocess import Preprocessor
from tierline.core.protocols import Clock

SECTION_BYTES = 4 << 20
"""What an engine takes beside its weights, by estimate: its graph, and the tensors between its operators."""
COPIES = 2
"""How often its weights are in memory while a Section is loaded."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How Sections run on this machine."""

    name: str = "onnxruntime"
    threads: int = 1
    inline_ms: float = 0.5
    """A run expected to take longer goes to a worker thread, so that links stay responsive."""
    meanwhile: str = ""
    """The engine that answers while `name` is built, where that takes time."""
    max_memory_bytes: int = 0
    """What this process may take, two Plans at once included; 0: whatever there is."""
    allowed: tuple[str, ...] = ()
    """What a Plan may name instead, best first: `engine.prefer`. Empty: `name` alone."""

    def of(self, placement: Placement) -> tuple[str, str]:
        """The engine that a Plan asks for, and the one that answers while that is built, or none.

        Raises PlanError for one that this machine's own file does not name, MissingDependency for one that cannot run
        here, EngineError for one that does not compute in the Plan's precision.
        """
        allowed = self.allowed or (self.name,)
        token = placement.engine or self.name
        if token not in (*allowed, self.name):
            raise PlanError(
                f"engine {token!r}: engine.prefer of this node names {', '.join(allowed)}; add it there, or plan with "
                "one of them"
            )
        if token != self.name:
            check_engine(token)
        check_runs(token, placement.precision)
        others = (other for other in (self.meanwhile, *allowed) if other and other != token)
        if not takes_time(token):
            return token, ""
        return token, next((other for other in others if _can_stand_in(other, placement.precision)), "")


class Loaded:
    """Two Plans that place the same Sections of one Bundle at a node share one of these."""

    def __init__(self, bundle: Bundle, placement: Placement, engine: EngineSettings, clock: Clock) -> None:
        """Load, warm up and time. May take long, and may be done on any thread. Raises BundleError, EngineError,
        PlanError, MissingDependency."""
        token, meanwhile = engine.of(placement)
        self.bundle, self.placement = bundle, placement
        self.preprocess = Preprocessor(bundle.manifest.preprocess)
        self.row_ns: dict[tuple[int, str], int] = {}
        """Of one row of each Section, by level and part."""
        self._num_users = 0
        self.levels = Levels(
            bundle,
            engine_maker(token, engine.threads, meanwhile),
            views=placement.views,
            joins=bool(placement.joins),
            runs=set(placement.runs),
            precision=placement.precision,
        )
        self._measure(clock)

    def fits(self, bundle: Bundle, placement: Placement) -> bool:
        """Whether a Plan that places this here needs nothing else."""
        return (bundle.digest, placement) == (self.bundle.digest, self.placement)

    def acquire(self) -> Loaded:
        self._num_users += 1
        return self

    def release(self) -> None:
        """The last user frees the engines."""
        self._num_users -= 1
        if self._num_users <= 0:
            self.levels.close()

    def _measure(self, clock: Clock) -> None:
        """Time one row of every engine, to know which may run on the event loop: all that share one, or none of them,
        for an engine has one caller at a time."""
        for index in range(len(self.levels)):
            known: dict[int, int] = {}
            for part, engine in self.levels[index].sections.items():
                if id(engine) in known:
                    self.row_ns[index, part] = known[id(engine)]
                    continue
                name, spec = next(iter(engine.spec.inputs.items()))
                x_B = np.zeros((1, *spec.shape), dtype=spec.dtype)
                times = []
                for _ in range(5):
                    started_ns = clock.now_ns()
                    engine.run({name: x_B})
                    times.append(clock.now_ns() - started_ns)
                self.row_ns[index, part] = known[id(engine)] = min(times)


def sections_at(manifest: Manifest, placement: Placement) -> list[Section]:
    """Sections and heads that run where this is placed."""
    found: list[Section] = []
    for index, level in enumerate(manifest.levels):
        wanted = set(placement.views.values()) if index == 0 else {"*"} if index in placement.runs else set()
        found += [section for part, section in level.sections.items() if part in wanted]
        if level.head is not None and (wanted or (index == 0 and placement.joins)):
            found.append(level.head)
    return found


def files_at(manifest: Manifest, placement: Placement) -> list[str]:
    """Their files in the precision of the placement, sorted. Raises BundleError where the Bundle lacks one."""
    return sorted({section.file_in(placement.precision) for section in sections_at(manifest, placement)})


def estimated_bytes(bundle: Bundle, placement: Placement) -> int:
    """Memory that Sections take once loaded, from the sizes of their files. Raises BundleError where one is missing."""
    return sum(COPIES * bundle.num_bytes(file) + SECTION_BYTES for file in files_at(bundle.manifest, placement))


def _can_stand_in(token: str, precision: str) -> bool:
    """Whether an engine can answer at once, in this precision."""
    try:
        check_engine(token)
    except MissingDependency:
        return False
    return not takes_time(token) and precision in precisions_of(token)
