"""A Section's ONNX file to that of another precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx
from onnx import version_converter

from tierline.core.catalog import nearest
from tierline.core.errors import BundleError, ConfigError
from tierline.core.types import FLOAT8_E4M3, FLOAT16, FLOAT32, INT8, PRECISIONS, Array
from tierline.models.precision import quantise
from tierline.models.precision.half import halved
from tierline.models.precision.ranges import largest

_KINDS = {INT8: quantise.INT8, FLOAT8_E4M3: quantise.FLOAT8_E4M3}


def convert(model: bytes, precisions: Iterable[str], rows: Mapping[str, Array], name: str) -> dict[str, bytes]:
    """The same Section in other precisions, by their names; `rows`: calibration samples by its inputs.

    A pure function. Raises ConfigError for an unknown precision, BundleError for a file that cannot be converted.
    """
    wanted = list(dict.fromkeys(precisions))
    for precision in wanted:
        if precision not in PRECISIONS:
            near = nearest(precision, PRECISIONS)
            raise ConfigError(f"no precision {precision!r}{near}; there are {', '.join(PRECISIONS)}")
    if wanted in ([], [FLOAT32]):
        return dict.fromkeys(wanted, model)
    parsed = onnx.load_model_from_string(model)
    _check(parsed, name)
    ranges = largest(parsed, rows, name)
    return {
        precision: model if precision == FLOAT32 else _made(parsed, precision, ranges, name) for precision in wanted
    }


def _made(parsed: Any, precision: str, ranges: Mapping[str, float], name: str) -> bytes:
    try:
        if precision == FLOAT16:
            made = halved(parsed, ranges)
        else:
            kind = _KINDS[precision]
            made = quantise.quantised(_newer(parsed, kind.opset), ranges, kind)
        onnx.checker.check_model(made, full_check=True)
    except Exception as error:  # protobuf, the converter of versions and the checker raise unrelated classes
        why = str(error).strip().splitlines()[0]
        raise BundleError(f"{name}: cannot be converted to {precision}: {why}") from error
    raw: bytes = made.SerializeToString(deterministic=True)
    return raw


def _check(model: Any, name: str) -> None:
    for node in model.graph.node:
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            what = f"node {node.name or node.output[0]!r} ({node.op_type}) holds a graph of its own"
            raise BundleError(f"{name}: {what}; only {FLOAT32} is there for it")


def _newer(model: Any, opset: int) -> Any:
    """Operators of at least this version."""
    found = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    return model if found >= opset else version_converter.convert_version(model, opset)
