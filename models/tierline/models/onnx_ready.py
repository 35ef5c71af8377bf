"""Makes a user's ONNX file ready to be cut: known operators only, nodes in order, a free batch axis.

A file exported for a fixed number of images is rewritten where its graph allows: input and output get a free axis 0,
and a Reshape to a constant shape takes the number of rows from its input. Whether that holds is tried, not believed:
the rewritten graph must give the same rows as the original, in batches of another size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.defs
from onnx import numpy_helper

from tierline.core import catalog
from tierline.core.errors import BundleError, EngineError
from tierline.core.types import Array

_TOLERANCE = 1e-4
"""Relative: kernels may be chosen by the size of a batch."""
_BATCH = "batch"


def ready(model: Any, where: str) -> Any:
    """The model, or a repaired copy. Raises BundleError with the operator or tensor that keeps it from being cut."""
    _check_operators(model, where)
    return _with_free_batch(_in_order(model, where), where)


def _check_operators(model: Any, where: str) -> None:
    versions = {opset.domain: opset.version for opset in model.opset_import}
    for node in model.graph.node:
        domain = "" if node.domain == "ai.onnx" else node.domain
        try:
            onnx.defs.get_schema(node.op_type, versions.get(domain, 1), domain)
        except onnx.defs.SchemaError:
            of = f"domain {domain!r}" if domain else f"ONNX, opset {versions.get('', 1)}"
            name = f"{node.op_type} {node.name or node.output[0]!r}"
            raise BundleError(
                f"{where}: unsupported operator {name}: {of} has none that is known here; export the network without "
                "operators of its own"
            ) from None


def _in_order(model: Any, where: str) -> Any:
    """Nodes after those they read. Raises BundleError for a cycle."""
    graph = model.graph
    known = {x.name for x in graph.initializer} | {x.name for x in graph.input} | {""}
    known |= {x.values.name for x in graph.sparse_initializer}
    pending, order = list(graph.node), []
    while pending:
        waiting = []
        for node in pending:
            if all(name in known for name in node.input):
                order.append(node)
                known.update(node.output)
            else:
                waiting.append(node)
        if len(waiting) == len(pending):
            raise BundleError(f"{where}: {_why_stuck(waiting, known)}")
        pending = waiting
    if all(x is y for x, y in zip(order, graph.node, strict=True)):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.node[:]
    copy.graph.node.extend(order)
    return copy


def _why_stuck(waiting: list[Any], known: set[str]) -> str:
    """The circle of tensors that wait for each other, or a tensor that nobody makes."""
    made = {name: node for node in waiting for name in node.output}
    at, path = waiting[0], list[str]()
    while True:
        wanted = next((name for name in at.input if name in made), None)
        if wanted is None:
            lost = next(name for node in waiting for name in node.input if name not in known and name not in made)
            return f"not a valid ONNX model (tensor {lost!r} is read, and no node makes it)"
        if wanted in path:
            circle = [*path[path.index(wanted) :], wanted]
            return f"cyclic graph: {' -> '.join(circle[::-1])}; a network that feeds back cannot be cut"
        path.append(wanted)
        at = made[wanted]


def _with_free_batch(model: Any, where: str) -> Any:
    inputs = [x for x in model.graph.input if x.name not in {w.name for w in model.graph.initializer}]
    dims: Any = inputs[0].type.tensor_type.shape.dim if len(inputs) == 1 else ()
    if len(dims) < 2 or not dims[0].dim_value or not all(d.dim_value for d in dims):
        return model
    num_rows, shape = dims[0].dim_value, tuple(d.dim_value for d in dims[1:])
    freed = _declared_free(model, inputs[0].name, num_rows)
    _free_reshapes(freed.graph, num_rows, _first_sizes(model))
    if inputs[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
        _check_rows(freed, inputs[0].name, shape, num_rows, where)
    return freed


def _first_sizes(model: Any) -> dict[str, int]:
    """The size of axis 0 of every tensor where that is known."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = [(x.name, x.type.tensor_type.shape.dim) for x in (*graph.input, *graph.value_info, *graph.output)]
    return {name: dims[0].dim_value for name, dims in values if dims}


def _declared_free(model: Any, source: str, num_rows: int) -> Any:
    """The same graph that says its batch axis is free, whether that is so or not."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in (*copy.graph.input, *copy.graph.output):
        dims = value.type.tensor_type.shape.dim
        is_end = value.name == source or value in copy.graph.output
        if is_end and dims and dims[0].dim_value == num_rows:
            dims[0].dim_param = _BATCH
    del copy.graph.value_info[:]
    return copy


def _free_reshapes(graph: Any, num_rows: int, first_sizes: dict[str, int]) -> None:
    """Let every Reshape to `num_rows` rows take as many as come: for `num_rows` of them nothing changes."""
    constants = {x.name: numpy_helper.to_array(x) for x in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    for index, node in enumerate(graph.node):
        if node.op_type != "Reshape" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        shape = constants[node.input[1]].copy()
        if shape.ndim != 1 or not len(shape) or shape[0] != num_rows or (shape[1:] == 0).any():
            continue
        if (shape == -1).any():
            if first_sizes.get(node.input[0]) != num_rows:
                continue
            shape[0] = 0  # as many as the input's axis 0
        else:
            shape[0] = -1
        name = f"{node.input[1]}/free{index}"
        graph.initializer.append(numpy_helper.from_array(shape, name))
        node.input[1] = name


def _check_rows(freed: Any, source: str, shape: tuple[int, ...], num_rows: int, where: str) -> None:
    """Raise BundleError unless one row more gives every row what it gets in a batch of the exported size."""
    head = (
        f"{where}: exported for a fixed batch of {num_rows}, and its graph does not let that go: export it with a "
        "dynamic batch axis 0"
    )
    x_B = np.random.default_rng(0).normal(size=(num_rows + 1, *shape)).astype(np.float32)
    try:
        found = _run(freed, where, source, x_B)
        parts = [_run(freed, where, source, x_B[start : start + num_rows]) for start in (0, 1)]
    except EngineError as error:
        raise BundleError(f"{head} ({_tail(error)})") from error
    for name, y_B in found.items():
        for start, part in enumerate(parts):
            rows = y_B[start : start + num_rows]
            limit = _TOLERANCE * max(1.0, float(np.abs(part[name]).max(initial=0.0)))
            if rows.shape != part[name].shape or not np.allclose(rows, part[name], rtol=0, atol=limit, equal_nan=True):
                raise BundleError(f"{head} (output {name!r} is another one in a batch of {num_rows + 1})")


def _run(model: Any, where: str, source: str, x_B: Array) -> dict[str, Array]:
    engine = catalog.make("engine", "onnxruntime", model=model.SerializeToString(), name=where, threads=1)
    try:
        return dict(engine.run({source: x_B}))
    finally:
        engine.close()


def _tail(error: Exception) -> str:
    """The part of an engine's message that names the node."""
    text = " ".join(str(error).split())
    return text[max(0, text.find("Non-zero status"), text.find("tensor ")) :].partition("; export")[0][:240]
