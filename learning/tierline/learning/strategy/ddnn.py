"""Joint training of a DDNN over its own links: every tier adds the gradient of its exit to what comes from above.

    L = sum_i w_device CE(device_i, y_i) + sum_e w_e CE(e, y),    e = local, edge, cloud
    device i:  (features, logits) up;  adds the gradient of  w_device CE(device_i, y_i)  to what dL/dfeatures and
               dL/dlogits from above give
Teerapittayanon, McDanel, Kung, "Distributed Deep Neural Networks over the Cloud, the Edge and End Devices", ICDCS 2017,
section III.D. Each worker holds one view of every sample with that view's labels (-1: absent), the root the labels of
the samples: all go through them in the same order, and no label is sent. Tensors named `devices.I.` are the I-th
worker's, all others the root's. Rows without a view are not sent.
Deviations: the edge's and the cloud's Sections run in one node. A device with fewer than two views in a batch sits it
out, since batch-norm cannot learn from one. Binary weights are not clipped to [-1, 1] after a step.
Status: checked (parameters of every tier against joint training in one process, by SGD and Adam, with absent views).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from tierline.core.arrays import Params
from tierline.core.errors import BadFrame, ConfigError
from tierline.core.types import Array, NodeId
from tierline.learning.compute import INPUTS, LABELS, LOGITS, LOSS, Job
from tierline.learning.descent import Descent
from tierline.learning.effects import Effects, Message, backward, draw, exchange, forward, hear, tell
from tierline.learning.half import Half
from tierline.learning.rule import NodeInfo, Turn
from tierline.learning.strategy._cut import FEATURES, Cut

_NAMES = (FEATURES, LOGITS)


class Server(Half):
    """The root; `x` is its own part. `exit_weights` are 1 where an exit (`local`, `edge`, `cloud`) is not named."""

    kept = ("x",)

    def __init__(self, *, codec: str = "raw", exit_weights: Mapping[str, float] | None = None) -> None:
        self._cut, self._weights = Cut(codec=codec), dict(exit_weights or {})

    def start(self, x: Params, node: NodeInfo) -> None:
        self.x = _part(x, node, lambda name: not name.startswith("devices."))

    def turn(self, t: Turn) -> Effects[None]:
        x, descent, left, step = self.x.copy(), Descent(t.job), 1, 0
        while left:
            drawn = yield from draw(_shared(t), step)
            labels, left = drawn.batch[LABELS], drawn.num_left
            ups = yield from exchange(f"up/{step}", {}, t.workers)
            rows = {k: _rows(ups[k], k, len(labels)) for k in t.workers}
            inputs = {name: self._gathered(ups, rows, name, len(labels)) for name in _NAMES}
            present = np.zeros((len(t.workers), len(labels)), np.bool_)
            for i, k in enumerate(t.workers):
                present[i, rows[k]] = True
            outputs = yield from forward(x, step, {**inputs, "present": present, LABELS: labels})
            exits = [name.removesuffix(f"/{LOSS}") for name in outputs if name.endswith(f"/{LOSS}")]
            weights = {f"{e}/{LOSS}": np.asarray(self._weights.get(e, 1.0), np.float32) for e in exits}
            back = yield from backward(step, weights)
            for i, k in enumerate(t.workers):
                key = t.rng("code").child(f"{k}/{step}")
                of_k = {name: self._cut.coded(back.inputs[name][i, rows[k]], key.child(name)) for name in _NAMES}
                yield from tell(f"down/{step}", [k], of_k if len(rows[k]) else {})
            descent.step(x.flat, back.values.flat)
            step += 1
        self.x = x

    def _gathered(self, ups: Mapping[NodeId, Message], rows: Mapping[NodeId, Array], name: str, num: int) -> Array:
        """What all workers sent under `name`: float32 (N, B, ...), zeros where a row is absent."""
        sent = {k: self._cut.decoded(ups[k], name=name) for k in ups if len(rows[k])}
        if len({values.shape[1:] for values in sent.values()}) != 1 or any(len(sent[k]) != len(rows[k]) for k in sent):
            raise BadFrame(f"ddnn: the {name} of {', '.join(sent) or 'no device'} do not fit together")
        first = next(iter(sent.values()))
        whole = np.zeros((len(ups), num, *first.shape[1:]), np.float32)
        for i, k in enumerate(rows):
            if k in sent:
                whole[i, rows[k]] = sent[k]
        return whole


class Worker(Half):
    """One device; `x` is its own part."""

    kept = ("x",)

    def __init__(self, *, codec: str = "raw", device_weight: float = 1.0) -> None:
        self._cut, self._weight = Cut(codec=codec), device_weight

    def start(self, x: Params, node: NodeInfo) -> None:
        mine = f"devices.{node.nodes.index(node.me) - 1}."
        self.x = _part(x, node, lambda name: name.startswith(mine))

    def turn(self, t: Turn) -> Effects[None]:
        x, descent, left, step = self.x.copy(), Descent(t.job), 1, 0
        while left:
            drawn = yield from draw(_shared(t), step)
            left, labels = drawn.num_left, drawn.batch[LABELS]
            rows = np.flatnonzero(labels >= 0)
            if len(rows) < 2:
                yield from tell(f"up/{step}", [t.server], {"rows": rows[:0]})
                yield from hear(f"down/{step}", t.server)
            else:
                batch = {INPUTS: drawn.batch[INPUTS][rows], LABELS: labels[rows]}
                outputs = yield from forward(x, step, batch)
                key = t.rng("code").child(str(step))
                coded = {name: self._cut.coded(outputs[name], key.child(name)) for name in _NAMES}
                yield from tell(f"up/{step}", [t.server], {**coded, "rows": rows})
                down = yield from hear(f"down/{step}", t.server)
                grads = {name: self._cut.decoded(down, outputs[name].shape, name=name) for name in _NAMES}
                back = yield from backward(step, {**grads, LOSS: np.asarray(self._weight, np.float32)})
                descent.step(x.flat, back.values.flat)
            step += 1
        self.x = x


def _part(x: Params, node: NodeInfo, belongs: Callable[[str], bool]) -> Params:
    own = {name: value for name, value in x.items() if belongs(name)}
    if not own:
        raise ConfigError(
            f"ddnn: the model has no tensors of its own for {node.me}; a DDNN has some, called devices.0. "
            "and so on, one number per worker"
        )
    return Params.from_arrays(own)


def _shared(t: Turn) -> Job:
    """The same order of samples at every node."""
    return dataclasses.replace(t.job, key=t.shared_rng("fit"))


def _rows(message: Message, device: NodeId, num_rows: int) -> Array:
    """Which rows of the batch a device has seen. Raises BadFrame."""
    rows = message.get("rows")
    if not isinstance(rows, np.ndarray) or rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise BadFrame(f"ddnn: {device} does not say which rows it sends")
    if len(rows) and (rows[0] < 0 or rows[-1] >= num_rows or bool((np.diff(rows) <= 0).any())):
        raise BadFrame(f"ddnn: {device} sends rows that are not in order or not in a batch of {num_rows}")
    return rows
