"""ONNX Runtime on the CPU: the engine that is always there."""

from __future__ import annotations

from typing import Any

import onnxruntime

from tierline.core.engine._check import batch_size, first_line, no_rows, row_spec, zeros
from tierline.core.errors import EngineError
from tierline.core.protocols import SectionSpec
from tierline.core.types import Arrays, TensorSpec

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
_ONLY_FATAL = 4


class Onnxruntime:
    """Engine `onnxruntime`. `threads` work inside one operator; operators run one after the other."""

    def __init__(self, *, model: bytes, name: str, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _ONLY_FATAL  # whatever matters comes back as an exception
        options.enable_cpu_mem_arena = False  # an arena keeps the memory of the largest batch ever seen
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # nodes share their cores
        self._name = name
        try:
            self._session: Any = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its classes share no base but Exception
            raise EngineError(f"{name}: ONNX Runtime cannot load this model: {first_line(error)}") from error
        self.spec = SectionSpec(
            {value.name: self._spec_of(value) for value in self._session.get_inputs()},
            {value.name: self._spec_of(value) for value in self._session.get_outputs()},
        )
        self._outputs = list(self.spec.outputs)

    def warmup(self) -> None:
        self.run(zeros(self.spec, 1))

    def run(self, inputs: Arrays) -> Arrays:
        if batch_size(self.spec, inputs, self._name) == 0:
            return no_rows(self.spec)
        try:
            results = self._session.run(self._outputs, dict(inputs))
        except Exception as error:
            raise EngineError(f"{self._name}: {first_line(error)}") from error
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        """Free the session; the engine cannot run afterwards."""
        self._session = None

    def _spec_of(self, value: onnxruntime.NodeArg) -> TensorSpec:
        dtype = _DTYPES.get(value.type)
        if dtype is None:
            raise EngineError(f"{self._name}: tensor {value.name!r} is {value.type}, which tierline does not carry")
        return row_spec(self._name, value.name, dtype, value.shape)
