"""A node that hosts no view, asked for a sample: it runs the whole Bundle here, under the thresholds of the Plan.

Shape legend: N views, B batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np

from tierline.core.bundle import Bundle
from tierline.core.errors import PlanError
from tierline.core.flow.levels import engine_maker
from tierline.core.flow.loaded import EngineSettings
from tierline.core.flow.node import Node
from tierline.core.flow.oracle import Oracle
from tierline.core.link.open_inference import Card, Verdict
from tierline.core.preprocess import Preprocessor
from tierline.core.types import Array


class Whole:
    """Loads its engines with the first request; one request runs at a time, on a thread."""

    def __init__(self, node: Node, engine: EngineSettings) -> None:
        self._node, self._engine = node, engine
        self._loaded: tuple[str, Oracle, Preprocessor] | None = None
        self._turn = asyncio.Lock()

    def card(self) -> Card | None:
        if self._node.bundle is None or self._node.plan is None:
            return None
        manifest = self._node.bundle.manifest
        return Card(manifest.name, str(manifest.version), tuple(manifest.views), manifest.preprocess.channels)

    async def infer(self, images: Mapping[str, Array]) -> Sequence[Verdict]:
        """Views that are not given count as absent. Raises ShapeMismatch, BundleError, EngineError."""
        bundle, plan = self._node.bundle, self._node.plan
        if bundle is None or plan is None:
            raise PlanError(f"{self._node.id}: no Plan yet")
        async with self._turn:
            return await asyncio.to_thread(self._run, bundle, plan.thresholds, images)

    def _run(self, bundle: Bundle, thresholds: Mapping[str, float], images: Mapping[str, Array]) -> list[Verdict]:
        oracle, preprocess = self._load(bundle)
        views, num_rows = bundle.manifest.views, len(next(iter(images.values())))
        views_NB = np.zeros((len(views), num_rows, *preprocess.output.shape), np.float32)
        present_NB = np.zeros((len(views), num_rows), np.bool_)
        for index, view in enumerate(views):
            if view in images:
                views_NB[index], present_NB[index] = preprocess.many(images[view], index), True
        found = oracle.exits(views_NB, present_NB)
        names, exit_B = list(found.outputs), oracle.leaving(found, thresholds)
        answers = [oracle.levels.task.decode(outputs) for outputs in found.outputs.values()]
        is_degraded = len(images) < len(views)
        return [Verdict(answers[at][row], names[at], is_degraded) for row, at in enumerate(exit_B.tolist())]

    def _load(self, bundle: Bundle) -> tuple[Oracle, Preprocessor]:
        if self._loaded is None or self._loaded[0] != bundle.digest:
            if self._loaded is not None:
                self._loaded[1].levels.close()
            make = engine_maker(self._engine.name, self._engine.threads, self._engine.meanwhile)
            self._loaded = bundle.digest, Oracle(bundle, make), Preprocessor(bundle.manifest.preprocess)
        return self._loaded[1:]
