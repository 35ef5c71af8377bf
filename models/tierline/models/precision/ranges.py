"""How large every float32 tensor of a Section gets on calibration samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tierline.core.errors import BundleError
from tierline.core.types import Array

_AT_ONCE = 16
"""Rows that are run together: every tensor of the graph is kept for so many."""
_ONLY_FATAL = 4


def largest(model: Any, rows: Mapping[str, Array], name: str) -> dict[str, float]:
    """Largest absolute value of every float32 tensor that a node gives or the graph takes, by its name.

    `rows`: samples by the graph's inputs. Operators are run one by one, as the file has them, so that none is fused
    away. Raises BundleError for rows that the graph does not take, and for values that are not finite.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {value.name for value in watched.graph.output}
    inner = dict.fromkeys(key for node in watched.graph.node for key in node.output if key and key not in known)
    watched.graph.output.extend(onnx.ValueInfoProto(name=key) for key in inner)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _ONLY_FATAL
    found = {key: _most(x_B) for key, x_B in rows.items() if x_B.dtype == np.float32}
    try:
        session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
        keys = [value.name for value in session.get_outputs()]
        for start in range(0, len(next(iter(rows.values()))), _AT_ONCE):
            some = {key: np.ascontiguousarray(x_B[start : start + _AT_ONCE]) for key, x_B in rows.items()}
            for key, y_B in zip(keys, session.run(keys, some), strict=True):
                if getattr(y_B, "dtype", None) == np.float32:
                    found[key] = max(found.get(key, 0.0), _most(y_B))
    except Exception as error:  # its classes share no base but Exception
        raise BundleError(f"{name}: cannot be run on calibration samples: {str(error).splitlines()[0]}") from error
    for key, value in found.items():
        if not np.isfinite(value):
            raise BundleError(f"{name}: tensor {key!r} is not finite on the calibration samples")
    return found


def _most(x_B: Array) -> float:
    return float(np.abs(x_B).max(initial=0.0))
