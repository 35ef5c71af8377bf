"""ONNX of a Section to a serialised TensorRT engine.

`trt` is the module, `tensorrt` (10.3 and later) or `tensorrt_rtx`: one API, whose parts are probed where versions
differ. Networks are strongly typed: precision is what the ONNX file says (FP32, FP16, INT8 by Q/DQ nodes, FP8), never a
builder's choice. Only names of tensors are used, which every version since 10 has.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tierline.core.engine._check import first_line, row_spec
from tierline.core.errors import EngineError
from tierline.core.protocols import SectionSpec
from tierline.core.types import TensorSpec

_SHORT = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "FP8": "fp8", "INT8": "int8", "FP4": "fp4", "INT4": "int4"}
_MODEL_BYTES = 1 << 31
"""Size of the largest ONNX file: a limit of protobuf."""


class Wish(NamedTuple):
    """What to build for: batches from 1 to `max_batch`, fastest at `typical_batch`, on GPUs of `arch` (`sm_87`)."""

    max_batch: int = 64
    typical_batch: int = 1
    arch: str = ""
    """Empty: the GPU of this machine."""
    workspace_bytes: int = 0
    """Scratch memory that a layer may take; 0: as much as there is."""


class Built(NamedTuple):
    """A serialised engine and what is known of it."""

    plan: bytes
    precision: str
    """Types that layers compute in, such as `fp16+fp32`."""
    timing: bytes
    """Timings of kernels, for the next build; empty where the version keeps none."""


OnStep = Callable[[str, int, int], bool]
"""Told `(phase, steps done, steps)` while an engine is built; False ends the build where the version can."""


def logger(trt: Any) -> Any:
    """An ILogger that keeps the last error's line in `last_error` instead of printing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last_error = " ".join(message.split())

    return Log()


def build(
    trt: Any, model: bytes, name: str, wish: Wish, *, timing: bytes = b"", on_step: OnStep | None = None
) -> Built:
    """Build one engine. Raises EngineError, one line that names node and operator where they are known."""
    log = logger(trt)
    # The order in which they go matters: objects of TensorRT keep bare pointers to those they were made from.
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # the factory returned null: no library or no driver
        raise EngineError(f"{name}: {trt.__name__} cannot build here: {log.last_error or first_line(error)}") from error
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, log)
    monitor = _monitor(trt, on_step) if on_step is not None else None
    try:
        _parse(parser, model, name, log)
        _check(trt, network, name)
        config = builder.create_builder_config()
        _configure(trt, config, wish, name)
        profile = _profile(builder, network, wish)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"{name}: {trt.__name__} refuses batches 1 to {wish.max_batch}: {log.last_error}")
        cache = _timing_cache(trt, config, timing)
        if monitor is not None and hasattr(config, "progress_monitor"):
            config.progress_monitor = monitor
        try:
            plan = builder.build_serialized_network(network, config)
        except Exception as error:  # pybind translates C++ exceptions to unrelated classes
            raise EngineError(f"{name}: {trt.__name__} failed: {first_line(error)}") from error
        if plan is None:
            raise EngineError(f"{name}: {trt.__name__} cannot build this: {log.last_error or 'it does not say why'}")
        kept = b"" if cache is None else bytes(config.get_timing_cache().serialize())
        return Built(bytes(plan), _precision(network), kept)
    finally:
        config = profile = cache = plan = None
        del parser, network, builder


def _strongly_typed(trt: Any) -> int:
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(parser: Any, model: bytes, name: str, log: Any) -> None:
    if not model or len(model) >= _MODEL_BYTES:
        raise EngineError(f"{name}: not a valid ONNX model: {len(model)} bytes")
    try:
        if parser.parse(model):
            return
    except Exception as error:
        raise EngineError(f"{name}: not a valid ONNX model: {first_line(error)}") from error
    if not parser.num_errors:
        raise EngineError(f"{name}: not a valid ONNX model: {log.last_error}")
    first = parser.get_error(0)
    words, operator = " ".join(first.desc().split()), first.node_operator()
    if not operator:
        raise EngineError(f"{name}: not a valid ONNX model: {words}")
    raise EngineError(f"{name}: node {first.node_name()!r} ({operator}): {words}; run it with onnxruntime")


def _check(trt: Any, network: Any, name: str) -> None:
    """Raise EngineError unless tensors are what other engines take too."""
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    for tensor in tensors:
        row_spec(name, tensor.name, dtype_name(trt, tensor.dtype, name, tensor.name), _sizes(tensor.shape))


def spec_of(trt: Any, engine: Any, name: str) -> SectionSpec:
    """Tensors of a deserialised engine, by name."""
    inputs: dict[str, TensorSpec] = {}
    outputs: dict[str, TensorSpec] = {}
    for i in range(engine.num_io_tensors):
        key = engine.get_tensor_name(i)
        dtype = dtype_name(trt, engine.get_tensor_dtype(key), name, key)
        spec = row_spec(name, key, dtype, _sizes(engine.get_tensor_shape(key)))
        (inputs if engine.get_tensor_mode(key) == trt.TensorIOMode.INPUT else outputs)[key] = spec
    return SectionSpec(inputs, outputs)


def dtype_name(trt: Any, dtype: Any, name: str, key: str) -> str:
    """NumPy's name. Raises EngineError for a type that NumPy lacks."""
    try:
        return str(np.dtype(trt.nptype(dtype)).name)
    except TypeError as error:
        raise EngineError(f"{name}: tensor {key!r} is {dtype}, which tierline does not carry") from error


def _sizes(shape: Any) -> list[int | str | None]:
    return [None if size < 0 else int(size) for size in shape]


def _profile(builder: Any, network: Any, wish: Wish) -> Any:
    profile = builder.create_optimization_profile()
    typical = min(wish.typical_batch, wish.max_batch)
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        row = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, (1, *row), (typical, *row), (wish.max_batch, *row))
    return profile


def _configure(trt: Any, config: Any, wish: Wish, name: str) -> None:
    if wish.workspace_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, wish.workspace_bytes)
    if not wish.arch:
        return
    if not hasattr(config, "set_compute_capability"):
        raise EngineError(f"{name}: {trt.__name__} builds for the GPU of its machine only; leave the target out")
    known = [key for key in dir(trt.ComputeCapability) if key.startswith("SM")]
    target = wish.arch.replace("_", "").upper()
    if target not in known:
        can = ", ".join(sorted((key.replace("SM", "sm_") for key in known), key=lambda key: int(key[3:])))
        raise EngineError(f"{name}: {trt.__name__} cannot build for {wish.arch}; it can for {can}")
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)


def _timing_cache(trt: Any, config: Any, timing: bytes) -> Any:
    """Give the builder what was timed before. None where it times nothing: TensorRT-RTX picks kernels when it runs."""
    if hasattr(trt, "IRuntimeCache") or not hasattr(config, "create_timing_cache"):
        return None
    cache = config.create_timing_cache(timing)
    if not config.set_timing_cache(cache, False) and timing:  # of another version or GPU
        return _timing_cache(trt, config, b"")
    return cache


def _monitor(trt: Any, on_step: OnStep) -> Any:
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Called from threads of the builder. An exception must not leave these methods."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._lock = threading.Lock()

        def phase_start(self, phase: str, parent: str | None, num_steps: int) -> None:
            with self._lock:
                self._steps[phase] = num_steps
            on_step(phase, 0, num_steps)

        def step_complete(self, phase: str, step: int) -> bool:
            return on_step(phase, step + 1, self._steps.get(phase, step + 1))

        def phase_finish(self, phase: str) -> None:
            steps = self._steps.get(phase, 1)
            on_step(phase, steps, steps)

    return Monitor()


def _precision(network: Any) -> str:
    found = set()
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        for j in range(layer.num_outputs):
            tensor = layer.get_output(j)
            found.add(_SHORT.get(tensor.dtype.name, ""))
    return "+".join(sorted(found - {""}))
