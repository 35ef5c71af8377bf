"""What one node does to obey one order: times pieces, heads and codecs, one after the other on a thread of its own.

Shape legend: B batch.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import msgspec
import numpy as np

from tierline.core.errors import BundleError, CodecError, ConfigError, EngineError, MissingDependency, ShapeMismatch
from tierline.core.flow.engines import precisions_of
from tierline.core.flow.levels import engine_maker
from tierline.core.flow.measure import Limits, time_codec, time_engine
from tierline.core.flow.node import Node
from tierline.core.flow.orders import Order, OrderedHead, OrderedPiece
from tierline.core.flow.worker import Worker
from tierline.core.profile import INPUT, OUTPUT, CodecTime, HeadTime, NodeProfile, SectionTime
from tierline.core.protocols import Engine
from tierline.core.telemetry.environment import environment
from tierline.core.types import FLOAT32, Array

MAX_PAUSE_S = 0.05
"""While samples are in flight, each measured run is followed by a pause as long as itself, up to this."""
MAX_ROWS = 256
_O = TypeVar("_O", OrderedPiece, OrderedHead)
_NOT_HERE = (EngineError, MissingDependency, ConfigError)


class ProfileRun:
    """Measures; the node goes on answering, and what that cost is in the profile."""

    def __init__(
        self,
        node: Node,
        order: Order,
        files: Mapping[str, bytes],
        worker: Worker,
        say: Callable[[str], None],
    ) -> None:
        self._node, self._order, self._files = node, order, files
        self._worker, self._say = worker, say
        self._limits = Limits(order.warm_s, order.run_s)
        self._engines = order.engines or (node.engine_settings.name,)
        self._sections: list[SectionTime] = []
        self._heads: list[HeadTime] = []
        self._codecs: list[CodecTime] = []
        self._skipped: dict[str, str] = {}
        self._rows: dict[str, Array] = {}
        """By cut: float32 rows of the calibration split as they are there."""
        self._wall_s = self._others_s = 0.0
        self._done = 0
        self._is_stopped = False

    async def profile(self) -> NodeProfile:
        """All of it. What one engine or codec cannot do is noted. Raises BundleError for files of no use."""
        order = self._order
        self._rows[INPUT] = _rows(self._files[order.inputs], "float32")
        images = _rows(self._files[order.images], "uint8") if order.images else None
        before = self._answered()
        for token in self._engines:
            self._note_unfit(token)
            for piece in self._fit(order.pieces, token):
                what = f"{piece.first}..{piece.last} {_told(token, piece)}"
                await self._step(what, partial(self._piece, piece, token))
            for head in self._fit(order.heads, token):
                await self._step(f"exit {head.exit} {_told(token, head)}", partial(self._head, head, token))
        for cut, rows_B in self._rows.items():
            for codec in order.codecs if cut != OUTPUT else ():
                await self._step(f"{codec} at {cut}", partial(self._codec, cut, codec, rows_B, images))
        assert self._node.flow is not None  # whoever was ordered has a Plan
        return NodeProfile(
            node=self._node.id,
            tier=self._node.flow.placement.tier,
            made_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            stamp=environment(),
            sections=tuple(self._sections),
            heads=tuple(self._heads),
            codecs=tuple(self._codecs),
            busy_share=round(max(0.0, self._others_s) / self._wall_s, 3) if self._wall_s else 0.0,
            num_answered=self._answered() - before,
            skipped=self._skipped,
        )

    def stop(self) -> None:
        """End the measurement that runs soon; nothing will come of it."""
        self._is_stopped = True

    async def _step(self, what: str, work: Callable[[], None]) -> None:
        """One measurement on the thread; CPU time of other threads meanwhile is the load beside it."""
        self._done += 1
        self._say(f"{self._done}/{self._num_steps()} {what}")

        def watched() -> None:
            wall_s, process_s, own_s = time.perf_counter(), time.process_time(), time.thread_time()
            work()
            self._wall_s += time.perf_counter() - wall_s
            self._others_s += time.process_time() - process_s - (time.thread_time() - own_s)

        await self._worker.run(watched)

    def _num_steps(self) -> int:
        order = self._order
        cuts = {INPUT, *(piece.last for piece in order.pieces)} - {OUTPUT}
        num = sum(len(self._fit(order.pieces, token)) + len(self._fit(order.heads, token)) for token in self._engines)
        return num + len(cuts) * len(order.codecs)

    def _fit(self, found: tuple[_O, ...], token: str) -> list[_O]:
        """Those in a precision that an engine computes in."""
        can = known_precisions(token)
        return [one for one in found if one.precision in can]

    def _note_unfit(self, token: str) -> None:
        can = known_precisions(token)
        found = [*(piece.precision for piece in self._order.pieces), *(head.precision for head in self._order.heads)]
        for precision in dict.fromkeys(found):
            if precision not in can:
                self._skipped[f"{precision} {token}"] = f"this engine computes in {', '.join(can)} here"

    def _piece(self, piece: OrderedPiece, token: str) -> None:
        what, told = f"{piece.first}..{piece.last}", _told(token, piece)
        if piece.first not in self._rows:
            self._skipped[f"{what} {told}"] = f"nothing gave rows at {piece.first!r}"
            return
        with self._engine(piece.digest, what, token, told) as engine:
            if engine is None:
                return
            rows_B = _as_input(engine, self._rows[piece.first])
            if piece.last not in self._rows:
                (out_B,) = engine.run({next(iter(engine.spec.inputs)): rows_B}).values()
                self._rows[piece.last] = out_B.astype(np.float32, copy=False)
            for batch in self._order.batches:
                t = time_engine(engine, rows_B, batch, self._node.clock, self._limits, self._pause)
                self._sections.append(
                    SectionTime(
                        piece.first, piece.last, token, piece.precision, batch,
                        t.p50_ns, t.spread_ns, t.num_runs, t.is_stable,
                    )
                )  # fmt: skip

    def _head(self, head: OrderedHead, token: str) -> None:
        told = _told(token, head)
        if head.cut not in self._rows:
            self._skipped[f"exit {head.exit} {told}"] = f"nothing gave rows at {head.cut!r}"
            return
        with self._engine(head.digest, f"exit {head.exit}", token, told) as engine:
            if engine is None:
                return
            rows_B = _as_input(engine, self._rows[head.cut])
            for batch in self._order.batches:
                t = time_engine(engine, rows_B, batch, self._node.clock, self._limits, self._pause)
                self._heads.append(
                    HeadTime(head.exit, token, head.precision, batch, t.p50_ns, t.spread_ns, t.num_runs, t.is_stable)
                )

    def _codec(self, cut: str, token: str, rows_B: Array, images_B: Array | None) -> None:
        """At the input, codecs of images get images."""
        try:
            time_ = time_codec(cut, token, rows_B, self._node.clock, self._limits, self._pause)
        except (CodecError, ShapeMismatch) as error:
            if cut != INPUT or images_B is None:
                self._skipped[f"{token} at {cut}"] = str(error)
                return
            try:
                time_ = time_codec(cut, token, images_B, self._node.clock, self._limits, self._pause)
            except (CodecError, ShapeMismatch):
                self._skipped[f"{token} at {cut}"] = str(error)
                return
        self._codecs.append(time_)

    @contextmanager
    def _engine(self, digest: str, what: str, token: str, told: str) -> Iterator[Engine | None]:
        """None where it cannot be made; an error of its runs is noted, too."""
        engine: Engine | None = None
        try:
            engine = engine_maker(token, self._node.engine_settings.threads)(self._files[digest], what)
        except _NOT_HERE as error:
            self._skipped[f"{what} {told}"] = str(error)
        try:
            yield engine
        except EngineError as error:
            self._skipped[f"{what} {told}"] = str(error)
        finally:
            if engine is not None:
                engine.close()

    def _pause(self, ns: int) -> None:
        if self._is_stopped:
            raise EngineError("stopped while measuring")
        flow = self._node.flow
        if flow is not None and flow.num_open:
            time.sleep(min(ns / 1e9, MAX_PAUSE_S))

    def _answered(self) -> int:
        flow = self._node.flow
        return sum(n for key, n in flow.counts.items() if key.startswith("exit:")) if flow is not None else 0


def wanted(order: Order, own_engine: str) -> Order:
    """The order without what none of its engines computes in here, so that it is not fetched."""
    can = {precision for token in order.engines or (own_engine,) for precision in known_precisions(token)}
    return msgspec.structs.replace(
        order,
        pieces=tuple(piece for piece in order.pieces if piece.precision in can),
        heads=tuple(head for head in order.heads if head.precision in can),
    )


def known_precisions(token: str) -> tuple[str, ...]:
    """What an engine computes in; float32 of one that is not there, whose refusal is noted when it is made."""
    try:
        return precisions_of(token)
    except _NOT_HERE:
        return (FLOAT32,)


def _told(token: str, one: OrderedPiece | OrderedHead) -> str:
    return token if one.precision == FLOAT32 else f"{token} {one.precision}"


def _as_input(engine: Engine, rows_B: Array) -> Array:
    """Rows in the dtype and shape that a piece takes. Raises EngineError where they do not fit."""
    ((name, spec),) = engine.spec.inputs.items()
    if rows_B[0].size != spec.num_values:
        raise EngineError(f"input {name!r} takes {list(spec.shape)}, the rows at its cut are {list(rows_B.shape[1:])}")
    return np.ascontiguousarray(rows_B.reshape(len(rows_B), *spec.shape), dtype=spec.dtype)


def _rows(raw: bytes, dtype: str) -> Array:
    """A `.npy` file of the order."""
    try:
        rows_B = np.load(io.BytesIO(raw), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise BundleError(f"the rows to measure with are no .npy file: {error}") from None
    if rows_B.dtype != np.dtype(dtype) or rows_B.ndim < 2 or not 1 <= len(rows_B) <= MAX_ROWS:
        raise BundleError(
            f"the rows to measure with are {rows_B.dtype}{list(rows_B.shape)}; expected 1 to {MAX_ROWS} of {dtype}"
        )
    return np.asarray(rows_B)
