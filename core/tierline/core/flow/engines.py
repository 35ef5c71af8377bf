"""Which engine runs a Section, and what answers while that one is still being built."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from tierline.core import catalog
from tierline.core.errors import EngineError, TierlineError
from tierline.core.protocols import Engine, SectionSpec
from tierline.core.types import FLOAT32, Arrays

_log = logging.getLogger("tierline.engine")
_one_build = threading.Lock()
"""Builders take every core and time kernels: two at once disturb each other."""
_SAY_S = 10.0
"""Between two log lines of one build."""
READY = "ready"
"""State of an engine that is what it is meant to be."""

OnStep = Callable[[str, int, int], bool]


def split_token(token: str) -> tuple[str, dict[str, Any]]:
    """`onnxruntime:cuda` to `("onnxruntime", {"provider": "cuda"})`: an engine's name and options."""
    name, colon, provider = token.partition(":")
    return name, {"provider": provider} if colon else {}


def check_engine(token: str) -> None:
    """Raise MissingDependency unless an engine can run on this machine, and ConfigError for an unknown one."""
    name, options = split_token(token)
    check = getattr(catalog.load("engine", name), "check", None)
    if check is not None:
        check(**options)


def takes_time(token: str) -> bool:
    """Whether making this engine may take minutes."""
    return bool(getattr(catalog.load("engine", split_token(token)[0]), "takes_time", False))


def precisions_of(token: str) -> tuple[str, ...]:
    """What an engine computes Sections in, told by its class; float32 alone where that says nothing."""
    name, options = split_token(token)
    told = getattr(catalog.load("engine", name), "precisions", None)
    return (FLOAT32,) if told is None else tuple(told(**options))


def check_runs(token: str, precision: str) -> None:
    """Raise EngineError where an engine does not compute in a precision."""
    found = precisions_of(token)
    if precision not in found:
        raise EngineError(f"engine {token!r} does not compute in {precision} here, only in {', '.join(found)}")


class Awaited:
    """An engine that answers with `meanwhile` until another is made in the background, and with that one from the
    next batch on. Where that fails, `meanwhile` stays, and the log says why.
    """

    def __init__(self, name: str, make: Callable[[OnStep], Engine], meanwhile: Engine) -> None:
        self.spec: SectionSpec = meanwhile.spec
        self.state = "building"
        """`building: PHASE DONE/STEPS`, `ready`, or `failed: WHY`."""
        self._name, self._make, self._engine = name, make, meanwhile
        self._next: Engine | None = None
        self._is_closed = False
        self._lock = threading.Lock()
        self._said_s = time.monotonic()
        self._thread = threading.Thread(target=self._build, name=f"build-{name}", daemon=True)
        self._thread.start()

    def warmup(self) -> None:
        self._engine.warmup()

    def run(self, inputs: Arrays) -> Arrays:
        if self._next is not None:
            self._switch()
        return self._engine.run(inputs)

    def close(self) -> None:
        """Free both engines; a build under way is told to stop."""
        with self._lock:
            self._is_closed = True
            made, self._next = self._next, None
        if made is not None:
            made.close()
        self._engine.close()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until there is nothing more to wait for."""
        self._thread.join(timeout_s)

    def _switch(self) -> None:
        with self._lock:
            made, self._next = self._next, None
        if made is not None:
            before, self._engine = self._engine, made
            before.close()
            _log.info("%s: runs on the engine that was built for it from this batch on", self._name)

    def _build(self) -> None:
        try:
            with _one_build:
                if self._is_closed:
                    return
                made = self._make(self._step)
                if made.spec != self.spec:
                    made.close()
                    raise EngineError(f"{self._name}: the engine built has other tensors: {made.spec}")
                made.warmup()
        except Exception as error:  # also a bug of ours must not end what answers
            if self._is_closed:
                return
            self.state = f"failed: {error}"
            _log.warning("%s; the next engine goes on answering", error, exc_info=not isinstance(error, TierlineError))
            return
        with self._lock:
            if not self._is_closed:
                self._next, self.state = made, READY
                return
        made.close()

    def _step(self, phase: str, done: int, steps: int) -> bool:
        self.state = f"building: {phase} {done}/{steps}"
        if time.monotonic() - self._said_s >= _SAY_S:
            self._said_s = time.monotonic()
            _log.info("%s: %s", self._name, self.state)
        return not self._is_closed
