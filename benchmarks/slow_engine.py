"""A slow device: runs Sections with ONNX Runtime and stretches the run time it measures by a factor.

An engine as users add them: named by path in `engine.prefer`. `SLOW_ENGINE_FACTOR` says how many times slower than this
machine. What is stretched is the time that one more row takes: the shortest of many runs of a batch, less the shortest
of one row, by the rows between. So the fixed price of a call, which is most of a small Section's time here, is not
stretched a thousandfold. A run then sleeps until its time is over. A Section that only hands the image on takes the
time that it takes.

On a machine that others use, too, one file's time is measured anew and differently at every start. `SLOW_ENGINE_TIMES`
names a folder where times are kept by the file's digest; `calibrate` fills it for many files in turns, so that a
disturbance meets all of them, and keeps each one's shortest.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx

from tierline.core import catalog
from tierline.core.protocols import Engine
from tierline.core.types import Arrays

_ROUNDS, _RUNS, _ROWS = 30, 10, 16
_HANDS_ON = {"Identity", "Sub", "Mul", "Round", "Clip", "Cast"}


class SlowEngine:
    """Engine by path; `threads` as ONNX Runtime takes them."""

    def __init__(self, *, model: bytes, name: str, threads: int = 1) -> None:
        self._inner: Engine = catalog.make("engine", "onnxruntime", model=model, name=name, threads=threads)
        self.spec = self._inner.spec
        factor = float(os.environ.get("SLOW_ENGINE_FACTOR", "1"))
        self._row_s = factor * kept_s(model, Path(os.environ["SLOW_ENGINE_TIMES"]))

    def warmup(self) -> None:
        self._inner.warmup()

    def run(self, inputs: Arrays) -> Arrays:
        started = time.perf_counter()
        outputs = self._inner.run(inputs)
        left_s = started + self._row_s * len(next(iter(inputs.values()))) - time.perf_counter()
        if left_s > 0:
            time.sleep(left_s)
        return outputs

    def close(self) -> None:
        self._inner.close()


def calibrate(models: Iterable[bytes], folder: Path, new_only: bool = False) -> None:
    """Measure and keep what one more row takes, for each of these files, or those not kept yet."""
    folder.mkdir(parents=True, exist_ok=True)
    engines: dict[Path, Engine] = {}
    for model in models:
        if new_only and _path(model, folder).exists():
            continue
        if any(node.op_type not in _HANDS_ON for node in onnx.load_model_from_string(model).graph.node):
            engines[_path(model, folder)] = catalog.make("engine", "onnxruntime", model=model, name="calibrated")
        else:
            _path(model, folder).write_text("0")
    shortest: dict[tuple[Path, int], float] = {}
    for _ in range(_ROUNDS if engines else 0):
        for path, engine in engines.items():
            for batch in (1, 1 + _ROWS):
                zeros = {k: np.zeros((batch, *spec.shape), spec.dtype) for k, spec in engine.spec.inputs.items()}
                for _ in range(_RUNS):
                    started = time.perf_counter()
                    engine.run(zeros)
                    took_s = time.perf_counter() - started
                    shortest[path, batch] = min(shortest.get((path, batch), took_s), took_s)
    for path, engine in engines.items():
        path.write_text(repr(max(0.0, shortest[path, 1 + _ROWS] - shortest[path, 1]) / _ROWS))
        engine.close()


def _path(model: bytes, folder: Path) -> Path:
    return folder / f"{hashlib.sha256(model).hexdigest()[:32]}.txt"


def kept_s(model: bytes, folder: Path) -> float:
    """What one more row takes, in seconds."""
    path = _path(model, folder)
    if not path.exists():
        calibrate([model], folder)
    return float(path.read_text())
