"""ONNX Runtime: the engine that is always there, on the CPU; on a GPU with the package `onnxruntime-gpu`."""

from __future__ import annotations

from typing import Any

import onnxruntime

from tierline.core.catalog import nearest
from tierline.core.engine._check import batch_size, first_line, no_rows, row_spec, zeros
from tierline.core.errors import ConfigError, EngineError, MissingDependency
from tierline.core.protocols import SectionSpec
from tierline.core.types import FLOAT16, FLOAT32, INT8, Arrays, TensorSpec

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
_PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""A provider and those that run the operators which it lacks."""
_ONLY_FATAL = 4


class Onnxruntime:
    """Engine `onnxruntime`. `threads` work inside one operator; operators run one after the other.

    `provider`: `cpu`, `cuda`, or `tensorrt`, whose engines ONNX Runtime builds itself; also written `onnxruntime:cuda`.
    """

    def __init__(self, *, model: bytes, name: str, threads: int = 1, provider: str = "cpu") -> None:
        self.check(provider)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _ONLY_FATAL  # whatever matters comes back as an exception
        options.enable_cpu_mem_arena = False  # an arena keeps the memory of the largest batch ever seen
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # nodes share their cores
        self._name = name
        try:
            self._session: Any = onnxruntime.InferenceSession(model, options, providers=list(_PROVIDERS[provider]))
        except Exception as error:  # its classes share no base but Exception
            raise EngineError(f"{name}: ONNX Runtime cannot load this model: {first_line(error)}") from error
        if _PROVIDERS[provider][0] not in self._session.get_providers():  # it would fall back without a word
            raise EngineError(
                f"{name}: ONNX Runtime's provider {provider!r} does not start here: check the NVIDIA driver, and that "
                "the CUDA and cuDNN libraries are those that onnxruntime-gpu was made for"
            )
        self.spec = SectionSpec(
            {value.name: self._spec_of(value) for value in self._session.get_inputs()},
            {value.name: self._spec_of(value) for value in self._session.get_outputs()},
        )
        self._outputs = list(self.spec.outputs)

    @staticmethod
    def check(provider: str = "cpu") -> None:
        """Raise MissingDependency for a provider that the installed package lacks, ConfigError for an unknown one."""
        if provider not in _PROVIDERS:
            near = nearest(provider, tuple(_PROVIDERS))
            raise ConfigError(f"engine 'onnxruntime': no such provider: {provider!r}{near}")
        present = onnxruntime.get_available_providers()
        if _PROVIDERS[provider][0] not in present:
            have = ", ".join(key for key, names in _PROVIDERS.items() if names[0] in present)
            raise MissingDependency(
                f"engine 'onnxruntime:{provider}': onnxruntime {onnxruntime.__version__} as installed has only {have}; "
                "pip install onnxruntime-gpu in its place"
            )

    @staticmethod
    def precisions(provider: str = "cpu") -> tuple[str, ...]:
        """float16 on the CPU goes through float32 where the processor lacks it; no provider fuses float8 rightly."""
        return FLOAT32, FLOAT16, INT8

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
