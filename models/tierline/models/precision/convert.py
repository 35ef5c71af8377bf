"""A Section's ONNX file to that of another precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import version_converter

from tierline.core.catalog import nearest
from tierline.core.errors import BundleError, ConfigError
from tierline.core.precision import FLOAT8_E4M3, FLOAT16, FLOAT32, INT8, LOWER, PRECISIONS
from tierline.core.types import Array
from tierline.models.precision import quantise
from tierline.models.precision.half import halved
from tierline.models.precision.ranges import largest

_KINDS = {INT8: quantise.INT8, FLOAT8_E4M3: quantise.FLOAT8_E4M3}


def convert(model: bytes, precision: str, rows: Mapping[str, Array], name: str) -> bytes:
    """The same Section in a precision; `rows`: calibration samples by its inputs.

    A pure function: equal arguments give equal bytes. Raises ConfigError for an unknown precision, BundleError for a
    file that cannot be converted.
    """
    if precision == FLOAT32:
        return model
    if precision not in LOWER:
        raise ConfigError(f"no precision {precision!r}{nearest(precision, PRECISIONS)}; there are {', '.join(PRECISIONS)}")
    parsed = onnx.load_model_from_string(model)
    _check(parsed, name)
    if precision == FLOAT16:
        made = halved(parsed, largest(parsed, rows, name))
    else:
        kind = _KINDS[precision]
        parsed = _newer(parsed, kind.opset, name)
        made = quantise.quantised(parsed, largest(parsed, rows, name), kind)
    try:
        onnx.checker.check_model(made, full_check=True)
    except Exception as error:  # protobuf and the checker raise unrelated classes
        why = str(error).strip().splitlines()[0]
        raise BundleError(f"{name}: cannot be converted to {precision}: {why}") from error
    raw: bytes = made.SerializeToString(deterministic=True)
    return raw


def _check(model: Any, name: str) -> None:
    for node in model.graph.node:
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            what = f"node {node.name or node.output[0]!r} ({node.op_type}) holds a graph of its own"
            raise BundleError(f"{name}: {what}; only {FLOAT32} is there for it")


def _newer(model: Any, opset: int, name: str) -> Any:
    """Operators of at least this version."""
    found = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if found >= opset:
        return model
    try:
        return version_converter.convert_version(model, opset)
    except Exception as error:
        raise BundleError(f"{name}: ONNX opset {found} cannot become {opset}; export it again ({error})") from error
