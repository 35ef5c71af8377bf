"""A torch module whose parameters are views on one buffer, and their gradients on another: `Params` on torch's side.

Loading a model, one step of an optimiser and reading the model back are then single operations, whatever the number of
tensors; that is what lets many simulated workers share one module.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tierline.core.arrays import Floats, Layout, Params
from tierline.core.errors import ShapeMismatch
from tierline.core.types import Array, Arrays
from tierline.learning.compute import LOGITS


class FlatModel:
    """Wraps `module`, which it takes over. One caller at a time."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        named = list(module.named_parameters())
        self.layout: Layout = tuple((name, tuple(p.shape)) for name, p in named)
        self.values = torch.cat([p.detach().reshape(-1).float() for _, p in named])
        self.grads = torch.zeros_like(self.values)
        start = 0
        for _, p in named:
            stop = start + p.numel()
            p.data = self.values[start:stop].view(p.shape)
            p.grad = self.grads[start:stop].view(p.shape)
            start = stop

    def read(self) -> Params:
        """A copy of the present model."""
        return self.params(self.values)

    def params(self, flat: Tensor) -> Params:
        """`flat` as Params, copied, with a copy of the buffers of now."""
        buffers = {name: b.detach().numpy().copy() for name, b in self.module.named_buffers()}
        return Params(self.layout, _floats(flat), buffers=buffers)

    def load(self, x: Params) -> None:
        """Make `x` the present model; buffers that `x` lacks stay. Raises ShapeMismatch."""
        if x.layout != self.layout:
            mine, given = dict(self.layout), dict(x.layout)
            name = next((n for n in (*mine, *given) if mine.get(n) != given.get(n)), "the order of tensors")
            raise ShapeMismatch(
                f"model: {name} is {given.get(name, 'absent')} in the parameters given and {mine.get(name, 'absent')} "
                f"in {type(self.module).__name__}"
            )
        self.values.copy_(to_tensor(x.flat))
        for name, buffer in self.module.named_buffers():
            if name in x.buffers:
                buffer.copy_(to_tensor(x.buffers[name]))

    def outputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the module: a single input is passed by position, several by name."""
        return named_outputs(self.module(*inputs.values()) if len(inputs) == 1 else self.module(**inputs))


def named_outputs(result: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a module that returns one tensor, its logits."""
    return {LOGITS: result} if isinstance(result, Tensor) else dict(result)


def to_tensor(array: Array) -> Tensor:
    """A copy, since what rules hand over may be read-only."""
    return torch.tensor(array)


def to_arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: t.detach().numpy().copy() for name, t in tensors.items()}


def _floats(flat: Tensor) -> Floats:
    floats: Floats = flat.detach().numpy().copy()
    return floats
