"""The numeric half of a node: scores exits, fuses parts, runs Sections. No I/O, no identity, no time.

Shape legend: N parts, B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tierline.core import catalog
from tierline.core.bundle import Bundle, Exit, Level, Section
from tierline.core.errors import BundleError
from tierline.core.flow.engines import READY, Awaited, split_token
from tierline.core.protocols import Aggregator, Engine, ExitRule, Task
from tierline.core.types import FLOAT32, Array, Arrays, TensorSpec

LOGITS = "logits"
FEATURE = "feature"
IMAGE = "image"

NO_EXIT = "none"
"""In place of an exit's name, where a sample ends before it reached one."""
_NONE = Exit(NO_EXIT)

MakeEngine = Callable[[bytes, str], Engine]


@dataclass(frozen=True, slots=True)
class Decision:
    """One exit's view of a batch."""

    outputs: Arrays
    """Fused outputs by name, axis 0 the batch."""
    score_B: Array


class LevelRunner:
    """What a node needs of one level: its exit, the fusion of its features, and the Sections that run here."""

    def __init__(self, level: Level, views: list[str]) -> None:
        self.level = level
        self.has_exit = level.exit is not None
        self.exit_name = level.exit.name if level.exit is not None else NO_EXIT
        self.parts = views if set(level.sections) == set(views) else ["*"]
        """Order of parts on axis N: the Bundle's views at level 0, one part above."""
        some = next(iter(level.sections.values()))
        self._logits_spec = some.outputs[LOGITS].spec if level.exit is not None else None
        self.feature_spec: TensorSpec | None = some.outputs[FEATURE].spec if FEATURE in some.outputs else None
        exit_ = level.exit or _NONE
        self.rule: ExitRule = catalog.make("exit", exit_.rule)
        self.head: Engine | None = None
        self.sections: dict[str, Engine] = {}
        self._outputs: Aggregator = catalog.make("aggregate", exit_.aggregator)
        self._features: Aggregator = catalog.make("aggregate", level.feature_aggregator)
        self.num_parts = len(self.parts)
        self._fused_spec: TensorSpec | None = None
        if self.feature_spec is not None:
            self._fused_spec = self._features.fused_spec(self.feature_spec, self.num_parts)

    @property
    def logits_spec(self) -> TensorSpec:
        """Spec of the exit's logits. Raises BundleError where there is no exit."""
        if self._logits_spec is None:
            raise BundleError(f"level {self.level.tier.value!r} has no exit")
        return self._logits_spec

    def fused_feature_spec(self) -> TensorSpec:
        """Spec of the next Section's input. Raises BundleError where there is none."""
        if self._fused_spec is None:
            raise BundleError(f"level {self.level.tier.value!r} has no feature to climb")
        return self._fused_spec

    def fuse_outputs(self, logits_NBK: Array, present_NB: Array) -> dict[str, Array]:
        """Outputs of this level's exit."""
        if self.num_parts == 1 and self.head is None:
            return {LOGITS: logits_NBK[0]}
        fused = self._outputs.combine(logits_NBK, present_NB)
        return {LOGITS: fused} if self.head is None else dict(self.head.run({next(iter(self.head.spec.inputs)): fused}))

    def own_outputs(self, logits_BK: Array) -> dict[str, Array]:
        """Outputs of this level's exit where its Section saw the whole sample: the only part, and present."""
        if self.head is None:
            return {LOGITS: logits_BK}
        logits_1BK = logits_BK[np.newaxis]
        return self.fuse_outputs(logits_1BK, np.ones(logits_1BK.shape[:2], dtype=np.bool_))

    def decide(self, logits_NBK: Array, present_NB: Array) -> Decision:
        """Fuse and score."""
        outputs = self.fuse_outputs(logits_NBK, present_NB)
        return Decision(outputs, self.rule.score(outputs))

    def fuse_features(self, parts_NB: Array, present_NB: Array) -> Array:
        """The next Section's input."""
        return parts_NB[0] if self.num_parts == 1 else self._features.combine(parts_NB, present_NB)

    def run(self, part: str, x_B: Array) -> Arrays:
        """Run one Section of this level; level 0 takes images, higher levels fused features."""
        engine = self.sections[part]
        return engine.run({next(iter(engine.spec.inputs)): x_B})

    def engines(self) -> dict[str, Engine]:
        """What runs here, by the Section's name; an exit's head is one."""
        engines = {self.level.sections[part].name: engine for part, engine in self.sections.items()}
        if self.level.head is not None and self.head is not None:
            engines[self.level.head.name] = self.head
        return engines

    def close(self) -> None:
        for engine in {id(engine): engine for engine in self.engines().values()}.values():
            engine.close()


class Levels:
    """All levels of a Bundle as one node holds them: shared shapes, and engines only for what runs here."""

    def __init__(
        self,
        bundle: Bundle,
        make_engine: MakeEngine,
        *,
        views: Mapping[str, str],
        joins: bool,
        runs: set[int],
        precision: str = FLOAT32,
    ) -> None:
        """`views`: hosted view to the Bundle's view it plays; `runs`: higher levels whose Section runs here. Raises
        BundleError where the Bundle lacks one of them in this precision."""
        manifest = bundle.manifest
        self.manifest = manifest
        self.task: Task = catalog.make("task", manifest.task, labels=manifest.labels)
        self.levels = [LevelRunner(level, manifest.views) for level in manifest.levels]
        self.root_level = len(self.levels) - 1

        def load(section: Section, shared: dict[str, Engine]) -> Engine:
            """Views with the same file share its engine."""
            file = section.file_in(precision)
            digest = manifest.files.get(file, file)
            if digest not in shared:
                engine = shared[digest] = make_engine(bundle.read(file), section.name)
                engine.warmup()
            return shared[digest]

        for index, runner in enumerate(self.levels):
            wanted = set(views.values()) if index == 0 else {"*"} if index in runs else set()
            engines: dict[str, Engine] = {}
            for part in runner.parts:
                if part in wanted:
                    runner.sections[part] = load(runner.level.sections[part], engines)
            decides = joins if index == 0 else index in runs
            # A device that does not join still answers alone when its parent is gone: it needs the head, too.
            head = runner.level.head
            if head is not None and (decides or wanted):
                runner.head = load(head, {})

    def __getitem__(self, level: int) -> LevelRunner:
        return self.levels[level]

    def __len__(self) -> int:
        return len(self.levels)

    def engine_states(self) -> dict[str, str]:
        """State of the engine of every Section that runs here, heads included, by the Section's name."""
        engines = {name: engine for runner in self.levels for name, engine in runner.engines().items()}
        return {name: getattr(engine, "state", READY) for name, engine in engines.items()}

    def close(self) -> None:
        for runner in self.levels:
            runner.close()


def engine_maker(token: str, threads: int = 1, meanwhile: str = "") -> MakeEngine:
    """Engines of one kind, such as `onnxruntime:cuda`; another kind answers where making the first takes time."""

    def make(model: bytes, section: str) -> Engine:
        def of(token: str, **more: Any) -> Engine:
            name, options = split_token(token)
            engine: Engine = catalog.make("engine", name, model=model, name=section, threads=threads, **options, **more)
            return engine

        if not meanwhile:
            return of(token)
        return Awaited(section, lambda on_step: of(token, on_step=on_step), of(meanwhile))

    return make


def stack(rows: list[list[Array | None]], spec: TensorSpec) -> tuple[Array, Array]:
    """Rows of parts, `rows[n][b]`, to `(parts_NB..., present_NB)`; None marks an absent part."""
    num_parts, num_rows = len(rows), len(rows[0])
    present_NB = np.ones((num_parts, num_rows), dtype=np.bool_)
    parts_NB = np.empty((num_parts, num_rows, *spec.shape), dtype=spec.dtype)
    for n, part in enumerate(rows):
        for b, row in enumerate(part):
            if row is None:
                present_NB[n, b] = False
                parts_NB[n, b] = 0
            else:
                parts_NB[n, b] = row
    return parts_NB, present_NB
