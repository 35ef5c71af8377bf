"""Sections of a cut model in torch: forward and backward by token, any number of them in flight.

A model that can be cut is a `zoo._staged.Staged`; which of its stages a Section holds is said by the names of its
parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from tierline.core.arrays import Params
from tierline.core.types import Arrays
from tierline.learning.compute import LABELS, LOGITS, LOSS, Backprop
from tierline.learning.errors import RuleError
from tierline.models.train.flat import FlatModel, named_outputs, to_arrays, to_tensor
from tierline.models.train.torch_process import one_thread
from tierline.models.zoo._staged import Staged

Loss = Callable[[Tensor, Tensor], Tensor]
"""Mean loss of logits (B, ...) on labels (B, ...)."""

_Tensors = dict[str, Tensor]


class Tape:
    """Remembers what ran forward until it is asked backward."""

    def __init__(self, model: FlatModel, loss: Loss) -> None:
        self._model, self._loss = model, loss
        self._tape: dict[int, tuple[_Tensors, _Tensors, _Tensors]] = {}

    def forward(self, at: Params, token: int, inputs: Arrays) -> Arrays:
        """See `learning.compute.Forward`. Raises RuleError for parameters of no Section."""
        options = {} if at.layout == self._model.layout else self._places(at)
        # Copies of its own, since the shared buffer may hold another model by the time of `backward`.
        values = {name: to_tensor(value).requires_grad_() for name, value in at.items()}
        given = {name: to_tensor(array) for name, array in inputs.items()}
        labels = given.pop(LABELS, None)
        for tensor in given.values():
            tensor.requires_grad_(tensor.is_floating_point())
        args, by_name = (tuple(given.values()), options) if len(given) == 1 else ((), given | options)
        self._model.module.train()
        with one_thread():
            outputs = named_outputs(functional_call(self._model.module, values, args, by_name))
            if labels is not None:
                exits = [name.removesuffix(LOGITS) for name in outputs if name.rpartition("/")[2] == LOGITS]
                if not exits:
                    raise RuleError(f"forward: labels for a Section without logits; it has {', '.join(outputs)}")
                outputs |= {f"{name}{LOSS}": self._loss(outputs[f"{name}{LOGITS}"], labels) for name in exits}
        self._tape[token] = values, given, outputs
        return to_arrays(outputs)

    def backward(self, token: int, gradients: Arrays) -> Backprop:
        """See `learning.compute.Backward`. Raises RuleError for a token or an output that is not there."""
        if token not in self._tape:
            raise RuleError(f"backward: nothing was run forward under token {token}")
        values, given, outputs = self._tape.pop(token)
        missing = gradients.keys() - outputs.keys()
        if missing:
            raise RuleError(f"backward: the model has no output {', '.join(sorted(missing))}")
        names = sorted(gradients)
        by = [*values.values(), *(t for t in given.values() if t.requires_grad)]
        with one_thread():
            grads = torch.autograd.grad(
                [outputs[name] for name in names],
                by,
                [to_tensor(gradients[name]) for name in names],
                allow_unused=True,
            )
        filled = [torch.zeros_like(t) if g is None else g for t, g in zip(by, grads, strict=True)]
        found = Params.from_arrays(to_arrays(dict(zip(values, filled, strict=False))))
        floats = [name for name, t in given.items() if t.requires_grad]
        return Backprop(found, to_arrays(dict(zip(floats, filled[len(values) :], strict=True))))

    def _places(self, at: Params) -> dict[str, Any]:
        """Which stages a Section holds, as options of the module's `forward`."""
        module = self._model.module
        if not isinstance(module, Staged):
            raise RuleError(
                f"forward: {', '.join(at)} are a part of {type(module).__name__}, which has no stages to be cut between"
            )
        layers = [name for name, _ in module.stages()]
        held = [i for i, layer in enumerate(layers) if any(name.startswith(f"{layer}.") for name in at)]
        expected = tuple(item for item in self._model.layout if item[0].rpartition(".")[0] in {layers[i] for i in held})
        if not held or held != list(range(held[0], held[-1] + 1)) or at.layout != expected:
            raise RuleError(f"forward: {', '.join(at)} are no Section of {type(module).__name__}")
        return {"first": held[0], "stop": held[-1] + 1}
