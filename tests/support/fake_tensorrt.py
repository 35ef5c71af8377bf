"""What the runner uses of TensorRT's Python module, on the mock CUDA driver: engines are ONNX, run by ONNX Runtime.

As in TensorRT, work is queued on a stream and done when that is waited for, and a recorded stream runs nothing.
"""

from __future__ import annotations

import ctypes
import enum
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

__version__ = "10.3.0"
MAX_BATCH = 4

_WORK = ctypes.CFUNCTYPE(ctypes.c_int)
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class State:
    """What a test sets and looks at."""

    driver: Path
    num_executed = 0
    "Times that kernels ran."
    num_queued = 0
    "Calls of execute_async_v3."
    capturable = True
    takes_engines = True


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = range(3)

    def __init__(self) -> None:
        pass


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


def nptype(dtype: Any) -> Any:
    return dtype


class Runtime:
    def __init__(self, log: Any) -> None:
        self._log = log

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        if not State.takes_engines or not plan.startswith(b"plan of "):
            self._log.log(ILogger.ERROR, "Error Code 1: Serialization (not\n an engine)")
            return None
        return Engine(plan.removeprefix(b"plan of "))


class Engine:
    def __init__(self, model: bytes) -> None:
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.tensors = {**self.inputs, **{value.name: value for value in self.session.get_outputs()}}
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return _TYPES[self.tensors[name].type]

    def get_tensor_shape(self, name: str) -> list[int]:
        return [-1 if isinstance(size, str) else size for size in self.tensors[name].shape]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        row = self.get_tensor_shape(name)[1:]
        return [(1, *row), (1, *row), (MAX_BATCH, *row)]

    def create_execution_context(self) -> Context:
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._queued: list[Any] = []

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return name in self._engine.tensors and address > 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = shape
        return 1 <= shape[0] <= MAX_BATCH

    def execute_async_v3(self, stream: int) -> bool:
        shapes = dict(self._shapes)

        def work() -> int:
            State.num_executed += 1
            inputs = {name: self._array(name, shape) for name, shape in shapes.items()}
            names = [name for name in self._engine.tensors if name not in shapes]
            for name, result in zip(names, self._engine.session.run(names, inputs), strict=True):
                self._array(name, result.shape)[:] = result
            return 0

        State.num_queued += 1
        if not State.capturable and State.num_queued > 2:
            return False
        self._queued.append(_WORK(work))  # a graph may run it at any time
        queue = ctypes.CDLL(str(State.driver)).mock_queue
        queue.argtypes = (ctypes.c_void_p, _WORK)
        return bool(queue(stream, self._queued[-1]) == 0)

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        dtype = np.dtype(self._engine.get_tensor_dtype(name))
        num_bytes = dtype.itemsize * int(np.prod(shape))
        raw = (ctypes.c_char * num_bytes).from_address(self._addresses[name])
        return np.frombuffer(memoryview(raw).cast("B"), dtype=dtype).reshape(shape)
