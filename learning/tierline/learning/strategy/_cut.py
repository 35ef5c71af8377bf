"""A model cut in two between a device and the root, and one batch of training through the cut.

    device:  a = head(x)                         ->  a  ->   root:  loss = root(a), labels
             head <- head - lr (da/dhead)^T g    <-  g  <-          g = d loss / d a
    with the labels on the device (U-shaped):
    device:  a = head(x)  -> a ->  root: b = middle(a)  -> b ->  device: loss = tail(b), labels
             head <- ...  <- g <-        middle <- ...  <- h <-          h = d loss / d b

A batch goes as `micro_batches` parts, all of which are under way at once; gradients add up before the one step that
each side takes. Shapes: R rows of a micro-batch out of B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import Literal

import numpy as np
import numpy.typing as npt

from tierline.core.arrays import Floats, Params
from tierline.core.coding import codec_for
from tierline.core.errors import BadFrame, ConfigError
from tierline.core.rng import Key
from tierline.core.types import Array, NodeId, TensorSpec
from tierline.learning.compressor import Compressed
from tierline.learning.compute import INPUTS, LABELS, LOSS
from tierline.learning.descent import Descent
from tierline.learning.effects import Effects, Message, backward, draw, forward, hear, number, params, tell
from tierline.learning.half import Half
from tierline.learning.packing import packed, unpacked
from tierline.learning.rule import Turn
from tierline.learning.strategy._rounds import Round

FEATURES = "features"
"""Output of a Section that ends before the model does."""

_MAX_VALUES = 1 << 28
"""Of one coded tensor: whoever gets activations cannot know their shape, but no honest batch is larger."""


@dataclass(frozen=True)
class Cut:
    """Where the model is cut, and how what crosses is coded. A layer is what shares its tensors' name up to the last
    dot. The device holds the first `cut` layers, and the last `tail` too where it keeps the labels. Raises ConfigError.
    """

    cut: int = 1
    labels: Literal["root", "device"] = "root"
    tail: int = 1
    codec: str = "raw"
    micro_batches: int = 1

    def __post_init__(self) -> None:
        if self.labels not in ("root", "device"):
            raise ConfigError(f'labels = {self.labels!r}; valid: "root", "device"')
        for name in ("cut", "tail", "micro_batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least 1")
        if "float32" not in codec_for(self.codec).dtypes:
            raise ConfigError(f"codec {self.codec!r} takes no float32, which activations and gradients are")

    @property
    def keeps_labels(self) -> bool:
        return self.labels == "device"

    def parts(self, x: Params) -> tuple[Params, Params]:
        """Copies of the device's and of the root's part. Raises ConfigError where the model has too few layers."""
        if x.buffers:
            raise ConfigError(
                f"split: the model has {', '.join(x.buffers)}, which is not trained and belongs to no part"
            )
        head, middle = self._places(x)
        whole = x.layout
        outer = np.concatenate([x.flat[: head[1]], x.flat[middle[1] :]])
        return (
            Params(whole[: head[0]] + whole[middle[0] :], outer),
            Params(whole[head[0] : middle[0]], x.flat[head[1] : middle[1]].copy()),
        )

    def joined(self, x: Params, device: Params, root: Params) -> Params:
        """The whole model again, laid out as `x`."""
        (_, head), _ = self._places(x)
        return Params(x.layout, np.concatenate([device.flat[:head], root.flat, device.flat[head:]]))

    def ends(self, x: Params, device: Params) -> tuple[Params, Params]:
        """Views on the device's part: head and tail; the tail is empty where the root has the labels."""
        (num, size), _ = self._places(x)
        return Params(device.layout[:num], device.flat[:size]), Params(device.layout[num:], device.flat[size:])

    def _places(self, x: Params) -> tuple[tuple[int, int], tuple[int, int]]:
        """Where head and middle end, in tensors and in values."""
        layers = [len(list(names)) for _, names in groupby(x, lambda name: name.rpartition(".")[0] or name)]
        tail = self.tail if self.keeps_labels else 0
        if self.cut + tail >= len(layers):
            raise ConfigError(
                f"split: cut = {self.cut} and tail = {tail} leave the root nothing of {len(layers)} layers; take fewer"
            )
        sizes = [prod(shape) for _, shape in x.layout]
        head, middle = sum(layers[: self.cut]), sum(layers[: len(layers) - tail])
        return (head, sum(sizes[:head])), (middle, sum(sizes[:middle]))

    def coded(self, values: Array, key: Key) -> npt.NDArray[np.uint8]:
        """float32 (R, ...) as the bytes of a message."""
        payload = codec_for(self.codec).encode(values.astype(np.float32, copy=False), seed=int(key.bits(1)[0]))
        return packed(Compressed(values.shape, 0, {"x": payload}))

    def decoded(self, message: Message, shape: tuple[int, ...] | None = None, *, name: str = "x") -> Array:
        """What `coded` made of an array, of `shape` where it is known. Raises BadFrame, CorruptPayload."""
        payload = unpacked(message.get(name), ()).payloads.get("x")
        if payload is None or not payload.shape or (shape is not None and payload.shape != shape):
            found = "nothing" if payload is None else f"an array {list(payload.shape)}"
            raise BadFrame(f"split: a message holds {found} where {list(shape or ())} was expected")
        if prod(payload.shape) > _MAX_VALUES:
            raise BadFrame(f"split: {list(payload.shape)} is more than {_MAX_VALUES} values")
        limit = TensorSpec("float32", payload.shape[1:])
        values = codec_for(self.codec).decode(payload, limit, max_rows=payload.shape[0])
        if not np.isfinite(values).all():
            raise BadFrame("split: activations or gradients that are not finite; a smaller lr may help")
        return values


class CutHalf(Half):
    """What both halves of a rule for cut models are told."""

    def __init__(
        self,
        *,
        cut: int = 1,
        labels: Literal["root", "device"] = "root",
        tail: int = 1,
        codec: str = "raw",
        micro_batches: int = 1,
        share: float = 1.0,
    ) -> None:
        self._cut, self._round = Cut(cut, labels, tail, codec, micro_batches), Round(share)

    def _train(self, t: Turn) -> Effects[tuple[Params, int]]:
        """A worker's round up to its end: hear its part, train it; the part and the number of samples."""
        mine, _ = self._cut.parts(self.x)
        part = params((yield from hear("part", t.server)), "x", mine).copy()
        num_samples = yield from train_device(self._cut, t, self.x, part)
        return part, num_samples


def train_device(cut: Cut, t: Turn, x: Params, part: Params) -> Effects[int]:
    """The device's half of a visit: trains `part` in place through the job's batches; returns its samples' number."""
    head, tail = cut.ends(x, part)
    descent = Descent(t.job)
    step, left = 0, 1
    while left:
        drawn = yield from draw(t.job, step)
        left = drawn.num_left
        if step == 0:
            yield from tell("begin", [t.server], {"num_steps": left + 1, "num_samples": drawn.num_samples})
        inputs, labels = drawn.batch[INPUTS], drawn.batch[LABELS]
        rows = np.array_split(np.arange(len(labels)), min(cut.micro_batches, len(labels)))
        gradient = yield from _device_batch(cut, t, step, (head, tail), [(inputs[r], labels[r]) for r in rows])
        descent.step(part.flat, gradient)
        step += 1
    return drawn.num_samples


def _device_batch(
    cut: Cut, t: Turn, step: int, ends: tuple[Params, Params], parts: Sequence[tuple[Array, Array]]
) -> Effects[Floats]:
    head, tail = ends
    total = sum(len(labels) for _, labels in parts)
    key = t.rng("code")
    shapes: list[tuple[int, ...]] = []
    # Tokens are even for the head and odd for the tail; none outlives its batch.
    for m, (inputs, labels) in enumerate(parts):
        a = (yield from forward(head, 2 * m, {INPUTS: inputs}))[FEATURES]
        shapes.append(a.shape)
        up: dict[str, Array | int | float] = {"x": cut.coded(a, key.child(f"up/{step}/{m}"))}
        up |= {"share": len(labels) / total, "more": len(parts) - 1 - m}
        if not cut.keeps_labels:
            up["labels"] = labels
        yield from tell(f"up/{step}/{m}", [t.server], up)
    of_tail = np.zeros_like(tail.flat)
    for m, (_, labels) in enumerate(parts if cut.keeps_labels else ()):
        b = cut.decoded((yield from hear(f"middle/{step}/{m}", t.server)))
        yield from forward(tail, 2 * m + 1, {INPUTS: b, LABELS: labels})
        back = yield from backward(2 * m + 1, {LOSS: np.float32(len(labels) / total).reshape(())})
        of_tail += back.values.flat
        h = cut.coded(back.inputs[INPUTS], key.child(f"back/{step}/{m}"))
        yield from tell(f"back/{step}/{m}", [t.server], {"x": h})
    of_head = np.zeros_like(head.flat)
    for m, shape in enumerate(shapes):
        g = cut.decoded((yield from hear(f"down/{step}/{m}", t.server)), shape)
        of_head += (yield from backward(2 * m, {FEATURES: g})).values.flat
    return np.concatenate([of_head, of_tail])


def root_batch(cut: Cut, t: Turn, device: NodeId, part: Params, step: int) -> Effects[Floats]:
    """The root's half of one batch of `device`: the gradient by `part`. Raises BadFrame for what no device sends."""
    key = t.rng("code").child(device)
    gradient = np.zeros_like(part.flat)
    shapes: list[tuple[int, ...]] = []
    more = 1
    while more:
        m = len(shapes)
        up = yield from hear(f"up/{step}/{m}", device)
        more, share = int(number(up, "more")), number(up, "share")
        if not 0.0 < share <= 1.0 or not 0 <= more < cut.micro_batches - m:
            raise BadFrame(f"split: {device} sends a share {share} of a batch, with {more} more")
        a = cut.decoded(up)
        if cut.keeps_labels:
            b = (yield from forward(part, m, {INPUTS: a}))[FEATURES]
            shapes.append(b.shape)
            yield from tell(f"middle/{step}/{m}", [device], {"x": cut.coded(b, key.child(f"middle/{step}/{m}"))})
        else:
            shapes.append(a.shape)
            yield from forward(part, m, {INPUTS: a, LABELS: _labels(up, device, len(a))})
            loss = np.float32(share).reshape(())
            gradient += yield from _root_back(cut, t, device, m, step, {LOSS: loss})
    for m, shape in enumerate(shapes if cut.keeps_labels else ()):
        h = cut.decoded((yield from hear(f"back/{step}/{m}", device)), shape)
        gradient += yield from _root_back(cut, t, device, m, step, {FEATURES: h})
    return gradient


def _root_back(cut: Cut, t: Turn, device: NodeId, m: int, step: int, gradients: dict[str, Array]) -> Effects[Floats]:
    back = yield from backward(m, gradients)
    key = t.rng("code").child(device).child(f"down/{step}/{m}")
    yield from tell(f"down/{step}/{m}", [device], {"x": cut.coded(back.inputs[INPUTS], key)})
    return back.values.flat


def _labels(message: Message, device: NodeId, num_rows: int) -> Array:
    labels = message.get("labels")
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu" or len(labels) != num_rows:
        raise BadFrame(f"split: {device} sends activations without a label for each row")
    return labels
