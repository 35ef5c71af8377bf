"""Reads ONNX bytes with the `onnx` package, for the engines that walk the graph themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx

from tierline.core.engine._check import first_line, row_spec
from tierline.core.errors import EngineError
from tierline.core.protocols import SectionSpec
from tierline.core.types import TensorSpec


def parse(model: bytes, name: str) -> Any:
    """A checked ModelProto. Raises EngineError for bytes that are no valid ONNX model."""
    try:
        parsed = onnx.load_model_from_string(model)
        onnx.checker.check_model(parsed)
    except Exception as error:  # protobuf and the checker raise unrelated classes
        raise EngineError(f"{name}: not a valid ONNX model: {first_line(error)}") from error
    return parsed


def section_spec(parsed: Any, name: str) -> SectionSpec:
    """Inputs without initialisers, and outputs."""
    constants = {tensor.name for tensor in parsed.graph.initializer}
    inputs = [value for value in parsed.graph.input if value.name not in constants]
    return SectionSpec(_specs(inputs, name), _specs(parsed.graph.output, name))


def _specs(values: Iterable[Any], name: str) -> dict[str, TensorSpec]:
    specs = {}
    for value in values:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        shape = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim]
        specs[value.name] = row_spec(name, value.name, dtype, shape)
    return specs
