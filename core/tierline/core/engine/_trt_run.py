"""Runs a serialised TensorRT engine on a stream of its own, between buffers that CPU and GPU both reach.

`trt` is the module, as in `_trt_build`. Buffers are pinned beside device memory, or mapped where CPU and GPU share
theirs (Jetson), and stay where they are, so that a batch size seen before is replayed as one CUDA graph.
"""

from __future__ import annotations

import ctypes
import logging
from typing import Any

import numpy as np

from tierline.core.engine._trt_build import logger, spec_of
from tierline.core.errors import EngineError
from tierline.core.types import Array, Arrays, TensorSpec
from tierline.kernels.cuda import CudaError, Device
from tierline.kernels.cuda.memory import Staging

_log = logging.getLogger("tierline.engine")
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream
_MAX_GRAPHS = 16
"""Batch sizes with a graph; each holds memory on the GPU. Further sizes are queued call by call."""


class Runner:
    """A deserialised engine, its context and its buffers. One caller at a time, from any thread."""

    def __init__(self, trt: Any, plan: bytes, name: str, gpu: Device, *, graphs: bool = True) -> None:
        """Raises EngineError where the engine is not for this GPU and version, or memory is short."""
        self._trt, self._name, self._gpu = trt, name, gpu
        self._graphs: dict[int, int] | None = {} if graphs else None
        self._seen: set[int] = set()
        self._buffers: dict[str, _Buffer] = {}
        self._stream = 0
        self._log = logger(trt)
        try:
            with gpu.current():
                self._open(plan)
        except CudaError as error:
            self.close()
            raise EngineError(f"{name}: {error}") from error
        except BaseException:
            self.close()
            raise

    def _open(self, plan: bytes) -> None:
        trt, name = self._trt, self._name
        try:
            self._runtime = trt.Runtime(self._log)
        except TypeError as error:  # the factory returned null
            raise self._error("cannot start here") from error
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:  # TensorRT logs why and raises nothing
            raise self._error("does not take this engine on this machine")
        self.spec = spec_of(trt, self._engine, name)
        profiles = [self._engine.get_tensor_profile_shape(key, 0) for key in self.spec.inputs]
        self.max_batch = min(int(largest[0]) for _, _, largest in profiles)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._error("cannot make a context, mostly for want of GPU memory")
        self._stream = self._gpu.driver.handle("cuStreamCreate", _NON_BLOCKING)
        for key, spec in (*self.spec.inputs.items(), *self.spec.outputs.items()):
            self._buffers[key] = buffer = _Buffer(self._gpu, spec, self.max_batch)
            if not self._context.set_tensor_address(key, buffer.staging.device):
                raise self._error(f"refuses an address for tensor {key!r}")

    def run(self, inputs: Arrays, num_rows: int) -> dict[str, Array]:
        """Outputs of a batch of any size, cut into parts of `max_batch`. Raises EngineError."""
        starts = range(0, num_rows, self.max_batch)
        try:
            with self._gpu.current():
                parts = [
                    self._run({key: x_B[start : start + self.max_batch] for key, x_B in inputs.items()})
                    for start in starts
                ]
        except CudaError as error:
            raise EngineError(f"{self._name}: {error}") from error
        if len(parts) == 1:
            return parts[0]
        return {key: np.concatenate([part[key] for part in parts]) for key in self.spec.outputs}

    def _run(self, inputs: Arrays) -> dict[str, Array]:
        num_rows = len(next(iter(inputs.values())))
        for key, x_B in inputs.items():
            self._buffers[key].array[:num_rows] = x_B  # whatever its memory layout
        self._launch(num_rows)
        self._gpu.synchronize(self._stream)
        return {key: self._buffers[key].array[:num_rows].copy() for key in self.spec.outputs}

    def _launch(self, num_rows: int) -> None:
        """Queue copies and kernels of a batch: call by call the first two times, as a graph after that.

        It is recorded right behind a run of the same size: TensorRT sets things up at the first run of a new shape,
        which a graph must not hold.
        """
        graphs = self._graphs if self._graphs is not None else {}
        if num_rows in graphs:
            self._gpu.driver.call("cuGraphLaunch", graphs[num_rows], self._stream)
            return
        self._queue(num_rows)
        if self._graphs is not None and num_rows in self._seen and len(graphs) < _MAX_GRAPHS:
            try:
                graphs[num_rows] = self._gpu.record(self._stream, lambda: self._queue(num_rows))
            except (CudaError, EngineError) as error:  # an operator that needs the CPU in between
                _log.info("%s: runs without CUDA graphs: %s", self._name, error)
                self._drop_graphs()
        self._seen.add(num_rows)

    def _queue(self, num_rows: int) -> None:
        for key, spec in self.spec.inputs.items():
            buffer = self._buffers[key]
            buffer.staging.push(spec.nbytes(num_rows), self._stream)
            if not self._context.set_input_shape(key, (num_rows, *spec.shape)):
                raise self._error(f"refuses {num_rows} rows of {key!r}")
        if not self._context.execute_async_v3(self._stream):
            raise self._error("failed to run")
        for key, spec in self.spec.outputs.items():
            buffer = self._buffers[key]
            buffer.staging.reserve(spec.nbytes(num_rows))  # never grows: `fetch` brings what was reserved last
            buffer.staging.fetch(self._stream)

    def _drop_graphs(self) -> None:
        for graph in (self._graphs or {}).values():
            self._gpu.driver.call("cuGraphExecDestroy", graph)
        self._graphs = None

    def _error(self, what: str) -> EngineError:
        why = self._log.last_error
        return EngineError(f"{self._name}: {self._trt.__name__} {what}{f': {why}' if why else ''}")

    def close(self) -> None:
        """Give memory back; the engine cannot run afterwards."""
        with self._gpu.current():
            self._drop_graphs()
            self._context = self._engine = self._runtime = None  # in this order: each points to the next
            for buffer in self._buffers.values():
                buffer.staging.close()
            self._buffers.clear()
            if self._stream:
                self._gpu.driver.call("cuStreamDestroy_v2", self._stream)
            self._stream = 0


class _Buffer:
    """Memory of one tensor for the largest batch; `array` is the CPU's view of it."""

    def __init__(self, gpu: Device, spec: TensorSpec, max_batch: int) -> None:
        num_bytes = spec.nbytes(max_batch)
        self.staging = Staging(gpu)
        self.staging.reserve(num_bytes)
        raw = (ctypes.c_char * num_bytes).from_address(self.staging.host)
        self.array: Array = np.frombuffer(memoryview(raw).cast("B"), dtype=spec.dtype).reshape(max_batch, *spec.shape)
