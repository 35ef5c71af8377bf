"""TensorRT, or TensorRT-RTX where only that is installed: builds a Section's ONNX for this machine's GPU and runs it.

Needs the `tensorrt` of JetPack 6 (10.3) or later, or `tensorrt_rtx`. Built engines are kept in the cache folder.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from tierline.core.engine._cache import EngineCache
from tierline.core.engine._check import batch_size, no_rows, zeros
from tierline.core.engine._trt_build import OnStep, Wish
from tierline.core.engine._trt_keep import obtain
from tierline.core.engine._trt_run import Runner
from tierline.core.errors import EngineError, MissingDependency
from tierline.core.types import FLOAT8_E4M3, FLOAT16, FLOAT32, INT8, Arrays
from tierline.kernels.cuda import CudaError, Device, device

try:
    import tensorrt as _module
except ImportError as missing:
    try:
        import tensorrt_rtx as _module
    except ImportError:
        raise MissingDependency(
            f"engine 'tensorrt' needs TensorRT ({missing}): on Jetson a virtual environment with "
            "--system-site-packages, elsewhere pip install tensorrt, or tensorrt-rtx for a GeForce RTX"
        ) from missing

_trt: Any = _module
_FLOAT8_FROM = 89
"""Compute capability."""
_log = logging.getLogger("tierline.engine")


class Tensorrt:
    """Engine `tensorrt`. Batches above `max_batch` are run in parts; `threads` has no effect on it.

    `graphs`: a batch size seen before is replayed as a CUDA graph.
    """

    takes_time: bool = True
    """Making one can take minutes: a node answers with its next engine meanwhile."""

    def __init__(
        self,
        *,
        model: bytes,
        name: str,
        threads: int = 1,
        max_batch: int = 64,
        typical_batch: int = 1,
        graphs: bool = True,
        on_step: OnStep | None = None,
    ) -> None:
        gpu, cache, wish = _gpu(name), EngineCache(), Wish(max_batch, typical_batch)
        self._name = name
        kept = obtain(_trt, model, name, wish, gpu, cache, on_step=on_step)
        try:
            self._runner = Runner(_trt, kept.plan, name, gpu, graphs=graphs)
        except EngineError as error:
            if kept.is_new:
                raise
            # Whole and ours, yet refused: the driver was exchanged, say.
            _log.warning("%s: the engine in %s is built again: %s", name, kept.path, error)
            kept = obtain(_trt, model, name, wish, gpu, cache, again=True, on_step=on_step)
            self._runner = Runner(_trt, kept.plan, name, gpu, graphs=graphs)
        self.spec = self._runner.spec

    def warmup(self) -> None:
        self.run(zeros(self.spec, 1))

    def run(self, inputs: Arrays) -> Arrays:
        num_rows = batch_size(self.spec, inputs, self._name)
        return self._runner.run(inputs, num_rows) if num_rows else no_rows(self.spec)

    def close(self) -> None:
        """Free the GPU's memory; the engine cannot run afterwards."""
        self._runner.close()

    @staticmethod
    def precisions() -> tuple[str, ...]:
        """FP8 from Ada and Hopper on (sm_89); Orin (sm_87) has none."""
        try:
            has_float8 = int(device().arch.partition("_")[2]) >= _FLOAT8_FROM
        except CudaError:
            has_float8 = False
        return (FLOAT32, FLOAT16, INT8, *((FLOAT8_E4M3,) if has_float8 else ()))

    @staticmethod
    def check() -> None:
        """Raise MissingDependency where there is no GPU to run on."""
        try:
            device()
        except CudaError as error:
            raise MissingDependency(f"engine 'tensorrt' has no GPU here: {error}") from error

    @staticmethod
    def prepare(
        model: bytes,
        name: str,
        *,
        max_batch: int = 64,
        typical_batch: int = 1,
        arch: str = "",
        on_step: OnStep | None = None,
    ) -> tuple[Path, bool]:
        """Build into the cache: for the GPU of this machine, or for another `arch` where the version can.

        Returns the file and whether it was built now. Raises EngineError.
        """
        gpu = None if arch else _gpu(name)
        wish = Wish(max_batch, typical_batch, arch)
        kept = obtain(_trt, model, name, wish, gpu, EngineCache(), on_step=on_step)
        return kept.path, kept.is_new


def _gpu(name: str) -> Device:
    try:
        return device()
    except CudaError as error:
        raise EngineError(f"{name}: TensorRT has no GPU here: {error}") from error
