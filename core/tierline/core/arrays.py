"""`Params`: the named tensors of a model as views on one flat float32 buffer, with arithmetic.

One buffer makes a learning rule's `x + a * d` one NumPy call whatever the number of tensors, and makes an update one
array to code. Tensors that are not trained (counters, masks) are kept apart in `buffers`; arithmetic leaves them alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from tierline.core.errors import ShapeMismatch
from tierline.core.types import Array, Arrays

Layout = tuple[tuple[str, tuple[int, ...]], ...]
"""Names and shapes, in the order of the buffer."""

Floats = npt.NDArray[np.float32]


class Params:
    """Named views on `flat`; iteration follows `layout`. Two Params combine only where their layouts are equal.

    Results of arithmetic carry the left operand's `buffers`.
    """

    __slots__ = ("_views", "buffers", "flat", "layout")

    def __init__(self, layout: Layout, flat: Floats, *, buffers: Arrays | None = None) -> None:
        """Views on `flat`, which is not copied. Raises ShapeMismatch unless it is float32 of the layout's size."""
        num_values = sum(math.prod(shape) for _, shape in layout)
        if flat.dtype != np.float32 or flat.shape != (num_values,):
            raise ShapeMismatch(f"Params: layout needs float32[{num_values}], got {flat.dtype}{list(flat.shape)}")
        self.layout = layout
        self.flat = flat
        self.buffers: Mapping[str, Array] = dict(buffers or {})
        self._views: dict[str, Floats] = {}
        start = 0
        for name, shape in layout:
            stop = start + math.prod(shape)
            self._views[name] = flat[start:stop].reshape(shape)
            start = stop
        if len(self._views) != len(layout):
            raise ShapeMismatch("Params: a name stands twice in the layout")

    @classmethod
    def from_arrays(cls, arrays: Arrays, *, buffers: Arrays | None = None) -> Params:
        """Copy `arrays` into one buffer, in their order; floats of other widths become float32."""
        for name, array in arrays.items():
            if array.dtype.kind != "f":
                raise ShapeMismatch(f"Params: {name!r} is {array.dtype}; pass tensors that are not floats as buffers=")
        layout = tuple((name, array.shape) for name, array in arrays.items())
        parts = [array.ravel().astype(np.float32) for array in arrays.values()]
        return cls(layout, np.concatenate(parts) if parts else np.empty(0, np.float32), buffers=buffers)

    def __getitem__(self, name: str) -> Floats:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def items(self) -> Iterator[tuple[str, Floats]]:
        """Names and views, in the order of the buffer."""
        return iter(self._views.items())

    def copy(self) -> Params:
        """Another buffer with the same values; `buffers` are copied too."""
        return Params(self.layout, self.flat.copy(), buffers={k: v.copy() for k, v in self.buffers.items()})

    def zeros_like(self) -> Params:
        return self._with(np.zeros_like(self.flat))

    def __add__(self, other: Params) -> Params:
        return self._with(self.flat + self._same(other))

    def __sub__(self, other: Params) -> Params:
        return self._with(self.flat - self._same(other))

    def __mul__(self, other: Params | float) -> Params:
        factor = self._same(other) if isinstance(other, Params) else np.float32(other)
        return self._with(self.flat * factor)

    __rmul__ = __mul__

    def axpy(self, a: float, x: Params) -> None:
        """`self += a * x`, in place."""
        self.flat += np.float32(a) * self._same(x)

    def dot(self, other: Params) -> float:
        """Inner product, accumulated in float64."""
        return float(np.einsum("i,i->", self.flat, self._same(other), dtype=np.float64))

    def norm(self) -> float:
        """Euclidean norm."""
        return math.sqrt(self.dot(self))

    def _with(self, flat: Floats) -> Params:
        return Params(self.layout, flat, buffers=self.buffers)

    def _same(self, other: Params) -> Floats:
        if self.layout != other.layout:
            mine, theirs = dict(self.layout), dict(other.layout)
            if mine == theirs:
                raise ShapeMismatch("Params: the same tensors in another order")
            name = next(name for name in (*mine, *theirs) if mine.get(name) != theirs.get(name))
            raise ShapeMismatch(f"Params: {name!r} is {_shape(mine, name)} here and {_shape(theirs, name)} there")
        return other.flat


def _shape(layout: dict[str, tuple[int, ...]], name: str) -> str:
    return f"float32{list(layout[name])}" if name in layout else "absent"
