"""What every engine checks around a run."""

from __future__ import annotations

import numpy as np

from tierline.core.errors import EngineError, ShapeMismatch
from tierline.core.protocols import SectionSpec
from tierline.core.types import Array, Arrays, TensorSpec


def batch_size(spec: SectionSpec, inputs: Arrays, name: str) -> int:
    """Rows in a complete set of inputs. Raises ShapeMismatch for a missing, unknown or wrong one."""
    if inputs.keys() != spec.inputs.keys():
        raise ShapeMismatch(f"{name}: takes the inputs {sorted(spec.inputs)}, got {sorted(inputs)}")
    num_rows = -1
    for key, expected in spec.inputs.items():
        x_B = inputs[key]
        expected.check(x_B, f"{name}.{key}")
        if num_rows not in (-1, len(x_B)):
            raise ShapeMismatch(f"{name}.{key}: {len(x_B)} rows, another input has {num_rows}")
        num_rows = len(x_B)
    return num_rows


def zeros(specs: SectionSpec, num_rows: int) -> dict[str, Array]:
    """Inputs of zeros, for warming up."""
    return {key: _zeros(spec, num_rows) for key, spec in specs.inputs.items()}


def no_rows(specs: SectionSpec) -> dict[str, Array]:
    """Outputs of an empty batch, which not every operator accepts."""
    return {key: _zeros(spec, 0) for key, spec in specs.outputs.items()}


def row_spec(name: str, key: str, dtype: str, shape: list[int | str | None]) -> TensorSpec:
    """The spec of a tensor with a free batch axis. Raises EngineError where the model fixes it or frees another."""
    if not shape or isinstance(shape[0], int):
        raise EngineError(f"{name}: tensor {key!r} has shape {shape}; export it with a dynamic batch axis 0")
    fixed = tuple(size for size in shape[1:] if isinstance(size, int))
    if len(fixed) != len(shape) - 1:
        raise EngineError(f"{name}: tensor {key!r} has shape {shape}; only the batch axis 0 may be dynamic")
    return TensorSpec(dtype, fixed)


def first_line(error: Exception) -> str:
    """An error of a framework, fit for a one-line message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _zeros(spec: TensorSpec, num_rows: int) -> Array:
    return np.zeros((num_rows, *spec.shape), spec.dtype)
